"""A record as a Markdown table, and where it falls short."""

from collections import defaultdict

from evaluation.bench.record import BenchRecord, Timing

TARGET_SHARE = 0.85  # of the measured copy bandwidth, where a case is large enough to be bound by it
LARGE_BYTES = 1 << 27


def by_case(record: BenchRecord) -> dict[tuple, dict[str, Timing]]:
    """The contenders' timings of each (op, shape, direction, mode)."""
    cases: dict[tuple, dict[str, Timing]] = defaultdict(dict)
    for timing in record.timings:
        cases[timing.op, timing.shape, timing.direction, timing.mode][timing.contender] = timing
    return cases


def share(timing: Timing, record: BenchRecord) -> float:
    """Achieved share of the copy bandwidth."""
    return timing.floor_bytes / timing.median_us / 1e3 / record.machine.copy_gb_s


def shortfalls(record: BenchRecord) -> list[str]:
    """Each case in which the fused op is slower than torch.compile beyond the spread, or short of the bandwidth."""
    found = []
    for case, timings in by_case(record).items():
        fused, compiled = timings["fused"], timings["compiled"]
        name = f"{case[0]} {'x'.join(map(str, case[1]))} {case[2]}, {case[3]}"
        if fused.slower_than(compiled):
            found.append(f"{name}: {fused.median_us:.1f} us, torch.compile {compiled.median_us:.1f} us")
        if fused.floor_bytes > LARGE_BYTES and share(fused, record) < TARGET_SHARE:
            found.append(f"{name}: {share(fused, record):.0%} of the copy bandwidth, target {TARGET_SHARE:.0%}")
    return found


def markdown_table(record: BenchRecord) -> str:
    """The README's table: median microseconds and the quartile distance of the rounds, by case and mode."""
    machine = record.machine
    timing = record.timings[0]
    lines = [
        f"{machine.gpu}, torch {machine.torch_version}, Triton {machine.triton_version}, driver {machine.driver}; "
        f"{timing.dtype}; copy {machine.copy_gb_s:,.0f} GB/s; median us ± quartile distance of "
        f"{len(timing.rounds_us)} interleaved rounds, L2 flushed before each call.",
        "",
        "| op | B x L x D, or B x H x L x C x Dh | direction | eager call: eager | torch.compile | fused "
        "| CUDA graph: eager | torch.compile | fused | vs torch.compile | of copy bandwidth | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    cases = by_case(record)
    for op, shape, direction in dict.fromkeys(case[:3] for case in cases):
        modes = [cases[op, shape, direction, mode] for mode in ("eager", "graph")]
        cells = [
            f"{timings[contender].median_us:.1f} ± {timings[contender].spread_us:.1f}"
            for timings in modes
            for contender in ("eager", "compiled", "fused")
        ]
        graph = modes[1]
        ratio = graph["compiled"].median_us / graph["fused"].median_us
        row = [
            op,
            " x ".join(map(str, shape)),
            direction,
            *cells,
            f"{ratio:.2f}x",
            f"{share(graph['fused'], record):.0%}",
            f"{graph['fused'].error:.1e}",
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)
