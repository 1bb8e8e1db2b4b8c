"""Several runs, one after another, each in a folder of its own, and each tree in a process of its own."""

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
from evaluation.training.trainer import METRICS, How

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


def run_all(jobs: list[Job], progress: Progress) -> Iterator[ParityRun]:
    """The result of each, as it ends, or as it ended before; `progress` tells of the steps. What a run raises is raised
    here.
    """
    with ExitStack() as stack:
        pools = {
            tree: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for tree in {j.tree for j in jobs}
        }
        for job in jobs:
            bar = progress.add_task(str(job), total=job.config.steps)
            found = ended(job.config, job.how.folder)
            if found is None:
                future = pools[job.tree].submit(train_tree, job.tree, job.config, job.how)
                _follow(future, job.how.folder / METRICS, progress, bar)
                found = future.result()
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
