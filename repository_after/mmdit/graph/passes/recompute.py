"""Activation recomputation: what autograd would keep is computed again in backward, as far as a budget asks."""

from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.utils.fuser_utils import fuse_by_partitions
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten
from torch.utils.checkpoint import checkpoint

from mmdit.errors import ConfigError
from mmdit.graph.effects import OUTSIDE, Effects, find_effects
from mmdit.graph.measure import saved_bytes
from mmdit.graph.passes.base import Opportunity, OptimizationPass, register_pass

UNITS = 16  # pieces of a graph that are kept or computed again as a whole
FLOPS_PER_BYTE = 10  # what writing a byte costs beside a matrix product's operations


class Recomputed(nn.Module):
    """A piece of a graph whose values are not kept for backward, but computed again there, with the same randomness."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.body(*args)
        flat, structure = tree_flatten(args)  # a checkpoint gives up its own tensors, but not those in a list
        return checkpoint(self._run, structure, *flat, use_reentrant=False, preserve_rng_state=True)

    def _run(self, structure: TreeSpec, *flat: Any) -> Any:
        return self.body(*tree_unflatten(flat, structure))


@dataclass(frozen=True)
class _Unit:
    """A stretch of the graph, what computing it again costs, and why that cannot be done, or None."""

    nodes: tuple[fx.Node, ...]
    cost: int
    refused: str | None


@register_pass("recompute")
class Recompute(OptimizationPass):
    """Recomputes the stretches of a graph that free most memory for their operations, until the budget is kept.

    Args:
        budget: the most that autograd may keep: a float from 0 to 1, a share of what it keeps now, or an int, bytes.
            What no stretch may be computed again for is kept all the same, and told.

    Raises ConfigError for another budget. To be the last pass, as later ones would not look into the stretches.
    """

    def __init__(self, budget: float | int = 0.5) -> None:
        share = isinstance(budget, float) and 0.0 <= budget <= 1.0
        if isinstance(budget, bool) or not (share or (isinstance(budget, int) and budget >= 0)):
            raise ConfigError("budget", "a share from 0.0 to 1.0, or an int of bytes", repr(budget))
        self.budget = budget
        self._details: dict[str, Any] = {}

    @property
    def details(self) -> dict[str, Any]:
        return self._details

    def analyze(self, graph_module: fx.GraphModule) -> list[Opportunity]:
        plan = _Plan(graph_module, self.budget)
        found = []
        for i, unit in enumerate(plan.units):
            names = tuple(node.name for node in unit.nodes)
            if unit.refused or i in plan.chosen:
                action = f"compute {len(names)} nodes from {names[0]} to {names[-1]} again"
                found.append(Opportunity("recomputation", names, action, unit.refused))
        return found

    def transform(self, graph_module: fx.GraphModule, opportunities: list[Opportunity]) -> fx.GraphModule:
        mode = "train" if graph_module.training else "eval"
        plan = _Plan(graph_module, self.budget)
        self._details[mode] = {
            "saved_bytes_before": plan.predicted(frozenset()),
            "saved_bytes_predicted": plan.predicted(plan.chosen, plan.joined),
            "budget_bytes": plan.limit,
        }
        regions = [dict.fromkeys(region) for region in plan.regions(plan.chosen, plan.joined)]
        if not regions:
            return graph_module
        made = fuse_by_partitions(graph_module, regions, prefix="recomputed_")
        for i in range(len(regions)):
            made.set_submodule(f"recomputed_{i}", Recomputed(made.get_submodule(f"recomputed_{i}")))
        made.recompile()
        return made

    def verify(self, candidate: fx.GraphModule, verifier: Any) -> Any:
        mode = "train" if verifier.training else "eval"
        measured = saved_bytes(candidate, verifier.model, verifier.cases[0].arguments)
        self._details[mode]["saved_bytes_measured"] = measured
        return super().verify(candidate, verifier)


class _Plan:
    """Which of a graph's units are computed again.

    chosen: their numbers; joined: whether neighbours are one region, which keeps nothing between them but computes all
    of them again at once; limit: the budget in bytes. Plans of smaller budgets hold those of larger ones.
    """

    def __init__(self, graph_module: fx.GraphModule, budget: float | int) -> None:
        self.effects = find_effects(graph_module, costs=True)
        calls = [node for node in graph_module.graph.nodes if node.op.startswith("call_")]
        self.units = _units(calls, self.effects)
        total = self.predicted(frozenset())
        self.limit = int(total * budget) if isinstance(budget, float) else budget
        self.chosen, self.joined = self._choose(), False
        least = frozenset(i for i, unit in enumerate(self.units) if unit.refused is None)
        if self.limit < self.predicted(self.chosen) > self.predicted(least, joined=True):
            self.chosen, self.joined = least, True

    def _choose(self) -> frozenset[int]:
        """One unit after the other, that which frees most bytes for its cost first, until the limit is kept."""
        chosen: frozenset[int] = frozenset()
        best = chosen
        left = {i for i, unit in enumerate(self.units) if unit.refused is None}
        while self.predicted(chosen) > self.limit and left:
            now = self.predicted(chosen)
            freed = partial(self._freed_for_cost, now, chosen)
            chosen |= {max(sorted(left), key=freed)}
            left -= chosen
            if self.predicted(chosen) < self.predicted(best):
                best = chosen
        return best

    def _freed_for_cost(self, now: int, chosen: frozenset[int], unit: int) -> float:
        freed = now - self.predicted(chosen | {unit})
        return freed / (self.units[unit].cost + 1) if freed > 0 else freed * (self.units[unit].cost + 1)

    def regions(self, chosen: frozenset[int], joined: bool = False) -> list[list[fx.Node]]:
        """The nodes of each chosen unit, or of each run of neighbours."""
        if not joined:
            return [list(self.units[i].nodes) for i in sorted(chosen)]
        runs = groupby(enumerate(sorted(chosen)), key=lambda pair: pair[1] - pair[0])
        return [[node for _, i in run for node in self.units[i].nodes] for _, run in runs]

    def predicted(self, chosen: frozenset[int], joined: bool = False) -> int:
        """The bytes that autograd keeps: of kept nodes what it saves, of the others' regions their inputs."""
        sizes: dict[int, int] = {}
        for i, unit in enumerate(self.units):
            if i not in chosen:
                sizes.update(pair for node in unit.nodes for pair in self.effects.of[node].saved)
        for region in self.regions(chosen, joined):
            inside = set(region)
            for source in {n for node in region for n in node.all_input_nodes} - inside:
                sizes.update(_bytes_of(source, self.effects))
        return sum(sizes.values())


