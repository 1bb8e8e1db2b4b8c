"""Runs the suite on one tree in its own process and turns pytest's report into a SuiteRun."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evaluation.suite.instrument import Instrumented, instrument
from evaluation.suite.integrity import check_traces, digest_of
from evaluation.suite.limits import GIB, most_memory
from evaluation.suite.probe import Device, check_import, signal_name
from evaluation.suite.process import Finished, OutputHandler, run_bounded
from evaluation.suite.pytest_report import PytestReport, check_return_code, joined, read_pytest_report
from evaluation.suite.result import (
    CaseResult,
    Evidence,
    Failure,
    FailureKind,
    GraderError,
    NotRun,
    Role,
    SuiteRun,
    TreeProblem,
    short_line,
)
from evaluation.suite.stage import Staged, child_environment, scratch_folder, staged

if TYPE_CHECKING:
    from evaluation.suite.container import Engine

# The log of reached ends is opened before anything of a candidate's is imported.
_START = """\
import sys
sys.path.insert(0, sys.argv[1])
plugin = __import__(sys.argv[2])
import pytest
sys.exit(pytest.main(sys.argv[5:], [plugin]))
"""
_SIDE_BY_SIDE = Path(__file__).resolve().parents[1] / "worker" / "side_by_side.py"
_MOST_PROCESSES = 4
_PROCESS_BYTES = 2 * GIB  # of each, with its interpreter of kernels: 1.6 measured


Isolation = Literal["process", "docker"]


@dataclass(frozen=True)
class Settings:
    """How to run the suite; `timeout` in seconds is for one tree. `keep`: the folder that raw results are left in.

    `processes` share the suite of a tree; 0 stands for what `with_processes` finds right.
    `isolation`: whether processes of a tree are limited as processes, or each is in a container of its own.
    """

    suite: Path
    quick: bool
    timeout: float
    seed: int
    device: Device
    keep: Path | None = None
    processes: int = 1
    isolation: Isolation = "process"


def with_processes(settings: Settings, gpus: bool) -> Settings:
    """The count of processes settled: for each core one, up to four, that memory has room for; one alone on a GPU."""
    room = max(1, min(_MOST_PROCESSES, len(os.sched_getaffinity(0)), most_memory() // _PROCESS_BYTES))
    return replace(settings, processes=settings.processes or (1 if gpus else room))


def engine_of(settings: Settings, gpus: bool) -> "Engine | None":
    """None where processes are enough. Raises GraderError where containers are asked for and no engine answers."""
    if settings.isolation == "process":
        return None
    from evaluation.suite.container import Engine  # with the docker SDK, which takes its time

    return Engine(gpus=gpus)


def prepare(stack: ExitStack, source: Path, role: Role, timeout: float, engine: "Engine | None" = None) -> Staged:
    """Stage a tree for as long as `stack` is open; raises TreeProblem when mmdit cannot be imported from it."""
    stage = stack.enter_context(staged(source, role, engine))
    check_import(stage, timeout)
    return stage


def run_suite(staged: Staged, settings: Settings, on_output: OutputHandler | None = None) -> SuiteRun:
    """Run the suite on a staged tree. What goes wrong is in the result's `failures`, never raised."""
    with scratch_folder() as folder:
        return _run_copy(staged, settings, instrument(settings.suite, folder), on_output)


