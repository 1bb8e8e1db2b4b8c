"""Runs the numeric cases on both trees, each in a worker of its own, and judges what came back once both are gone."""

import secrets
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from torch import Tensor

from evaluation.judge.case import Case
from evaluation.judge.compare import errors, judge_case, truth_of
from evaluation.judge.draw import Drawn, draw
from evaluation.judge.plan import CaseFacts, read_result, write_plan
from evaluation.judge.record import CaseNumbers, Numerics, NumericsRun, RawNumerics, RawRun
from evaluation.suite.probe import signal_name
from evaluation.suite.process import Finished, OutputHandler
from evaluation.suite.progress import progress
from evaluation.suite.result import Failure, FailureKind, GraderError, Role
from evaluation.suite.stage import Staged

_WORKER = Path(__file__).resolve().parents[1] / "worker" / "run_cases.py"
SEED_BITS = 62
_RAW = "numerics.json"

Result = tuple[CaseFacts | None, dict[str, Tensor]]


@dataclass(frozen=True)
class WorkerRun:
    """What a worker left: by case, in their order; `failure` where it did not come to its end."""

    results: list[Result]
    seconds: float
    failure: Failure | None


def judge_numerics(
    before: Staged,
    after: Staged,
    cases: Sequence[Case],
    timeout: float,
    device: str,
    console: Console,
    keep: Path | None = None,
) -> tuple[Numerics, tuple[Failure, ...]]:
    """The cases on both trees; what came back is left in `keep`, for `judge_again`.

    After runs first, so that there is nothing of before's for it to find.
    """
    seed = secrets.randbits(SEED_BITS)
    drawn = [draw(case, seed) for case in cases]
    runs: dict[Role, WorkerRun] = {}
    for stage in (after, before):
        with progress(console, f"{stage.role}: {len(cases)} numeric cases") as on_output:
            kept = keep and keep / stage.role
            runs[stage.role] = run_worker(stage, drawn, timeout, device, on_output, kept)
    if keep:
        raw = {role: RawRun(seconds=run.seconds, failure=run.failure) for role, run in runs.items()}
        names = tuple(case.name for case in cases)
        record = RawNumerics(seed=seed, device=device, cases=names, runs=raw, files=hashes_below(keep))
        (keep / _RAW).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return judge_runs(drawn, runs, seed, device, console)


def judge_again(keep: Path, known: Mapping[str, Case], console: Console) -> tuple[Numerics, tuple[Failure, ...]]:
    """Judge what an earlier run left in `keep`, without any candidate. Raises GraderError where it is not whole."""
    raw = RawNumerics.model_validate_json((keep / _RAW).read_bytes())
    if hashes_below(keep) != raw.files:
        raise GraderError(f"{keep} does not hold the tensors that were put there")
    if unknown := [name for name in raw.cases if name not in known]:
        raise GraderError(f"{keep} has a case that this version of the grader does not know: {unknown[0]}")
    drawn = [draw(known[name], raw.seed) for name in raw.cases]
    runs = {
        role: WorkerRun([read_result(keep / role, str(n)) for n in range(len(drawn))], run.seconds, run.failure)
        for role, run in raw.runs.items()
    }
    return judge_runs(drawn, runs, raw.seed, raw.device, console)


def hashes_below(folder: Path) -> dict[str, str]:
    """sha256 of each file of the trees' folders."""
    files = sorted(file for role in ("after", "before") for file in (folder / role).glob("*"))
    return {str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest() for file in files}


def judge_runs(
    drawn: Sequence[Drawn], runs: Mapping[Role, WorkerRun], seed: int, device: str, console: Console
) -> tuple[Numerics, tuple[Failure, ...]]:
    """Both workers' results against the oracle, after's by the errors of before as well."""
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


def run_worker(
    stage: Staged,
    drawn: list[Drawn],
    timeout: float,
    device: str,
    on_output: OutputHandler | None = None,
    keep: Path | None = None,
) -> WorkerRun:
    """Draws go out by file into a folder that is private to this run, raw tensors come back the same way.

    `keep` gets the files that came back, by number of the case.
    """
    started = time.monotonic()
    with TemporaryDirectory(prefix="mmdit-", ignore_cleanup_errors=True) as name:
        cases, results = Path(name) / "cases", Path(name) / "results"
        cases.mkdir()
        results.mkdir()
        names = write_plan(cases, drawn, device)
        done = stage.run(
            [sys.executable, "-P", str(_WORKER), str(stage.tree), str(cases), str(results)],
            timeout=timeout,
            on_output=on_output,
            folders={cases: "ro", results: "rw"},
        )
        if keep:
            keep_files(results, names, keep)
        found = [read_result(results, each) for each in names]
    missing = [each.case.name for each, (told, _) in zip(drawn, found, strict=True) if told is None]
    return WorkerRun(found, time.monotonic() - started, _problem(stage.role, done, timeout, missing))


def keep_files(results: Path, names: Sequence[str], keep: Path) -> None:
    """Copy whole results of a worker's; links, and what is no result of a case, stay behind."""
    keep.mkdir(parents=True)
    for number, name in enumerate(names):
        for suffix in ("safetensors", "json"):
            file = results / f"{name}.{suffix}"
            if file.is_file() and not file.is_symlink():
                shutil.copy(file, keep / f"{number}.{suffix}")


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