def _bytes_of(node: fx.Node, effects: Effects) -> dict[int, int]:
    """The storages of a node's value, and their bytes; none for inputs and weights."""
    if OUTSIDE in effects.of[node].gives:
        return {}
    tensors = [t for t in tree_leaves(effects.values[node]) if isinstance(t, Tensor)]
    return {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}


def _units(calls: list[fx.Node], effects: Effects) -> list[_Unit]:
    """The calls in UNITS stretches that save about as much each, cut where few bytes cross."""
    place = {node: i for i, node in enumerate(calls)}
    saved = [sum(size for _, size in effects.of[node].saved) for node in calls]
    crossing = [0] * (len(calls) + 1)
    for node in calls:
        last = max((place[user] for user in node.users if user in place), default=place[node])
        for i in range(place[node] + 1, last + 1):
            crossing[i] += sum(_bytes_of(node, effects).values())
    share, done, cuts, window = sum(saved) / UNITS, 0, [0], []
    for i, size in enumerate(saved):
        done += size
        window.append(i + 1)
        if share and done >= share and i + 1 < len(calls):
            cuts.append(min(reversed(window), key=lambda at: crossing[at]))
            window = [at for at in window if at > cuts[-1]]
            done = sum(saved[cuts[-1] : i + 1])
    cuts.append(len(calls))
    written = frozenset().union(*(effect.writes for effect in effects.of.values()))
    stretches = [calls[a:b] for a, b in pairwise(cuts) if b > a]
    return [_Unit(tuple(nodes), _cost(nodes, effects), _refusal(nodes, effects, written)) for nodes in stretches]


def _cost(nodes: list[fx.Node], effects: Effects) -> int:
    made = sum(sum(_bytes_of(node, effects).values()) for node in nodes)
    return sum(effects.of[node].flops for node in nodes) + FLOPS_PER_BYTE * made


def _refusal(nodes: list[fx.Node], effects: Effects, written: frozenset[int]) -> str | None:
    """Why computing these again gives something else, or None. What is random is replayed."""
    for node in nodes:
        effect = effects.of[node]
        if effect.writes or effect.obstacle == "switches a mode" or (effect.obstacle or "").startswith("has a state"):
            return f"{node.name} {effect.obstacle}"
        if any(effects.of[n].gives & (written - {OUTSIDE}) for n in node.all_input_nodes):
            return f"{node.name} reads what is written to"
    return None
