"""One run of `tune`: other tiles beside those of the fused tree's tuning tables, on the current GPU."""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from rich.progress import Progress
from torch import Tensor

from evaluation.bench.case import poisoned_memory
from evaluation.bench.contenders import LIMITS
from evaluation.bench.machine import describe_machine
from evaluation.bench.provenance import provenance
from evaluation.bench.stack_case import matmul_precision
from evaluation.bench.timing import time_in_turns
from evaluation.bench.trees import LoadedTree
from evaluation.bench.tune_cases import Subject
from evaluation.bench.tune_record import Rejected, TileTiming, TuneJob, TuneRecord, TuneResult
from evaluation.bench.tune_tables import TABLES, Table
from evaluation.suite.result import short_line
from evaluation.worker.capture import capture

DEVICE = "cuda"
WORSE = 2.0  # times the error of the table's tiles, and other tiles are wrong: they only change the order of sums
WARM_UP = 1.5  # times a turn's milliseconds, for what comes with it


@dataclass(frozen=True)
class TunePlan:
    """What to tune, and how: so many rounds of rep_ms milliseconds for each tiles."""

    before: Path
    after: Path
    jobs: tuple[TuneJob, ...]
    rounds: int
    rep_ms: int


class Asked(NamedTuple):
    """What a table was asked, and what it gave."""

    arguments: str
    tiles: Any


class Ready(NamedTuple):
    """Tiles whose outputs are right: a replay of their CUDA graph, and their error."""

    tiles: Any
    replay: Callable[[], object]
    error: float


def tune(plan: TunePlan, budget_s: float, command: str) -> Iterator[TuneRecord]:
    """Yield the record as it stands after each job; none but the first begins after budget_s seconds."""
    end = monotonic() + budget_s
    run = provenance(plan.before, plan.after, command)
    torch.seed()
    before = LoadedTree.load(plan.before)
    after = LoadedTree.load(plan.after)  # last: it imports its kernels when they are first called
    machine, architecture = describe_machine(), architecture_of(after)
    results: list[TuneResult] = []
    with Progress() as progress:
        task = progress.add_task("", total=len(plan.jobs))
        for job in plan.jobs:
            left = len(plan.jobs) - len(results)
            if results and monotonic() > end:
                return

            def say(what: str, job: TuneJob = job) -> None:
                progress.update(task, description=f"{job}: {what}")

            deadline = monotonic() + (end - monotonic()) / left
            results.append(tune_job(job, before, after, plan, deadline, say))
            progress.advance(task)
            yield TuneRecord(
                **run,
                machine=machine,
                architecture=architecture,
                results=list(results),
                not_begun=list(plan.jobs[len(results) :]),
            )


def tune_job(
    job: TuneJob, before: LoadedTree, after: LoadedTree, plan: TunePlan, deadline: float, say: Callable[[str], None]
) -> TuneResult:
    """Find out what the table gives, try other tiles until the deadline, and time all that are right in turns."""
    gc.collect()
    torch.cuda.empty_cache()  # the last job's
    table = TABLES[job.op]
    asker = after.modules[table.asker]
    result = {"job": job, "table": f"{getattr(asker, table.function).__module__}.{table.function}"}
    with matmul_precision(job.case.dtype):
        say("drawing values, asking the table")
        subject = table.draw(job.case, before, after, DEVICE)
        asked = ask(table, asker, subject)
        if asked is None:
            return nothing(result, None, "the op's kernel does not run at these sizes")
        ready, rejected = [], []
        queue = [asked.tiles, *table.others(asked.tiles, job.case)]
        limit = LIMITS[job.case.dtype]
        while queue and (not ready or monotonic() + seconds_to_time(len(ready) + 1, plan) < deadline):
            tiles = queue.pop(0)
            say(f"{len(ready)} right, {len(rejected)} rejected, {len(queue)} left")
            try:
                ready.append(prepare(tiles, giving(table, asker, tiles), subject, limit))
            except Exception as error:  # whatever a compiler raises
                reason = short_line(f"{type(error).__name__}: {error}")
                if not ready:
                    return nothing(result, asked.arguments, f"the table's own tiles: {reason}")
                rejected.append(Rejected(tiles=told(tiles), reason=reason))
            limit = min(LIMITS[job.case.dtype], WORSE * ready[0].error)
        say(f"timing {len(ready)} tiles")
        times = time_in_turns(
            {str(n): each.replay for n, each in enumerate(ready)}, plan.rounds, plan.rep_ms, flush=False
        )
    return TuneResult(
        **result,
        asked=asked.arguments,
        problem=None,
        timings=[
            TileTiming(
                tiles=told(each.tiles),
                rounds_us=[us / subject.calls for us in times[str(n)].rounds_us],
                samples=times[str(n)].samples * subject.calls,
                error=each.error,
            )
            for n, each in enumerate(ready)
        ],
        rejected=rejected,
        not_tried=[told(tiles) for tiles in queue],
    )


def ask(table: Table, asker: ModuleType, subject: Subject) -> Asked | None:
    """What the subject asks of the table; None where it does not. Whether it then runs is another question."""
    look_up = getattr(asker, table.function)
    found: list[Asked] = []

    def note(*given: Any, **named: Any) -> Any:
        arguments = signature(look_up).bind(*given, **named).arguments.items()
        text = ", ".join(f"{name}={value}" for name, value in arguments if not isinstance(value, Tensor))
        found.append(Asked(text, look_up(*given, **named)))
        return found[-1].tiles

    with patch.object(asker, table.function, note):
        try:
            subject.run()
        except Exception:  # whatever a compiler raises
            if not found:
                raise
    return found[0] if found else None


def giving(table: Table, asker: ModuleType, tiles: Any) -> AbstractContextManager:
    """Within, the table gives these tiles, whatever it is asked."""
    return patch.object(asker, table.function, lambda *_, **__: tiles)


def prepare(tiles: Any, given: AbstractContextManager, subject: Subject, limit: float) -> Ready:
    """Check the subject's outputs with these tiles, in memory poisoned with NaN, and capture it in a CUDA graph.

    Raises RuntimeError where they are wrong.
    """
    with given:
        with poisoned_memory():
            error = subject.error(subject.run())
        if not error <= limit:
            raise RuntimeError(f"expected an error of at most {limit:.2e}, got {error:.2e}")

        def repeat() -> None:
            for _ in range(subject.calls):
                subject.run()

        return Ready(tiles, capture(repeat), error)


def told(tiles: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in tiles._asdict().items())


def seconds_to_time(count: int, plan: TunePlan) -> float:
    """What it takes to time so many tiles, about."""
    return count * plan.rounds * plan.rep_ms * WARM_UP / 1e3


def nothing(result: dict[str, Any], asked: str | None, problem: str) -> TuneResult:
    """The result of a job in which nothing was timed."""
    return TuneResult(**result, asked=asked, problem=problem, timings=[], rejected=[], not_tried=[])


def architecture_of(after: LoadedTree) -> str:
    """The key of the tree's tables for the current GPU, and whether the tree says that it was measured."""
    module = after.modules["mmdit.runtime.architecture"]
    return str(module.architecture(torch.cuda.get_device_capability()))
