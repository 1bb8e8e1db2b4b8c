"""A record of `sizes` as a Markdown table, and where the fused tree does not pay."""

from statistics import quantiles
from typing import NamedTuple

from evaluation.bench.stack_record import StackCase, StackRecord, StackResult
from evaluation.bench.stack_table import NONE, how, machine_line, milliseconds, not_measured

SLOWER = 0.05  # than torch.compile, and it falls short
COMPILED, FUSED = CONTENDERS = ("compiled_graph", "fused_graph")
HEADER = (
    *("D", "heads", "x", "context", "batch", "dtype", "masked", "tier", "torch.compile", "fused"),
    *("torch.compile / fused", "error: torch.compile / fused"),
)


class Ratio(NamedTuple):
    """torch.compile's time over the fused tree's: the median of the rounds' ratios, and their quartile distance."""

    median: float
    spread: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ± {self.spread:.2f}"


def ratio(result: StackResult) -> Ratio | None:
    """None where not both were measured."""
    compiled, fused = result.timing(COMPILED), result.timing(FUSED)
    if compiled is None or fused is None:
        return None
    ratios = [c / f for c, f in zip(compiled.rounds_us, fused.rounds_us, strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    return Ratio(middle, high - low)


def tier(result: StackResult) -> str:
    """The tier that took the cell, and what of it was PyTorch's, as the fused tree's explain tells."""
    if result.fused is None:
        return NONE
    stack = next((decision for decision in result.fused.decisions if decision.op == "stack"), None)
    if stack is None or stack.path != "fused":
        return f"modules: {stack.reason}" if stack else "modules"
    name = "rows" if "rows tier" in stack.reason else "tiles"
    others = [each.op for each in result.fused.decisions if each.path != "fused"]
    return f"{name}, by PyTorch {' and '.join(dict.fromkeys(others))}" if others else name


def shortfalls(record: StackRecord) -> list[str]:
    """Each cell in which the fused tree is slower than torch.compile by more than SLOWER, or was not measured."""
    found = []
    for result in record.results:
        beside = ratio(result)
        if beside and beside.median * (1 + SLOWER) < 1:
            found.append(f"{cell_name(result.case)}: torch.compile / fused {beside}, {tier(result)}")
        found += [
            f"{cell_name(result.case)}: no {each.contender}: {each.reason}"
            for each in result.unmeasured
            if each.contender == FUSED
        ]
    return found


def markdown_table(record: StackRecord) -> str:
    """Median milliseconds and the quartile distance of the rounds, by cell; below it, what was not measured."""
    rows = [row(result) for result in sorted(record.results, key=lambda result: order(result.case))]
    lines = [
        f"{machine_line(record.machine)}; {record.results[0].case.layers} layers, feed-forward 4 D, CUDA graphs; "
        f"{how(record)}.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (HEADER, ["---"] * len(HEADER), *rows)),
    ]
    return "\n".join([*lines, *not_measured(record, cell_name)])


def order(case: StackCase) -> tuple:
    return case.dim, case.heads, case.length, case.context, case.batch, case.dtype, case.masked


def cell_name(case: StackCase) -> str:
    return f"D {case.dim}, {case.heads} heads, x {case.length}, context {case.context}, {case}"


def row(result: StackResult) -> list[str]:
    case, timings = result.case, [result.timing(name) for name in CONTENDERS]
    return [
        *map(str, (case.dim, f"{case.heads} of {case.dim // case.heads}", case.length, case.context, case.batch)),
        case.dtype,
        "yes" if case.masked else "no",
        tier(result),
        *map(milliseconds, timings),
        str(ratio(result) or NONE),
        " / ".join(f"{timing.error:.1e}" if timing else NONE for timing in timings),
    ]
