"""Blocks of fused operators, and those that follow each other, as one: mmdit::stack, or, where their MLPs drop some of
what they give, mmdit::stack_training, which draws that.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from mmdit.attention import RMS_EPS
from mmdit.graph.expression import aten, base, express, same_shape, shape_of, source
from mmdit.graph.match import Match, find
from mmdit.graph.vanilla_blocks import BLOCKS, DROPPING_BLOCKS
from mmdit.inference.weights import NORM_EPS, StreamWeights, blocks_of
from mmdit.runtime.dispatch import why_not
from mmdit.training.op import operator_obstacle
from mmdit.training.stack import SEEDS

ops = torch.ops.mmdit
CONSTANT = "constant"  # in the meta of a placeholder: the buffer or parameter that it is
EPS = {"eps": NORM_EPS, "rms_eps": RMS_EPS}
CONDITIONS = ("condition_weight", "condition_bias", "c_condition_weight", "c_condition_bias")
AFFINE = ("norm_1_weight", "norm_1_bias", "norm_2_weight", "norm_2_bias")


@dataclass(frozen=True)
class Rotation:
    """cos and sin of (positions, Dh / 2), or the complex table that has both; row l is at starts + start + l."""

    tables: tuple[fx.Node, ...]
    start: Any
    starts: fx.Node | None


@dataclass(frozen=True)
class Block:
    """A block found: its match or matches, what it gives, x's before the context's, and what it takes."""

    matches: tuple[Match, ...]
    results: tuple[fx.Node, ...]
    arguments: dict[str, Any]
    rotation: Rotation

    @property
    def kind(self) -> str:
        return self.matches[0].spelling.name

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """Of x, and of the context."""
        return tuple(self.arguments[name] for name in ("x", "c_x") if name in self.arguments)

    @property
    def rates(self) -> set[float]:
        """With which probabilities the streams' MLPs drop."""
        return {match.numbers.get("dropout", 0.0) for match in self.matches}

    def weights(self) -> list[fx.Node]:
        """As tensors_of has them."""
        names = [*StreamWeights._fields, *(f"c_{name}" for name in StreamWeights._fields), *CONDITIONS, *AFFINE]
        return [self.arguments[name] for name in names if name in self.arguments]

    def obstacle(self, order: dict[fx.Node, int], training: bool, own_dropout: bool) -> str | None:
        """Why the operator cannot stand for this block, or None.

        Args:
            order: of the graph's nodes.
            training: whether it has to have kernels for gradients.
            own_dropout: whether it may draw what is dropped.
        """
        first = min(map(order.__getitem__, self.results))
        late = [node.name for node in self.arguments.values() if node is not None and order[node] > first]
        if late:
            return f"{late[0]} comes after the first result"
        for name, eps in EPS.items():
            got = self.matches[0].numbers[name]
            if any(match.numbers[name] != eps for match in self.matches):
                return f"expected {name} {eps:g}, which the kernels have, got {got:g}"
        drops = self.rates != {0.0}
        if drops and not own_dropout:
            return "its dropout draws by Philox, not by PyTorch's generator: own_dropout=True takes it"
        return self._training_obstacle() if training or drops else None

    def _training_obstacle(self) -> str | None:
        x, context = (*[node.meta["val"] for node in self.inputs], None)[:2]
        weights = [node.meta["val"] for node in self.weights()]
        blocks = blocks_of(weights, len(self.inputs), 1)
        return why_not(x) or operator_obstacle(x, context, blocks, self.matches[0].numbers["H"], self.rates)


def find_blocks(graph: fx.Graph) -> list[Block]:
    """All blocks, in the order of the graph."""
    blocks: list[Block] = []
    drops = any(source(node) is node for node in graph.find_nodes(op="call_function", target=aten.dropout.default))
    for spellings in BLOCKS + (DROPPING_BLOCKS if drops else ()):
        streams = [{_attention(match): match for match in find(graph, spelling)[0]} for spelling in spellings]
        for attention in set.intersection(*map(set, streams)):
            matches = tuple(stream[attention] for stream in streams)
            shared = set.intersection(*(set(match.arguments) for match in matches))
            if all(match.arguments[name] is matches[0].arguments[name] for match in matches for name in shared):
                arguments = {name: node for match in matches for name, node in match.arguments.items()}
                results = tuple(match.result for match in matches)
                blocks.append(Block(matches, results, arguments, _rotation(arguments)))
    order = {node: i for i, node in enumerate(graph.nodes)}
    return sorted(blocks, key=lambda block: order[block.results[0]])


def chains(blocks: list[Block], value: Callable[[fx.Node], Tensor | None]) -> Iterator[list[Block]]:
    """The blocks, each with those that follow it and could be run with it. value: of a node that is a constant."""
    left = list(blocks)
    while left:
        chain = [left.pop(0)]
        while True:
            then = next((block for block in left if _follows(chain[-1], block, value)), None)
            if then is None:
                break
            left.remove(then)
            chain.append(then)
        yield chain