def _run_copy(staged: Staged, settings: Settings, copy: Instrumented, on_output: OutputHandler | None) -> SuiteRun:
    report_files = [staged.scratch / f"pytest-{number}.json" for number in range(settings.processes)]
    untouched, suite = digest_of(staged.tree), digest_of(copy.suite)
    done = staged.run(
        _command(copy, settings.quick, staged.role, report_files),
        cwd=copy.folder,
        env={"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // settings.processes))}  # NumPy takes all
        | dict(staged.env)
        | {
            "REPO_PATH": str(staged.tree),
            "MMDIT_TEST_SEED": str(settings.seed),
            "MMDIT_TEST_DEVICE": settings.device,
        },
        timeout=settings.timeout,
        on_output=on_output,
        folders={copy.folder: "rw"},
    )
    cases: tuple[CaseResult, ...] = ()
    not_run: tuple[NotRun, ...] = ()
    failures: tuple[Failure, ...] = ()
    evidence: Evidence | None = None
    try:
        reports = [_report_of(done, settings.timeout, file) for file in report_files]
        report = joined(reports, copy.is_canary)
        cases, not_run = report.cases(_name_of_copy_removed(staged)), report.left_out()
        evidence = check_traces([each.outcomes() for each in reports], copy)
        if digest_of(staged.tree) != untouched:
            raise TreeProblem(FailureKind.TREE_CHANGED, "the tree changed its own files while it was tested")
        if digest_of(copy.suite) != suite:
            raise TreeProblem(FailureKind.GRADER_CHANGED, "files of the suite's copy changed while the tree was tested")
    except TreeProblem as problem:
        failures = (problem.failure(staged.role),)
    return SuiteRun(
        role=staged.role,
        tree=str(staged.source),
        cases=cases,
        not_run=not_run,
        return_code=_without_canaries(done.return_code, cases),
        evidence=evidence,
        duration_seconds=done.seconds,
        log_tail=done.tail,
        failures=failures,
    )


def collect_ids(settings: Settings) -> set[str]:
    """The ids of the suite's tests, run or left out, as the grader collects them from its copy without a candidate.

    Raises GraderError where that does not work.
    """
    with scratch_folder() as folder:
        copy, scratch = folder / "suite" / settings.suite.name, folder / "scratch"
        shutil.copytree(settings.suite, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if (settings.suite.parent / "pyproject.toml").is_file():
            shutil.copy(settings.suite.parent / "pyproject.toml", copy.parent)
        (scratch / "nothing" / "mmdit").mkdir(parents=True)
        (scratch / "nothing" / "mmdit" / "__init__.py").touch()
        done = run_bounded(
            [
                *(sys.executable, "-P", "-m", "pytest", copy.name, "-p", "no:cacheprovider", "--collect-only", "-q"),
                *("--json-report", f"--json-report-file={scratch / 'ids.json'}"),
            ],
            cwd=copy.parent,
            env=child_environment(scratch) | {"REPO_PATH": str(scratch / "nothing"), "MMDIT_TEST_SEED": "0"},
            timeout=settings.timeout,
        )
        if done.return_code or not (scratch / "ids.json").exists():
            raise GraderError(f"the suite cannot be collected: {short_line(done.tail)}")
        return set(read_pytest_report(scratch / "ids.json").collected())


def _without_canaries(return_code: int | None, cases: tuple[CaseResult, ...]) -> int | None:
    """What pytest's exit code says of the suite's own tests: canaries fail in every run."""
    return 0 if return_code == 1 and cases and all(case.outcome == "passed" for case in cases) else return_code


def _command(copy: Instrumented, quick: bool, role: Role, report_files: Sequence[Path]) -> list[str]:
    """One process for each report file.

    Tracebacks are shown for after only, and no list of failures: on before they are the declared ones, and canaries
    fail on either. Who calls says which failures count.
    """
    each = [
        [
            *("-P", "-c", _START, str(copy.folder), copy.plugin, str(number), str(len(report_files))),
            *(copy.suite.name, "-p", "no:cacheprovider", "-rN"),
            *("--json-report", f"--json-report-file={report_file}"),
            *("--json-report-omit", "log", "streams", "warnings", "keywords", "traceback"),
            *(["--quick"] if quick else []),
            "--tb=no" if role == "before" else "--tb=short",
        ]
        for number, report_file in enumerate(report_files)
    ]
    return [sys.executable, "-E", "-s", "-S", str(_SIDE_BY_SIDE), json.dumps(each)]


def _report_of(done: Finished, timeout: float, report_file: Path) -> PytestReport:
    if done.broken:
        raise TreeProblem(FailureKind.LIMIT_BROKEN, f"the suite's run {done.broken}")
    if done.return_code is None:
        raise TreeProblem(FailureKind.TIMEOUT, f"the suite did not end within {timeout:g} s")
    if done.return_code < 0:
        raise TreeProblem(FailureKind.CRASHED, f"pytest was ended by {signal_name(done.return_code)}")
    if not report_file.exists():
        if done.return_code:
            check_return_code(done.return_code)
        raise TreeProblem(
            FailureKind.NO_REPORT,
            f"pytest ended with exit code {done.return_code} in the middle of the run, before its report",
        )
    report = read_pytest_report(report_file)
    report.check(done.return_code)
    return report


def _name_of_copy_removed(staged: Staged) -> Callable[[str], str]:
    return lambda message: message.replace(str(staged.tree), staged.source.name)
