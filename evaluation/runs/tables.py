"""Runs, comparisons, gates and histories for a person to read."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from evaluation.store.catalogue import Entry
from evaluation.store.forms import Difference, GateRecord, History, RunComparison
from evaluation.store.models import MetricSummary, Run

_STATES = {"whole": "green", "running": "cyan", "partial": "yellow", "damaged": "red"}
_STATISTICS = ("last", "minimum", "maximum", "mean", "p50", "p95")
_BARS = "▁▂▃▄▅▆▇█"


def _named(text: str) -> Column:
    """A column whose texts are names: never cut, as nobody could tell them apart."""
    return Column(text, overflow="fold")


def runs_table(entries: Sequence[Entry]) -> Table:
    table = Table(_named("run"), "kind", "status", "started", "commit", "machine", "tags", "state")
    for entry in entries:
        state = f"[{_STATES[entry.state]}]{entry.state}[/]" + (f": {escape(entry.reason)}" if entry.reason else "")
        about = _about(entry.run) if entry.run else ("",) * 6
        table.add_row(entry.id, *about, state)
    return table


def _about(run: Run) -> tuple[str, ...]:
    where = run.provenance
    machine = ", ".join(where.gpus) or f"{where.cpu_count} CPUs"
    commit = (where.git_commit or "")[:8] + ("+" if where.git_dirty else "")
    return run.kind, run.status, f"{run.started_at:%Y-%m-%d %H:%M}", commit, machine, ", ".join(run.tags)


def print_run(console: Console, entry: Entry, folder: Path, metrics: Iterable[MetricSummary]) -> None:
    console.print(runs_table([entry]))
    if entry.run:
        pairs = [*entry.run.likeness().items(), *((f"config {k}", v) for k, v in entry.run.config.items())]
        about = Table("", _named("value"), show_header=False)
        for name, value in pairs:
            about.add_row(escape(name), escape(str(value)))
        console.print(about)
    console.print(metrics_table(metrics))
    for each in entry.run.seal.artifacts if entry.run and entry.run.seal else ():
        console.print(f"{each.kind}: {folder / 'artifacts' / each.name} ({each.size:,} bytes)", soft_wrap=True)


def metrics_table(metrics: Iterable[MetricSummary]) -> Table:
    table = Table(_named("metric"), "count", *_STATISTICS)
    for each in metrics:
        count = f"{each.count:,}" + (f", {each.not_finite:,} not finite" if each.not_finite else "")
        table.add_row(escape(each.name), count, *(_number(getattr(each, name)) for name in _STATISTICS))
    return table


def comparison_table(found: RunComparison) -> Table:
    """A change outside the noise is in colour; one whose noise is not known is marked so."""
    columns = (_named("metric"), _named("run"), found.base[:17], found.statistic, "change", "%", "noise")
    table = Table(*columns, title="against the base")
    for each in found.differences:
        change, percent = _signed(each.change), _signed(each.percent, ".2f")
        if each.judgement == "outside_noise":
            change, percent = (f"[bold magenta]{text}[/]" for text in (change, percent))
        noise = _number(each.noise) if each.noise is not None else _why(each)
        table.add_row(
            escape(each.metric), each.run[:17], _number(each.base), _number(each.value), change, percent, noise
        )
    return table


def _why(difference: Difference) -> str:
    missing = difference.judgement.startswith("missing")
    return f"[yellow]{difference.judgement.replace('_', ' ')}[/]" if missing else "[dim]not known[/]"


def gate_table(found: GateRecord) -> Table:
    table = Table(_named("rule"), _named("metric"), "base", "run", "kept", "reason")
    for each in found.results:
        rule, difference = each.rule, each.difference
        colour = "green" if each.kept else "red" if rule.severity == "error" else "yellow"
        limits = [f"{rule.max_percent:g}%" if rule.max_percent is not None else ""]
        limits += [f"{rule.max_absolute:g}" if rule.max_absolute is not None else ""]
        text = f"{'+' if rule.higher_is_better else ''}{rule.metric}: {' '.join(filter(None, limits))} {rule.severity}"
        kept = f"[{colour}]{'yes' if each.kept else 'no'}[/]"
        row = (_number(difference.base), _number(difference.value), kept, escape(each.reason))
        table.add_row(escape(text), escape(difference.metric), *row)
    return table


def print_history(console: Console, found: History) -> None:
    values = [point.value for point in found.points]
    console.print(f"{escape(found.metric)}, {found.statistic} of each run: {sparkline(values)}")
    table = Table("started", "commit", _named("run"), "value", "")
    for point in found.points:
        mark = "[bold magenta]changed[/]" if point.changed else ""
        started = f"{point.started_at:%Y-%m-%d %H:%M}"
        table.add_row(started, (point.commit or "")[:8], point.run, _number(point.value), mark)
    console.print(table)
    for each in found.left_out:
        console.print(f"[yellow]left out[/] {escape(each)}", soft_wrap=True)


def sparkline(values: Sequence[float]) -> str:
    """A character for each of the last 60 values, from the lowest to the highest."""
    shown = values[-60:]
    low, span = min(shown), (max(shown) - min(shown)) or 1.0
    return "".join(_BARS[int((value - low) / span * (len(_BARS) - 1))] for value in shown)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _signed(value: float | None, form: str = ".4g") -> str:
    return "" if value is None else f"{value:+{form}}"
