"""Several runs, each in a folder of its own, and each tree in processes of its own."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from rich.progress import Progress, TaskID

from evaluation.suite.result import Role
from evaluation.training.config import TrainingConfig
from evaluation.training.parity import ParityRun, in_windows
from evaluation.training.process import ended, train_tree
from evaluation.training.trainer import METRICS, How, Trained

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    role: Role
    tree: Path
    config: TrainingConfig
    how: How

    def __str__(self) -> str:
        return name(self.role, self.config)


def name(role: Role, config: TrainingConfig) -> str:
    """Of a run, and of its folder."""
    return f"{role}-dropout{config.dropout:g}-seed{config.seed}"


def run_all(jobs: list[Job], at_once: int, progress: Progress) -> Iterator[ParityRun]:
    """The result of each in its turn, or as it ended before, `at_once` of them running; `progress` tells of the steps.
    What a run raises is raised here.
    """
    with ExitStack() as stack:
        pools = {
            tree: stack.enter_context(ProcessPoolExecutor(at_once, get_context("spawn")))
            for tree in {j.tree for j in jobs}
        }
        started: dict[str, Trained | Future] = {}
        for number, job in enumerate(jobs):
            for other in jobs[number : number + at_once]:
                if str(other) not in started:
                    found = ended(other.config, other.how.folder)
                    started[str(other)] = found or pools[other.tree].submit(
                        train_tree, other.tree, other.config, other.how
                    )
            bar = progress.add_task(str(job), total=job.config.steps)
            found = started[str(job)]
            if isinstance(found, Future):
                _follow(found, job.how.folder / METRICS, progress, bar)
                found = found.result()
            progress.update(bar, completed=job.config.steps)
            kept = found.model_dump(exclude={"losses"})
            yield ParityRun(role=job.role, windows=in_windows(found.losses), **kept)


def _follow(future: Future, metrics: Path, progress: Progress, bar: TaskID) -> None:
    """Show the last line of the metrics file until the run ends."""
    while wait([future], timeout=POLL_SECONDS).not_done:
        whole = metrics.read_bytes().rpartition(b"\n")[0] if metrics.exists() else b""
        if whole:
            last = json.loads(whole.rpartition(b"\n")[2])
            text = f"{progress.tasks[bar].description.partition(':')[0]}: loss {last['loss']:.4f}"
            progress.update(bar, completed=last["step"] + 1, description=text)
