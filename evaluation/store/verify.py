"""Whether a run is whole, judged by its files alone."""

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from evaluation.store.errors import StoreError
from evaluation.store.files import ARTIFACTS, METRICS, SUMMARY, seal_of
from evaluation.store.held import is_held
from evaluation.store.models import FileSeal, MetricSummary, Run, RunSummary
from evaluation.store.run import read_run

State = Literal["whole", "running", "partial", "damaged"]


class Condition(NamedTuple):
    """`run`: null where run.json cannot be read; `metrics`: only of a whole run."""

    state: State
    reason: str | None
    run: Run | None
    metrics: tuple[MetricSummary, ...] = ()


def examine(folder: Path) -> Condition:
    """Read and hash every file of a run. Raises nothing: what is wrong with it is the reason."""
    written = is_held(folder)  # before run.json is read: a writer may finish in between, and not the other way round
    try:
        run = read_run(folder)
    except StoreError as error:
        return Condition("damaged", str(error), None)
    if run.seal is None:
        return Condition("running", None, run) if written else Condition("partial", "its writer is gone", run)
    sealed = {METRICS: run.seal.metrics, SUMMARY: run.seal.summary}
    sealed |= {f"{ARTIFACTS}/{each.name}": each for each in run.seal.artifacts}
    for name, seal in sealed.items():
        if problem := _problem(folder / name, seal):
            return Condition("damaged", f"{name} {problem}", run)
    try:
        summary = RunSummary.model_validate_json((folder / SUMMARY).read_bytes())
    except (OSError, ValidationError) as error:
        return Condition("damaged", f"{SUMMARY} cannot be read: {error}", run)
    return Condition("whole", None, run, summary.metrics)


def _problem(file: Path, seal: FileSeal) -> str | None:
    try:
        found = seal_of(file)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if found.size != seal.size:
        return f"has {found.size} bytes, and had {seal.size} when the run ended"
    return None if found.sha256 == seal.sha256 else "is not what it was when the run ended"
