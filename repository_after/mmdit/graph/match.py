"""Finds exported patterns in a graph, whatever the names, the order of sums and products, and the way of reshaping.

torch's SubgraphMatcher compares graphs operator by operator and argument by argument; what it lacks is that sums
commute, that there are many spellings of one reshape, and to say what was different where nothing was found.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import fx

from mmdit.graph import vanilla
from mmdit.graph.expression import COMMUTATIVE, dtype_of, express, is_cast, same_size, settled, shape_of, source
from mmdit.graph.trace import trace
from mmdit.graph.vanilla import Spelling

SIZES = {
    value: name
    for name, value in (
        *(("B", vanilla.B), ("L", vanilla.L), ("C", vanilla.C), ("S", vanilla.S), ("H", vanilla.H)),
        *(("Dh", vanilla.DH), ("D", vanilla.D), ("Dh/2", vanilla.DH // 2), ("F", vanilla.FORWARD)),
        *(("P", vanilla.P), ("3 D", 3 * vanilla.D), ("6 D", 6 * vanilla.D)),
    )
}
ANY_NUMBER = {vanilla.EPS: "eps", vanilla.RMS_EPS: "rms_eps", vanilla.DROPOUT: "dropout"}
OPTIONAL = ("bias", "start_pos", "attn_mask")  # arguments that may be None
NEAR = 3  # operations of a pattern that must have matched for it to be told as the nearest


@dataclass(frozen=True)
class Match:
    """A pattern found: the node that gives its result, what its arguments are, its numbers, and the nodes inside."""

    spelling: Spelling
    result: fx.Node
    arguments: dict[str, fx.Node]
    numbers: dict[str, Any]
    inside: tuple[fx.Node, ...]


@dataclass(frozen=True)
class NearMiss:
    """The pattern that a node comes near to, how many of its operations are there, and the first difference."""

    spelling: Spelling
    result: fx.Node
    reached: int
    difference: str


@dataclass
class _State:
    nodes: dict[fx.Node, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)

    def copy(self) -> "_State":
        return _State(dict(self.nodes), dict(self.numbers))


class _Function(torch.nn.Module):
    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.spelling.function(**inputs)


@cache
def pattern(spelling: Spelling) -> fx.Graph:
    """The exported graph of a spelling."""
    inputs = {
        name: torch.zeros(shape, dtype=torch.complex64 if name in spelling.complex else torch.float32)
        for name, shape in spelling.shapes.items()
    }
    return trace(_Function(spelling), ((), inputs), fixed=True).graph_module.graph


def find(graph: fx.Graph, spelling: Spelling) -> tuple[list[Match], list[NearMiss]]:
    """All places where the spelling's function is computed, and where nearly."""
    wanted = pattern(spelling)
    (root,) = wanted.output_node().all_input_nodes
    root, name = source(root), express(source(root)).name
    matches, misses = [], []
    for node in reversed(graph.nodes):
        if node.op != "call_function" or source(node) is not node or express(node).name != name:
            continue
        search = _Search()
        state = next(search.unify(root, node, _State()), None)
        if state is not None:
            matches.append(_match(spelling, node, wanted, state))
        elif search.reached >= NEAR:
            misses.append(NearMiss(spelling, node, search.reached, search.difference))
    return matches, misses


def _match(spelling: Spelling, node: fx.Node, wanted: fx.Graph, state: _State) -> Match:
    arguments = {n.name: state.nodes[n] for n in wanted.nodes if n.op == "placeholder" and n in state.nodes}
    inside = tuple(t for p, t in state.nodes.items() if p.op == "call_function" and isinstance(t, fx.Node))
    return _narrowed(Match(spelling, node, arguments, {n: settled(v) for n, v in state.numbers.items()}, inside))


def _narrowed(match: Match) -> Match:
    """What is computed in fp32 between a cast of 16-bit arguments and a cast back, as of those arguments."""
    user = next(iter(match.result.users), None)
    narrow = dtype_of(user)
    if len(match.result.users) != 1 or not is_cast(user) or narrow.itemsize >= dtype_of(match.result).itemsize:
        return match
    arguments = {
        n: a.args[0] if is_cast(a) and dtype_of(a.args[0]) == narrow else a for n, a in match.arguments.items()
    }
    return replace(match, result=user, arguments=arguments, inside=(*match.inside, user))


