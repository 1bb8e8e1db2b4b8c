"""Runs the suite on one tree in its own process and turns pytest's report into a SuiteRun."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from evaluation.suite.probe import Device, check_import, signal_name
from evaluation.suite.process import Finished, OutputHandler, run_bounded
from evaluation.suite.pytest_report import PytestReport, check_return_code, read_pytest_report
from evaluation.suite.result import CaseResult, Failure, FailureKind, NotRun, Role, SuiteRun, TreeProblem
from evaluation.suite.stage import Staged, staged


@dataclass(frozen=True)
class Settings:
    """How to run the suite; `timeout` in seconds is for one tree."""

    suite: Path
    quick: bool
    timeout: float
    seed: int
    device: Device


def prepare(stack: ExitStack, source: Path, role: Role, timeout: float) -> Staged:
    """Stage a tree for as long as `stack` is open; raises TreeProblem when mmdit cannot be imported from it."""
    stage = stack.enter_context(staged(source, role))
    check_import(stage, timeout)
    return stage


def run_suite(staged: Staged, settings: Settings, on_output: OutputHandler | None = None) -> SuiteRun:
    """Run the suite on a staged tree. What goes wrong is in the result's `failures`, never raised."""
    report_file = staged.scratch / "pytest.json"
    done = run_bounded(
        _command(settings, staged.role, report_file),
        cwd=settings.suite.parent,
        env=dict(staged.env)
        | {
            "REPO_PATH": str(staged.tree),
            "MMDIT_TEST_SEED": str(settings.seed),
            "MMDIT_TEST_DEVICE": settings.device,
        },
        timeout=settings.timeout,
        on_output=on_output,
    )
    cases: tuple[CaseResult, ...] = ()
    not_run: tuple[NotRun, ...] = ()
    failures: tuple[Failure, ...] = ()
    try:
        report = _report_of(done, settings.timeout, report_file)
        cases, not_run = report.cases(_name_of_copy_removed(staged)), report.left_out()
    except TreeProblem as problem:
        failures = (problem.failure(staged.role),)
    return SuiteRun(
        role=staged.role,
        tree=str(staged.source),
        cases=cases,
        not_run=not_run,
        return_code=done.return_code,
        duration_seconds=done.seconds,
        log_tail=done.tail,
        failures=failures,
    )


def _command(settings: Settings, role: Role, report_file: Path) -> list[str]:
    """Tracebacks are shown for after only: most failures on before are the declared ones."""
    return [
        *(sys.executable, "-P", "-m", "pytest", settings.suite.name, "-p", "no:cacheprovider"),
        *("--json-report", f"--json-report-file={report_file}"),
        *("--json-report-omit", "log", "streams", "warnings", "keywords", "traceback"),
        *(["--quick"] if settings.quick else []),
        *(["--tb=no"] if role == "before" else []),
    ]


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
