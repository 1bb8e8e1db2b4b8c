"""A record of `tune` as a Markdown table, and the entries that it would write."""

from collections import defaultdict

from evaluation.bench.stack_table import machine_line, sizes_line
from evaluation.bench.tune_record import TileTiming, TuneRecord, TuneResult

HEADER = ("op", "batch", "dtype", "masked", "the table's", "us", "the fastest", "us", "gain", "timed", "not timed")


def shortfalls(record: TuneRecord) -> list[str]:
    """Each entry that is worth writing, and each table whose own tiles fail."""
    found = []
    for result in record.results:
        if result.is_short:
            found.append(entry(result, record.architecture))
        elif result.asked and result.problem:
            found.append(f"{result.job}: {result.problem}")
    return found


def entry(result: TuneResult, architecture: str) -> str:
    """What to write, where, and why."""
    return (
        f"{result.table}, {architecture}, asked for {result.asked}: {result.fastest.tiles} "
        f"({result.timings[0].median_us:.2f} -> {result.fastest.median_us:.2f} us, {gain(result)})"
    )


def markdown_table(record: TuneRecord) -> str:
    """Median microseconds of a call and the quartile distance of the rounds, by job; below it, what was not timed."""
    rounds = max((len(each.rounds_us) for result in record.results for each in result.timings), default=0)
    rows = [row(result) for result in record.results if result.timings]
    lines = [
        f"{machine_line(record.machine)}; tables of {record.architecture}; {sizes_line(record.results[0].job.case)}; "
        f"median us of a call ± quartile distance of {rounds} interleaved rounds, in CUDA graphs, called back to back.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (HEADER, ["---"] * len(HEADER), *rows)),
    ]
    missing = [line for result in record.results for line in not_timed(result)]
    missing += [f"- {job}: not begun" for job in record.not_begun]
    return "\n".join([*lines, "", "Not timed:", "", *missing] if missing else lines)


def row(result: TuneResult) -> list[str]:
    case, present, fastest = result.job.case, result.timings[0], result.fastest
    return [
        *(result.job.op, str(case.batch), case.dtype, "yes" if case.masked else "no"),
        *(present.tiles, microseconds(present)),
        *((fastest.tiles, microseconds(fastest)) if fastest is not present else ("the same", "")),
        gain(result) if result.is_short else "within the spread" if fastest is not present else "",
        str(len(result.timings)),
        str(len(result.rejected) + len(result.not_tried)),
    ]


def not_timed(result: TuneResult) -> list[str]:
    """A line for each reason, with its tiles."""
    if result.problem:
        return [f"- {result.job}: {result.problem}"]
    by_reason: dict[str, list[str]] = defaultdict(list)
    for each in result.rejected:
        by_reason[each.reason].append(f"({each.tiles})")
    lines = [f"- {result.job}: {reason}: {', '.join(tiles)}" for reason, tiles in by_reason.items()]
    return lines + [f"- {result.job}: {len(result.not_tried)} more were not tried"] * bool(result.not_tried)


def gain(result: TuneResult) -> str:
    return f"{result.timings[0].median_us / result.fastest.median_us - 1:.1%}"


def microseconds(timing: TileTiming) -> str:
    return f"{timing.median_us:.2f} ± {timing.spread_us:.2f}"
