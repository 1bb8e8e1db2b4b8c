"""Common subexpressions: what is computed more than once is computed once."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from mmdit.graph.effects import OUTSIDE, Effects, find_effects
from mmdit.graph.passes.base import Opportunity, OptimizationPass, register_pass

KIND = "common subexpression"


@register_pass("redundant_ops")
class RedundantOps(OptimizationPass):
    """Merges nodes of one operation on the same values: functions, methods, modules and operators, any number of
    copies, and what in turn becomes equal by that. Random, stateful and mutated values stay apart.
    """

    def analyze(self, graph_module: fx.GraphModule) -> list[Opportunity]:
        return [
            Opportunity(KIND, (pair.kept.name, pair.copy.name), f"{pair.copy.name} is {pair.kept.name}", pair.refused)
            for pair in _pairs(graph_module.graph, find_effects(graph_module))
        ]

    def transform(self, graph_module: fx.GraphModule, opportunities: list[Opportunity]) -> fx.GraphModule:
        nodes = {node.name: node for node in graph_module.graph.nodes}
        for opportunity in opportunities:
            kept, duplicate = (nodes[name] for name in opportunity.nodes)
            duplicate.replace_all_uses_with(kept)
        for _, duplicate in reversed([o.nodes for o in opportunities]):
            graph_module.graph.erase_node(nodes[duplicate])
        graph_module.recompile()
        return graph_module


@dataclass(frozen=True)
class _Pair:
    kept: fx.Node
    copy: fx.Node
    refused: str | None


def _pairs(graph: fx.Graph, effects: Effects) -> list[_Pair]:
    """Every node that says what an earlier one says, with that one, and why they are two, where they are."""
    writes: dict[int, int] = defaultdict(int)  # storage -> how often it has been written so far
    later = _written_after(graph, effects)
    returned = _returned(graph, effects)
    region = 0
    same: dict[fx.Node, fx.Node] = {}
    seen: dict[Any, tuple[fx.Node, tuple]] = {}
    pairs: list[_Pair] = []
    for node in graph.nodes:
        if node.op == "output":
            continue
        effect = effects.of[node]
        if effect.obstacle == "switches a mode":
            region += 1
        if node.op in ("call_function", "call_method", "call_module"):
            key = _key(node, same)
            versions = (region, tuple(sorted((s, writes[s]) for s in _storages(node, effects, same))))
            before = seen.get(key)
            if before is not None and effect.obstacle != "switches a mode":
                kept, then = before
                refused = effect.obstacle or _why_apart(
                    kept, node, then, versions, effects, same, writes, later, returned
                )
                pairs.append(_Pair(kept, node, refused))
                if refused is None:
                    same[node] = kept
            if node not in same:
                seen[key] = (node, versions)
        elif node.op == "get_attr":
            kept = seen.setdefault(("get_attr", node.target), (node, ()))[0]
            same[node] = same.get(kept, kept)
        for storage in effect.writes:
            writes[storage] += 1
    return pairs


def _why_apart(
    kept: fx.Node,
    node: fx.Node,
    then: tuple,
    now: tuple,
    effects: Effects,
    same: dict[fx.Node, fx.Node],
    writes: dict[int, int],
    later: dict[fx.Node, frozenset[int]],
    returned: dict[int, int],
) -> str | None:
    """The reason against one node for both, or None."""
    if then[0] != now[0]:
        return "in another region of autocast or gradient recording"
    if then[1] != now[1]:
        return "an input is written to in between"
    first, second = effects.of[kept].gives, effects.of[node].gives
    inputs = _storages(node, effects, same)
    for storage in (first | second) - inputs - {OUTSIDE}:
        if writes[storage] or storage in later[node]:
            return "its result is written to"
    own = (first ^ second) - {OUTSIDE}
    if own and all(returned.get(s) for s in own) and first - second and second - first:
        return "both are outputs of the graph, and a caller may write to one"
    return None


def _written_after(graph: fx.Graph, effects: Effects) -> dict[fx.Node, frozenset[int]]:
    """The storages that are written after each node."""
    found: dict[fx.Node, frozenset[int]] = {}
    written: frozenset[int] = frozenset()
    for node in reversed(graph.nodes):
        found[node] = written
        if node in effects.of:
            written |= effects.of[node].writes
    return found


def _returned(graph: fx.Graph, effects: Effects) -> dict[int, int]:
    """How many of the graph's outputs lie in each storage."""
    counts: dict[int, int] = defaultdict(int)
    for node in {n for n in tree_leaves(graph.output_node().args) if isinstance(n, fx.Node)}:
        for storage in effects.of[node].gives:
            counts[storage] += 1
    return counts


def _storages(node: fx.Node, effects: Effects, same: dict[fx.Node, fx.Node]) -> frozenset[int]:
    """Where a node's inputs lie, once merged; a module's weights lie outside."""
    inside = frozenset().union(*(effects.of[same.get(n, n)].gives for n in node.all_input_nodes))
    return inside | {OUTSIDE} if node.op == "call_module" else inside


def _key(node: fx.Node, same: dict[fx.Node, fx.Node]) -> Any:
    """What a node computes: its target, and its arguments by structure, given by position or by name alike."""
    args, kwargs = node.args, node.kwargs
    if isinstance(node.target, OpOverload):
        schema = node.target._schema.arguments
        given = {a.name: v for a, v in zip(schema, args, strict=False)} | kwargs
        args, kwargs = (), {a.name: given.get(a.name, a.default_value) for a in schema}
    named = tuple(sorted((k, _structure(v, same)) for k, v in kwargs.items()))
    return node.op, node.target, _structure(args, same), named


def _structure(value: Any, same: dict[fx.Node, fx.Node]) -> Any:
    """value as a key: nodes by what they were merged into, and 1, 1.0 and True apart."""
    if isinstance(value, fx.Node):
        return "node", same.get(value, value).name
    if isinstance(value, (list, tuple)):
        return "list", tuple(_structure(v, same) for v in value)
    if isinstance(value, dict):
        return "dict", tuple((repr(k), _structure(v, same)) for k, v in value.items())
    if isinstance(value, slice):
        return "slice", tuple(_structure(v, same) for v in (value.start, value.stop, value.step))
    if isinstance(value, Tensor):
        return "tensor", id(value)
    return type(value).__name__, repr(value)
