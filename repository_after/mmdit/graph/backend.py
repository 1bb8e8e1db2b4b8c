"""torch.compile(model, backend="mmdit"): the passes on each graph that Dynamo finds, then Inductor.

Importing mmdit.graph registers it; where the package is installed its entry point does, without an import.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.registry import _BACKENDS, lookup_backend, register_backend
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx

from mmdit.graph.passes.base import Opportunity, make_passes
from mmdit.graph.passes.blocks import CONSTANT
from mmdit.graph.report import kinds_of
from mmdit.graph.trace import plain_graph

PASSES = ("redundant_ops", "fuse_mmdit")
INNER = "inductor"
OWN_OPTIONS = ("passes", "inner")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compilation:
    """What the passes did to one of Dynamo's graphs. problem: why it was compiled as it was, or None."""

    nodes_before: dict[str, int]
    nodes_after: dict[str, int]
    opportunities: tuple[Opportunity, ...]
    problem: str | None


_compilations: list[Compilation] = []


def compilations() -> tuple[Compilation, ...]:
    """All graphs compiled by this backend in this process, in order."""
    return tuple(_compilations)


def mmdit_backend(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None, **kwargs: Any
) -> Callable[..., Any]:
    """A backend as torch.compile calls it.

    Args:
        options: of torch.compile. "passes", names in their order (redundant_ops, fuse_mmdit); "inner", the backend
            that compiles what they give ("inductor"); all others go to the passes, as "budget" to recompute.
            Like Inductor, which draws what is dropped in its own way, fuse_mmdit has own_dropout here.

    A graph that the passes cannot take is compiled by the inner backend alone; compilations() and a warning say why.
    Raises UnknownPassError for an unknown pass or option.
    """
    options = dict(options or {})
    rest = {name: value for name, value in options.items() if name not in OWN_OPTIONS}
    names = list(options.get("passes", PASSES))
    passes = make_passes(names, ({"own_dropout": True} if "fuse_mmdit" in names else {}) | rest)
    inner = lookup_backend(options.get("inner", INNER))
    found: list[Opportunity] = []
    try:
        made = to_aten(graph_module, example_inputs)
        for optimization in passes:
            opportunities = optimization.analyze(made)
            taken = [opportunity for opportunity in opportunities if opportunity.refused is None]
            made = optimization.transform(made, taken)
            made.graph.lint()
            found += opportunities
        problem = None
    except Exception as error:
        made, problem = graph_module, f"{type(error).__name__}: {error}"
        log.warning("backend mmdit leaves a graph to %s: %s", options.get("inner", INNER), problem)
    _compilations.append(Compilation(kinds_of(graph_module), kinds_of(made), tuple(found), problem))
    return inner(made, example_inputs)


def to_aten(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> fx.GraphModule:
    """Dynamo's graph as one of ATen operators, before autograd: what torch.export would give."""
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    fakes = [n.meta.get("example_value", given) for n, given in zip(placeholders, example_inputs, strict=True)]
    mode = next((t.fake_mode for t in fakes if isinstance(t, FakeTensor)), nullcontext())
    with mode, torch.set_grad_enabled(torch.is_grad_enabled()):
        made = plain_graph(make_fx(graph_module, pre_dispatch=True)(*fakes))
    for node, given in zip(made.graph.find_nodes(op="placeholder"), example_inputs, strict=True):
        if getattr(given, "_dynamo_static_input_type", None) and not isinstance(given, FakeTensor):
            node.meta[CONSTANT] = given
    made.train(torch.is_grad_enabled())
    return made


if "mmdit" not in _BACKENDS:  # else torch found the entry point, and registers what it loads by it
    register_backend(compiler_fn=mmdit_backend, name="mmdit")