def _follows(block: Block, then: Block, value: Callable[[fx.Node], Tensor | None]) -> bool:
    """Whether all that a block gives goes into another of its kind, and nowhere else."""
    inside = {node for match in then.matches for node in match.inside}
    one, other = block.rotation, then.rotation
    return (
        block.kind == then.kind
        and block.results == then.inputs
        and all(node.users.keys() <= inside for node in block.results)
        and all(_alike(block.arguments.get(name), then.arguments.get(name)) for name in ("y", "attn_mask"))
        and [block.matches[0].numbers[n] for n in "DH"] == [then.matches[0].numbers[n] for n in "DH"]
        and [shape_of(node) for node in block.weights()] == [shape_of(node) for node in then.weights()]
        and block.rates == then.rates
        and (one.start, one.starts) == (other.start, other.starts)
        and len(one.tables) == len(other.tables)
        and all(_equal(a, b, value) for a, b in zip(one.tables, other.tables, strict=True))
    )


def _alike(a: fx.Node | None, b: fx.Node | None) -> bool:
    """Whether two are one, or one's reshapes to a shape, or the same comparison of one."""
    if a is b or a is None or b is None:
        return a is b
    if a.target is b.target is aten.ne.Scalar:
        return a.args == b.args
    return base(a) is base(b) and same_shape(shape_of(a), shape_of(b))


def _equal(a: fx.Node, b: fx.Node, value: Callable[[fx.Node], Tensor | None]) -> bool:
    """Whether two tables are one, or constants with the same values."""
    if a is b:
        return True
    one, other = value(a), value(b)
    return one is not None and other is not None and one.device == other.device and torch.equal(one, other)


def emit_stack(chain: list[Block], emit: Callable[..., fx.Node]) -> list[fx.Node]:
    """What the last block of a chain gives, by one operator."""
    first, rotation = chain[0], chain[0].rotation
    x, context = (*first.inputs, None)[:2]
    if len(rotation.tables) == 1:  # one copy gives both
        parts = emit(aten.view_as_real.default, rotation.tables[0])
        parts = emit(aten.contiguous.default, emit(aten.permute.default, parts, [2, 0, 1]))
        cos, sin = (emit(aten.select.int, parts, 0, i) for i in range(2))
    else:
        cos, sin = rotation.tables
    weights = [node for block in chain for node in block.weights()]
    y, mask = first.arguments.get("y"), first.arguments["attn_mask"]
    heads = first.matches[0].numbers["H"]
    given, (rate,) = (x, context, y, mask, cos, sin, rotation.starts, rotation.start), first.rates
    if rate > 0:
        seeds = emit(aten.randint.default, SEEDS, [len(chain), 2], device=x.meta["val"].device)
        made = emit(ops.stack_training.default, *given, seeds, rate, "none", weights, heads)
    else:
        made = emit(ops.stack.default, *given, weights, heads)
    return [emit(getitem, made, i) for i in range(len(first.results))]


def _rotation(arguments: dict[str, Any]) -> Rotation:
    """Where cos and sin are parts of rows of a complex table, that table, and which rows."""
    cos, sin, starts = (arguments[name] for name in ("cos", "sin", "start_pos"))
    given = Rotation((cos, sin), 0, starts)
    parts = [base(node) for node in (cos, sin)]
    if [node.target for node in parts] != [aten.select.int] * 2 or parts[0].args[0] is not parts[1].args[0]:
        return given
    turns = source(parts[0].args[0].args[0]) if parts[0].args[0].target is aten.view_as_real.default else None
    if not isinstance(turns, fx.Node) or turns.target is not aten.index.Tensor or len(turns.args[1]) != 1:
        return given
    found = _positions(turns.args[1][0])
    table = source(turns.args[0])
    if found is None or len(shape_of(table) or ()) != 2:
        return given
    return Rotation((table,), *found)


def _positions(node: Any) -> tuple[Any, fx.Node | None] | None:
    """(start, starts) of positions that count up by one from there: (L,) or (B, 1, L); None for others."""
    node = base(node)
    if not isinstance(node, fx.Node):
        return None
    if node.target is aten.arange.default:
        return 0, None
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    for one, other in (node.args, node.args[::-1]):
        if getattr(base(one), "target", None) is not aten.arange.default:
            continue
        if not isinstance(other, fx.Node):
            return other, None
        starts = base(other)
        if len(shape_of(starts) or ()) == 1 and len(shape_of(other)) == 3:
            return 0, starts
    return None


def _attention(match: Match) -> fx.Node:
    return next(node for node in match.inside if express(node).name == str(ops.joint_attention.default))
