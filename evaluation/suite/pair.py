"""Runs the suite and the numeric cases on both trees and gathers every failure."""

import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from evaluation.judge.record import Numerics
from evaluation.judge.speed_record import Speed, not_timed
from evaluation.suite.integrity import check_ids, digest_of
from evaluation.suite.judge import judge_pair, judge_tree
from evaluation.suite.probe import Machine, describe_machine
from evaluation.suite.progress import progress
from evaluation.suite.result import (
    Failure,
    FailureKind,
    GraderError,
    Role,
    SuiteRun,
    TreeProblem,
    grader_is_to_blame,
)
from evaluation.suite.run import Settings, collect_ids, engine_of, prepare, run_suite, with_processes
from evaluation.suite.stage import Staged

GRADER = Path(__file__).resolve().parents[1]
NUMERICS, SPEED = "numerics", "speed"  # folders of a bundle
BROKEN_FIRST = "the run did not come to the timed calls"
IN_CONTAINERS = "nothing is timed in containers: --isolation process times"
WRONG_FIRST = "nothing was timed, since the numeric cases are wrong"


class Judged(NamedTuple):
    """What the judge says of both trees."""

    numerics: Numerics
    failures: tuple[Failure, ...]
    speed: Speed = not_timed("the judge was not asked to time anything")


Judge = Callable[[Staged, Staged, Settings, Console, Machine], Judged]


@dataclass(frozen=True)
class PairRun:
    """`failures` has the most telling first: the grader's own, then those of after."""

    machine: Machine
    before: SuiteRun
    after: SuiteRun
    numerics: Numerics
    speed: Speed
    failures: tuple[Failure, ...]


def run_pair(before: Path, after: Path, settings: Settings, console: Console, judge: Judge) -> PairRun:
    """What goes wrong, the grader's own errors included, is in the result's `failures`."""
    machine, grader_failures = Machine(), []
    judged = Judged(Numerics(), (), not_timed(BROKEN_FIRST))
    runs: dict[Role, SuiteRun] = {
        "before": SuiteRun(role="before", tree=str(before)),
        "after": SuiteRun(role="after", tree=str(after)),
    }
    try:
        machine = describe_machine(settings.device)
        with ExitStack() as stack:
            stages = _run_both(runs, settings, console, stack, uses_gpu(settings, machine))
            if stages:
                judged = Judged(*judge(*stages, settings, console, machine))
                if not judged.numerics.after.cases and not judged.failures:
                    raise GraderError("no numeric case was run")
    except Exception as error:
        if not isinstance(error, GraderError):
            traceback.print_exc(file=sys.stderr)
        message = str(error) if isinstance(error, GraderError) else f"{type(error).__name__}: {error}"
        grader_failures.append(Failure(kind=FailureKind.GRADER_ERROR, tree=None, message=message))
    failures = gather(grader_failures, judged.failures, runs["before"], runs["after"])
    return PairRun(machine, runs["before"], runs["after"], judged.numerics, judged.speed, failures)


def gather(
    grader_failures: Sequence[Failure], judged: Sequence[Failure], before: SuiteRun, after: SuiteRun
) -> tuple[Failure, ...]:
    """Every failure of a pair, the most telling first."""
    failures = (
        *grader_failures,
        *(failure for failure in judged if failure.tree == "after"),
        *judge_tree(after),
        *judge_tree(before),
        *(failure for failure in judged if failure.tree == "before"),
        *judge_pair(before, after),
    )
    return tuple(sorted(failures, key=grader_is_to_blame, reverse=True))


def judge_both(before: Staged, after: Staged, settings: Settings, console: Console, machine: Machine) -> Judged:
    """The numeric cases, and then, where nothing is wrong with them, the timed ones.

    Imports torch, which takes seconds and may fail: only here, where that is the grader's error.
    """
    from evaluation.judge.cases import cases
    from evaluation.judge.numerics import judge_numerics
    from evaluation.judge.speed import judge_speed
    from evaluation.judge.speed_cases import plans

    device = "cuda" if uses_gpu(settings, machine) else "cpu"
    folders = [settings.keep and settings.keep / name for name in (NUMERICS, SPEED)]
    numerics, wrong = judge_numerics(
        before, after, cases(settings.quick), settings.timeout, device, console, folders[0]
    )
    if wrong or settings.isolation == "docker":
        return Judged(numerics, wrong, not_timed(WRONG_FIRST if wrong else IN_CONTAINERS))
    chosen = plans(device, settings.quick)
    speed, wrong = judge_speed(before, after, chosen, settings.timeout, device, console, folders[1])
    return Judged(numerics, wrong, speed)


def uses_gpu(settings: Settings, machine: Machine) -> bool:
    return bool(machine.gpus) and settings.device != "cpu"


def _run_both(
    runs: dict[Role, SuiteRun], settings: Settings, console: Console, stack: ExitStack, gpus: bool
) -> list[Staged]:
    """Replace each run by what happened. No suite runs unless both trees can be imported.

    Returns both stages, open as long as `stack` is; none where a run broke.
    """
    stages = []
    engine, settings = engine_of(settings, gpus), with_processes(settings, gpus)
    for role, run in runs.items():
        try:
            stages.append(prepare(stack, Path(run.tree), role, settings.timeout, engine))
        except TreeProblem as problem:
            runs[role] = run.model_copy(update={"failures": (problem.failure(role),)})
    if len(stages) < len(runs):
        return []
    untouched = digest_of(GRADER, settings.suite)
    for stage in stages:
        with progress(console, f"{stage.role}: {stage.source}") as on_output:
            runs[stage.role] = run_suite(stage, settings, on_output)
        if digest_of(GRADER, settings.suite) != untouched:
            why = "files of the grader or of the suite changed while the tree was tested"
            problem = TreeProblem(FailureKind.GRADER_CHANGED, why)
            runs[stage.role] = runs[stage.role].model_copy(update={"failures": (problem.failure(stage.role),)})
        if runs[stage.role].failures:
            return []
    collected = collect_ids(settings)
    for role, run in runs.items():
        ids = [*(case.nodeid for case in run.cases), *(each.nodeid for each in run.not_run)]
        try:
            check_ids(ids, collected)
        except TreeProblem as problem:
            runs[role] = run.model_copy(update={"failures": (problem.failure(role),)})
    return stages
