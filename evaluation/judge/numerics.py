"""Runs the numeric cases on both trees, each in a worker of its own, and judges what came back once both are gone."""

import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from torch import Tensor

from evaluation.judge.case import Case
from evaluation.judge.compare import errors, judge_case, truth_of
from evaluation.judge.draw import Drawn, draw
from evaluation.judge.plan import CaseFacts, read_result, write_plan
from evaluation.judge.record import CaseNumbers, Numerics, NumericsRun
from evaluation.suite.probe import signal_name
from evaluation.suite.process import Finished, run_bounded
from evaluation.suite.progress import progress
from evaluation.suite.result import Failure, FailureKind, Role
from evaluation.suite.stage import Staged

_WORKER = Path(__file__).resolve().parents[1] / "worker" / "run_cases.py"
SEED_BITS = 62

Result = tuple[CaseFacts | None, dict[str, Tensor]]


@dataclass(frozen=True)
class WorkerRun:
    """What a worker left: by case, in their order; `failure` where it did not come to its end."""

    results: list[Result]
    seconds: float
    failure: Failure | None


def judge_numerics(
    before: Staged, after: Staged, cases: Sequence[Case], timeout: float, device: str, console: Console
) -> tuple[Numerics, tuple[Failure, ...]]:
    """The cases on both trees. After runs first, so that there is nothing of before's for it to find."""
    seed = secrets.randbits(SEED_BITS)
    drawn = [draw(case, seed) for case in cases]
    runs = {}
    for stage in (after, before):
        with progress(console, f"{stage.role}: {len(cases)} numeric cases") as on_output:
            runs[stage.role] = run_worker(stage, drawn, timeout, device, on_output)
    verdicts: dict[Role, list[CaseNumbers]] = {"before": [], "after": []}
    with progress(console, "the oracle") as on_output:
        for number, each in enumerate(drawn):
            on_output(f"[{100 * number // len(drawn)}%]".encode())
            truth = truth_of(each)
            told, got = runs["before"].results[number]
            vanilla = errors(truth, got)
            verdicts["before"].append(judge_case(each, truth, told, got, None, device))
            verdicts["after"].append(judge_case(each, truth, *runs["after"].results[number], vanilla, device))
    failures = [run.failure for run in runs.values() if run.failure] + [
        wrong(role, found) for role, found in verdicts.items() if runs[role].failure is None and _bad(found)
    ]
    sections = {role: NumericsRun(cases=tuple(verdicts[role]), duration_seconds=runs[role].seconds) for role in runs}
    return Numerics(seed=seed, **sections), tuple(failures)


def run_worker(stage: Staged, drawn: list[Drawn], timeout: float, device: str, on_output: Any = None) -> WorkerRun:
    """Draws go out by file into a folder that is private to this run, raw tensors come back the same way."""
    started = time.monotonic()
    with TemporaryDirectory(prefix="mmdit-", ignore_cleanup_errors=True) as name:
        cases, results = Path(name) / "cases", Path(name) / "results"
        cases.mkdir()
        results.mkdir()
        names = write_plan(cases, drawn, device)
        done = run_bounded(
            [sys.executable, "-P", str(_WORKER), str(stage.tree), str(cases), str(results)],
            cwd=stage.scratch,
            env=stage.env,
            timeout=timeout,
            on_output=on_output,
        )
        found = [read_result(results, each) for each in names]
    missing = [each.case.name for each, (told, _) in zip(drawn, found, strict=True) if told is None]
    return WorkerRun(found, time.monotonic() - started, _problem(stage.role, done, timeout, missing))


def _problem(role: Role, done: Finished, timeout: float, missing: list[str]) -> Failure | None:
    """Why a worker did not do all of its work; None when it did."""
    at = f", first not done: {missing[0]}" if missing else ""
    if done.broken:
        kind, why = FailureKind.WORKER_LIMIT_BROKEN, f"the worker {done.broken}{at}"
    elif done.return_code is None:
        kind, why = FailureKind.WORKER_TIMEOUT, f"the numeric cases did not end within {timeout:g} s{at}"
    elif done.return_code < 0:
        kind, why = FailureKind.WORKER_CRASHED, f"the worker was ended by {signal_name(done.return_code)}{at}"
    elif done.return_code or missing:
        said = (done.tail.strip().splitlines() or ["nothing"])[-1]
        kind = FailureKind.WORKER_NO_RESULT
        why = f"the worker ended with exit code {done.return_code}{at}; it said last: {said}"
    else:
        return None
    return Failure(kind=kind, tree=role, message=why)


def _bad(found: Sequence[CaseNumbers]) -> list[CaseNumbers]:
    return [case for case in found if case.status == "fail"]


def wrong(role: Role, found: Sequence[CaseNumbers]) -> Failure:
    """One failure that names every wrong case and tells the first."""
    bad = _bad(found)
    told = f"{len(bad)} of {len(found)} numeric cases wrong on {role}, first {bad[0].name}: {bad[0].problems[0]}"
    return Failure(kind=FailureKind.NUMERICS_WRONG, tree=role, message=told, nodeids=tuple(case.name for case in bad))
