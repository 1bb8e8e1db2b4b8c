"""The graph optimiser: a model of your own in, the fused one out."""

from mmdit.graph.errors import GraphError, TraceError, UnknownPassError, VerificationError
from mmdit.graph.optimizer import GraphOptimizer, OptimizedModel
from mmdit.graph.passes import redundant_ops  # noqa: F401  registers itself
from mmdit.graph.passes.base import Opportunity, OptimizationPass, find_pass, known_passes, register_pass
from mmdit.graph.report import Report
from mmdit.graph.trace import trace

__all__ = [
    "GraphError",
    "GraphOptimizer",
    "Opportunity",
    "OptimizationPass",
    "OptimizedModel",
    "Report",
    "TraceError",
    "UnknownPassError",
    "VerificationError",
    "find_pass",
    "known_passes",
    "register_pass",
    "trace",
]
