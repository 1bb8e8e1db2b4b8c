"""Runs the suite on both trees and gathers every failure."""

import sys
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

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
from evaluation.suite.run import Settings, prepare, run_suite


@dataclass(frozen=True)
class PairRun:
    """`failures` has the most telling first: the grader's own, then those of after."""

    machine: Machine
    before: SuiteRun
    after: SuiteRun
    failures: tuple[Failure, ...]


def run_pair(before: Path, after: Path, settings: Settings, console: Console) -> PairRun:
    """What goes wrong, the grader's own errors included, is in the result's `failures`."""
    machine, grader_failures = Machine(), []
    runs: dict[Role, SuiteRun] = {
        "before": SuiteRun(role="before", tree=str(before)),
        "after": SuiteRun(role="after", tree=str(after)),
    }
    try:
        machine = describe_machine(settings.device)
        _run_both(runs, settings, console)
    except Exception as error:
        if not isinstance(error, GraderError):
            traceback.print_exc(file=sys.stderr)
        message = str(error) if isinstance(error, GraderError) else f"{type(error).__name__}: {error}"
        grader_failures.append(Failure(kind=FailureKind.GRADER_ERROR, tree=None, message=message))
    failures = (
        *grader_failures,
        *judge_tree(runs["after"]),
        *judge_tree(runs["before"]),
        *judge_pair(runs["before"], runs["after"]),
    )
    ordered = sorted(failures, key=grader_is_to_blame, reverse=True)
    return PairRun(machine, runs["before"], runs["after"], tuple(ordered))


def _run_both(runs: dict[Role, SuiteRun], settings: Settings, console: Console) -> None:
    """Replace each run by what happened. No suite runs unless both trees can be imported."""
    with ExitStack() as stack:
        stages = []
        for role, run in runs.items():
            try:
                stages.append(prepare(stack, Path(run.tree), role, settings.timeout))
            except TreeProblem as problem:
                runs[role] = run.model_copy(update={"failures": (problem.failure(role),)})
        if len(stages) < len(runs):
            return
        for stage in stages:
            with progress(console, f"{stage.role}: {stage.source}") as on_output:
                runs[stage.role] = run_suite(stage, settings, on_output)
            if runs[stage.role].failures:
                return