class _Search:
    """One attempt, with the furthest that it came and what was different there."""

    def __init__(self) -> None:
        self.reached, self.difference = 0, ""

    def unify(self, wanted: Any, got: Any, state: _State) -> Iterator[_State]:
        """The states in which the pattern's node `wanted` is the graph's node `got`."""
        wanted, got = source(wanted), source(got)
        if not isinstance(wanted, fx.Node):
            yield from self._number(wanted, got, state)
        elif wanted in state.nodes:
            if state.nodes[wanted] is got:
                yield state
            else:
                self._missed(state, f"expected the same {wanted.name} twice, got {state.nodes[wanted]} and {got}")
        elif wanted.op == "placeholder":
            yield from self._argument(wanted, got, state)
        elif not isinstance(got, fx.Node):
            self._missed(state, f"expected {express(wanted).name}, got {got}")
        else:
            yield from self._call(wanted, got, state)

    def _call(self, wanted: fx.Node, got: fx.Node, state: _State) -> Iterator[_State]:
        a, b = express(wanted), express(got)
        if a.name != b.name and is_cast(got):  # patterns are of one precision
            yield from self.unify(wanted, got.args[0], state)
            return
        if a.name != b.name or len(a.inputs) != len(b.inputs):
            self._missed(state, f"expected {a.name}, got {b.name} at {got.name}")
            return
        state = state.copy()
        state.nodes[wanted] = got
        if not self._sizes(a.numbers, b.numbers, state):
            self._missed(state, f"expected {a.name} to {_spelled(a.numbers)}, got {b.numbers} at {got.name}")
            return
        orders = [b.inputs]
        if a.name in COMMUTATIVE:
            orders.append(tuple(reversed(b.inputs)))
        for inputs in orders:
            yield from self._all(a.inputs, inputs, state)

    def _all(self, wanted: Any, got: Any, state: _State) -> Iterator[_State]:
        if not wanted:
            yield state
            return
        for first in self._one(wanted[0], got[0], state):
            yield from self._all(wanted[1:], got[1:], first)

    def _one(self, wanted: Any, got: Any, state: _State) -> Iterator[_State]:
        if isinstance(wanted, (list, tuple)):
            if isinstance(got, (list, tuple)) and len(wanted) == len(got):
                yield from self._all(wanted, got, state)
        else:
            yield from self.unify(wanted, got, state)

    def _argument(self, wanted: fx.Node, got: Any, state: _State) -> Iterator[_State]:
        shape, actual = shape_of(wanted), shape_of(got)
        if wanted.name in OPTIONAL and got is None:
            state = state.copy()
            state.nodes[wanted] = None
            yield state
            return
        complex_ = (dtype_of(wanted) or torch.float32).is_complex
        for allowed in (shape, vanilla.ALSO.get(wanted.name, shape)):
            found = state.copy()
            fits = actual is not None and (dtype_of(got) or torch.bool).is_complex == complex_
            if fits and self._sizes(allowed, actual, found):
                found.nodes[wanted] = got
                yield found
                return
        self._missed(state, f"expected {wanted.name} {_spelled(shape)}, got {got} of {actual}")

    def _number(self, wanted: Any, got: Any, state: _State) -> Iterator[_State]:
        state = state.copy()
        size = got.meta.get("val") if isinstance(got, fx.Node) else None
        got = size if isinstance(size, (int, torch.SymInt)) else got
        if isinstance(size, torch.SymFloat) and size.node.has_hint() and wanted in ANY_NUMBER:
            got = float(size)  # an eps, which Dynamo takes for an input where all may vary
        if isinstance(got, torch.SymInt) and isinstance(wanted, int) and self._sizes((wanted,), (got,), state):
            yield state
        elif isinstance(got, (fx.Node, torch.SymInt)):
            expected = SIZES.get(wanted, wanted) if type(wanted) is int else wanted
            self._missed(state, f"expected {expected}, got {got}")
        elif isinstance(wanted, float) and wanted in ANY_NUMBER:
            if isinstance(got, (int, float)) and state.numbers.setdefault(ANY_NUMBER[wanted], got) == got:
                yield state
        elif isinstance(wanted, float) and abs(wanted - vanilla.DH**-0.5) < 1e-9:
            head = state.numbers.get("Dh")
            if isinstance(got, float) and (head is None or abs(got - int(head) ** -0.5) < 1e-6):
                state.numbers["scale"] = got
                yield state
            else:
                self._missed(state, f"expected a scale of Dh^-0.5, got {got}")
        elif isinstance(wanted, bool) or wanted is None or not isinstance(wanted, (int, float)):
            if wanted == got and type(wanted) is type(got):
                yield state
            else:
                self._missed(state, f"expected {wanted}, got {got}")
        elif isinstance(got, (int, float)) and not isinstance(got, bool) and self._sizes((wanted,), (got,), state):
            yield state
        else:
            self._missed(state, f"expected {_spelled((wanted,))}, got {got}")

    def _sizes(self, wanted: tuple[Any, ...], got: tuple[Any, ...], state: _State) -> bool:
        """Whether numbers agree, a size of the pattern standing for one and the same size of the graph."""
        if len(wanted) != len(got):
            return False
        for w, g in zip(wanted, got, strict=True):
            if w in SIZES and isinstance(w, int):
                if not same_size(state.numbers.setdefault(SIZES[w], g), g):
                    return False
            elif not same_size(w, g) and w != g:
                return False
        return True

    def _missed(self, state: _State, difference: str) -> None:
        reached = sum(isinstance(p, fx.Node) and p.op == "call_function" for p in state.nodes)
        if reached > self.reached:
            self.reached, self.difference = reached, difference


def _spelled(numbers: tuple[Any, ...]) -> str:
    return "(" + ", ".join(str(SIZES.get(n, n)) for n in numbers) + ")"
