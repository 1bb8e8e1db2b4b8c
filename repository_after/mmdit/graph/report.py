"""What passes did, as text (rich), as a dict, and as a picture of the graph before and after (SVG)."""

from collections import Counter
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

from torch import fx

from mmdit.graph.measure import Cost
from mmdit.graph.passes.base import Opportunity
from mmdit.graph.picture import draw


@dataclass(frozen=True)
class PassReport:
    """One pass. rolled_back: why, or None; error and where: the worst of verification; the rest, and the pass's own
    details, by mode.
    """

    name: str
    rolled_back: str | None
    error: float | None
    where: str | None
    nodes_before: dict[str, dict[str, int]]
    nodes_after: dict[str, dict[str, int]]
    opportunities: dict[str, tuple[Opportunity, ...]]
    cost_before: dict[str, Cost]
    cost_after: dict[str, Cost]
    details: dict[str, Any]


def kinds_of(graph_module: fx.GraphModule) -> dict[str, int]:
    """How many nodes there are of each kind: the fused operators are "mmdit"."""
    return dict(Counter("mmdit" if is_fused(node) else node.op for node in graph_module.graph.nodes))


def is_fused(node: fx.Node) -> bool:
    """Whether a node calls an operator of torch.ops.mmdit."""
    return node.op == "call_function" and str(node.target).startswith("mmdit.")


class Report:
    """What GraphOptimizer.optimize did to one model; str() of it is for people, to_dict() for programs."""

    def __init__(
        self,
        model: str,
        batch: str | None,
        passes: list[PassReport],
        before: dict[str, fx.GraphModule],
        after: dict[str, fx.GraphModule],
    ) -> None:
        self.model, self.batch, self.passes = model, batch, passes
        self._before, self._after = before, after

    def to_dict(self) -> dict[str, Any]:
        """All numbers and reasons, of plain types."""
        return {"model": self.model, "fixed_batch": self.batch, "passes": [asdict(p) for p in self.passes]}

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        console = Console(file=StringIO(), width=140)
        table = Table("pass", "mode", "nodes", "found", "applied", "refused", "ms", "peak KiB", "worst error")
        for told in self.passes:
            for mode in told.nodes_before:
                table.add_row(told.name, mode, *self._row(told, mode))
        console.print(f"{self.model}: batch {'any' if self.batch is None else self.batch}", markup=False)
        console.print(table)
        for told in self.passes:
            if told.rolled_back:
                console.print(f"{told.name}: ROLLED BACK: {told.rolled_back}", markup=False, highlight=False)
            for mode, details in told.details.items():
                console.print(f"{told.name} {mode}: {details}", markup=False, highlight=False)
            for line, count in self._refused(told).items():
                console.print(f"{told.name}: not done x{count}: {line}", markup=False, highlight=False)
        return console.file.getvalue()

    def _row(self, told: PassReport, mode: str) -> list[str]:
        found = told.opportunities.get(mode, ())
        refused = sum(o.refused is not None for o in found)
        applied = 0 if told.rolled_back else len(found) - refused
        before, after = told.cost_before.get(mode), told.cost_after.get(mode)
        nodes = f"{sum(told.nodes_before[mode].values())} -> {sum(told.nodes_after[mode].values())}"
        times = f"{before.seconds * 1e3:.2f} -> {after.seconds * 1e3:.2f}" if before and after else "-"
        peaks = f"{before.peak_bytes / 1024:.1f} -> {after.peak_bytes / 1024:.1f}" if before and after else "-"
        error = "-" if told.error is None else f"{told.error:.1e}"
        return [nodes, str(len(found)), str(applied), str(refused), times, peaks, error]

    def _refused(self, told: PassReport) -> Counter[str]:
        refused = (o for found in told.opportunities.values() for o in found if o.refused)
        return Counter(f"{o.kind}: {o.refused}" for o in refused)

    def to_svg(self, mode: str = "eval") -> str:
        """The graph before the passes, left, and after them, right; fused operators in red."""
        return draw(f"{self.model}, {mode}", self._before[mode], self._after[mode], is_fused)
