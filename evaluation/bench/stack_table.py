"""A record of `stack` as a Markdown table, and where it falls short."""

from collections.abc import Callable

from evaluation.bench.record import BenchMachine
from evaluation.bench.stack_record import StackCase, StackContender, StackRecord, StackResult, StackTiming

HEADINGS: dict[StackContender, str] = {
    "eager": "eager",
    "compiled": "torch.compile",
    "fused": "fused",
    "eager_graph": "graph: eager",
    "compiled_graph": "graph: torch.compile",
    "max_autotune": "graph: max-autotune",
    "fused_graph": "graph: fused",
}
RIVALS: tuple[StackContender, ...] = ("compiled_graph", "max_autotune")
FUSED: tuple[StackContender, ...] = ("fused", "fused_graph")
NONE = "not measured"


def shortfalls(record: StackRecord) -> list[str]:
    """Each case in which fused_graph is slower than a rival beyond the spread, or in which a fused contender is further
    from fp64 than vanilla eager, or could not be measured.
    """
    found = []
    for result in record.results:
        name = str(result.case)
        eager, graph = result.timing("eager"), result.timing("fused_graph")
        for rival in filter(None, map(result.timing, RIVALS)):
            if graph and graph.slower_than(rival):
                found.append(f"{name}: {graph.median_us:.1f} us, {rival.contender} {rival.median_us:.1f} us")
        for fused in filter(None, map(result.timing, FUSED)):
            if eager and fused.error > eager.error:
                found.append(f"{name}: error of {fused.contender} {fused.error:.2e}, of eager {eager.error:.2e}")
        found += [
            f"{name}: no {each.contender}: {each.reason}" for each in result.unmeasured if each.contender in FUSED
        ]
    return found


def markdown_table(record: StackRecord) -> str:
    """Median milliseconds and the quartile distance of the rounds, by case; below it, what was not measured."""
    contenders = [name for name in HEADINGS if any(result.timing(name) for result in record.results)]
    rival = strongest(contenders)
    header = [
        "batch",
        "dtype",
        "masked",
        *(HEADINGS[name] for name in contenders),
        f"{HEADINGS[rival].removeprefix('graph: ')} / fused",
        "floor / fused",
        "error: eager / fused",
        "peak MB: eager / fused",
        "fused kernels",
    ]
    rows = [row(result, contenders, rival) for result in record.results]
    lines = [summary(record), "", *(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))]
    return "\n".join([*lines, *not_measured(record, str)])


def not_measured(record: StackRecord, name: Callable[[StackCase], str]) -> list[str]:
    """Lines that tell what was asked for and has no time."""
    missing = [
        f"- {name(result.case)}: no {each.contender}: {each.reason}"
        for result in record.results
        for each in result.unmeasured
    ]
    missing += [f"- {name(case)}: not begun" for case in record.not_begun]
    return ["", "Not measured:", "", *missing] if missing else []


def summary(record: StackRecord) -> str:
    """The machine, the sizes, how it was measured."""
    return f"{machine_line(record.machine)}; {sizes_line(record.results[0].case)}; {how(record)}."


def sizes_line(case: StackCase) -> str:
    """What all cases of a run of `stack` have in common."""
    return (
        f"{case.layers} layers, dim {case.dim}, {case.heads} heads, feed-forward {case.feed_forward}, "
        f"x {case.length}, context {case.context}"
        f"{f'; forward and backward, recompute {case.recompute}' if case.backward else ''}"
    )


def machine_line(machine: BenchMachine) -> str:
    return (
        f"{machine.gpu}, torch {machine.torch_version}, Triton {machine.triton_version}, driver {machine.driver}; "
        f"copy {machine.copy_gb_s:,.0f} GB/s"
    )


def how(record: StackRecord) -> str:
    """What a time in the table is."""
    rounds = max((len(timing.rounds_us) for result in record.results for timing in result.timings), default=0)
    return (
        f"median ms ± quartile distance of {rounds} interleaved rounds of calls back to back, as a sampler makes them"
    )


def strongest(contenders: list[StackContender]) -> StackContender:
    """The baseline of the ratio."""
    return next((name for name in reversed(RIVALS) if name in contenders), RIVALS[-1])


def row(result: StackResult, contenders: list[StackContender], against: StackContender) -> list[str]:
    """The cells of a case. Ratio, floor and error are those of the fused model in a CUDA graph."""
    timings = {name: result.timing(name) for name in HEADINGS}
    graph, rival, eager, floor = timings["fused_graph"], timings[against], timings["eager"], result.floor
    peaks = [result.eager_peak_bytes, result.fused.peak_bytes if result.fused else None]
    return [
        str(result.case.batch),
        result.case.dtype,
        "yes" if result.case.masked else "no",
        *(milliseconds(timings[name]) for name in contenders),
        f"{rival.median_us / graph.median_us:.2f}x" if graph and rival else NONE,
        f"{floor.us / graph.median_us:.0%} ({floor.bound})" if graph and floor else NONE,
        " / ".join(f"{timing.error:.1e}" if timing else NONE for timing in (eager, graph)),
        " / ".join(NONE if peak is None else f"{peak / 1e6:,.0f}" for peak in peaks),
        NONE if result.fused is None or result.fused.total_kernels is None else str(result.fused.total_kernels),
    ]


def milliseconds(timing: StackTiming | None) -> str:
    if timing is None:
        return NONE
    digits = 4 if timing.median_us < 1e3 else 3
    return f"{timing.median_us / 1e3:.{digits}f} ± {timing.spread_us / 1e3:.{digits}f}"
