"""A training record as tables."""

from collections.abc import Iterator

from rich.table import Table

from evaluation.training.parity import ParityRecord


def tables(record: ParityRecord) -> Iterator[Table]:
    """A row for each run; where both trees were trained, a row for each dropout as well."""
    beside = f", {record.at_once} runs side by side" if record.at_once > 1 else ""
    runs = Table(title=record.machine + beside)
    for heading in ("tree", "dropout", "seed", "last loss", "measured", "steps took", "path"):
        runs.add_column(heading)
    for run in record.runs:
        measures = "\n".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in run.measures.items())
        took = f"{run.seconds:.1f} s" + ("" if run.peak_bytes is None else f", {run.peak_bytes / 2**20:,.0f} MiB")
        config = f"{run.config.dropout:g}", str(run.config.seed)
        runs.add_row(run.role, *config, f"{run.windows[-1]:.4f}", measures, took, run.path or "")
    yield runs
    if record.results:
        yield _comparison(record)


def _comparison(record: ParityRecord) -> Table:
    found = Table(title="mean losses over the seeds")
    for heading in ("dropout", "first loss", "last loss: before", "after", "furthest, of what is allowed", "verdict"):
        found.add_column(heading)
    for result in record.results:
        first, last = (result.windows[0], result.windows[-1]) if result.windows else (None, None)
        numbers = [f"{v:.4f}" for v in (first.before, last.before, last.after)] if first else ["", "", ""]
        verdict = "the same" if result.same else result.problem or "not the same"
        found.add_row(f"{result.dropout:g}", *numbers, f"{result.worst:.2f}", verdict)
    return found
