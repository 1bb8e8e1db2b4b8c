"""The graph optimiser: a model of your own in, the fused one out."""

from mmdit.graph.backend import Compilation, compilations
from mmdit.graph.errors import GraphError, TraceError, UnknownPassError, VerificationError
from mmdit.graph.optimizer import GraphOptimizer, OptimizedModel
from mmdit.graph.passes import fuse_mmdit, recompute, redundant_ops  # noqa: F401  register themselves
from mmdit.graph.passes.base import Opportunity, OptimizationPass, find_pass, known_passes, register_pass
from mmdit.graph.report import Report
from mmdit.graph.swap import Swap, fuse, fusions, unfuse
from mmdit.graph.trace import trace

__all__ = [
    "Compilation",
    "GraphError",
    "GraphOptimizer",
    "Opportunity",
    "OptimizationPass",
    "OptimizedModel",
    "Report",
    "Swap",
    "TraceError",
    "UnknownPassError",
    "VerificationError",
    "compilations",
    "find_pass",
    "fuse",
    "fusions",
    "known_passes",
    "register_pass",
    "trace",
    "unfuse",
]
