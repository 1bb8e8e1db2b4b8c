"""Reads the file that pytest-json-report wrote; nothing pytest prints is ever believed.

Its traps: zero counts are left out of the summary, an interrupted test reads "passed" because only its set-up is
there, NaN makes the file invalid JSON, and the exit code in it is older than that of the process.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel, Field, ValidationError

from evaluation.suite.result import CaseResult, Expectation, FailureKind, NotRun, Outcome, TreeProblem, short_line

_MAX_BYTES = 64 * 1024 * 1024
_PYTEST_EXITS = {
    2: (FailureKind.INTERRUPTED, "pytest was interrupted"),
    3: (FailureKind.INTERNAL_ERROR, "pytest failed internally"),
    4: (FailureKind.PYTEST_USAGE, "pytest could not start: its command line or a conftest failed"),
    5: (FailureKind.NO_TESTS, "pytest collected no tests"),
}

Clean = Callable[[str], str]


class _Crash(BaseModel):
    message: str


class _Stage(BaseModel):
    outcome: str
    duration: float
    crash: _Crash | None = None
    longrepr: str = ""

    def why(self) -> str:
        return self.crash.message if self.crash else self.longrepr


class _Metadata(BaseModel):
    expectation: Expectation | None = None


class _Test(BaseModel):
    nodeid: str
    outcome: Outcome
    metadata: _Metadata = _Metadata()
    setup: _Stage | None = None
    call: _Stage | None = None
    teardown: _Stage | None = None

    @property
    def expectation(self) -> Expectation | None:
        return self.metadata.expectation

    @property
    def stages(self) -> list[_Stage]:
        return [stage for stage in (self.setup, self.call, self.teardown) if stage]

    def verdict(self) -> Outcome:
        """ "passed" only when all three stages ran and passed."""
        all_passed = [stage.outcome for stage in self.stages] == ["passed"] * 3
        return "error" if self.outcome == "passed" and not all_passed else self.outcome

    def why(self) -> str:
        told = [short_line(stage.why()) for stage in self.stages if stage.outcome != "passed"]
        return next(filter(None, told), "it did not run to its end")


class _Item(BaseModel):
    nodeid: str
    type: str


class _Collector(BaseModel):
    nodeid: str
    outcome: str
    longrepr: str = ""
    result: list[_Item] = Field(default_factory=list)


class _Summary(BaseModel):
    collected: int
    deselected: int = 0


class _NotRun(BaseModel):
    nodeid: str
    reason: str
    expectation: Expectation | None = None


class PytestReport(BaseModel):
    """The fields that are read; pytest-json-report writes more."""

    exitcode: int
    summary: _Summary
    tests: list[_Test] = Field(default_factory=list)
    collectors: list[_Collector] = Field(default_factory=list)
    not_run: list[_NotRun] = Field(default_factory=list)

    def check(self, return_code: int) -> None:
        """Raise TreeProblem unless the run went to its end and the report agrees with itself."""
        broken = [each for each in self.collectors if each.outcome == "failed"]
        if broken:
            raise TreeProblem(
                FailureKind.COLLECTION_ERROR,
                f"{broken[0].nodeid}: {_last_line(broken[0].longrepr)}",
                tuple(each.nodeid for each in broken),
            )
        check_return_code(return_code)
        if return_code != self.exitcode:
            _mismatch(f"pytest ended with {return_code} but its report says {self.exitcode}")
        if bool(return_code) != any(test.outcome in ("failed", "error") for test in self.tests):
            _mismatch(f"pytest ended with {return_code}, which the outcomes in its report contradict")
        if self.summary.deselected != len(self.not_run):
            _mismatch(f"{self.summary.deselected} tests were left out but {len(self.not_run)} are named")
        left = self.summary.collected - self.summary.deselected - len(self.tests)
        if left:
            _mismatch(f"{left} of {self.summary.collected} collected tests have no outcome")

    def collected(self) -> list[str]:
        """Every test that was collected, those that were left out among them."""
        return [item.nodeid for each in self.collectors for item in each.result if item.type == "Function"]

    def outcomes(self) -> dict[str, Outcome]:
        return {test.nodeid: test.verdict() for test in self.tests}

    def cases(self, clean: Clean) -> tuple[CaseResult, ...]:
        return tuple(_case(test, clean) for test in self.tests)

    def left_out(self) -> tuple[NotRun, ...]:
        return tuple(NotRun.model_validate(each.model_dump()) for each in self.not_run)


def joined(reports: Sequence[PytestReport], is_canary: Callable[[str], bool]) -> PytestReport:
    """Of processes that shared a suite, what they told of its own tests, in the order in which these are collected.

    Raises TreeProblem where a test is told of twice or declares no expectation, and where none of an expectation ran.
    """
    place = {nodeid: number for number, nodeid in enumerate(reports[0].collected())}
    tests = [test for each in reports for test in each.tests if not is_canary(test.nodeid)]
    tests.sort(key=lambda test: place.get(test.nodeid, len(place)))
    not_run = [entry for each in reports for entry in each.not_run]
    _check_ids_and_expectations([(each.nodeid, each.expectation) for each in (*tests, *not_run)])
    for expectation in ("contract", "upgrade"):
        if all(test.expectation != expectation for test in tests):
            raise TreeProblem(FailureKind.NO_TESTS, f"no {expectation} test ran")
    return reports[0].model_copy(update={"tests": tests, "not_run": not_run})


def _check_ids_and_expectations(told: list[tuple[str, Expectation | None]]) -> None:
    twice = tuple(nodeid for nodeid, count in Counter(nodeid for nodeid, _ in told).items() if count > 1)
    if twice:
        why = f"{len(twice)} tests were run more than once: {twice[0]}"
        raise TreeProblem(FailureKind.SUITE_FORGED, why, twice)
    silent = tuple(nodeid for nodeid, expectation in told if expectation is None)
    if silent:
        why = f"{len(silent)} tests declare neither contract nor upgrade: {silent[0]}"
        raise TreeProblem(FailureKind.EXPECTATION_MISSING, why, silent)


def read_pytest_report(path: Path) -> PytestReport:
    """Raises TreeProblem(INVALID_REPORT) unless the file is JSON of the known form."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        return PytestReport.model_validate(json.loads(path.read_bytes(), parse_constant=_reject))
    except (ValueError, RecursionError) as error:  # JSON, encoding and ValidationError are ValueErrors
        raise TreeProblem(FailureKind.INVALID_REPORT, f"pytest's report: {_explain(error)}") from error


def check_return_code(return_code: int) -> None:
    """Raise TreeProblem for the return codes of pytest that mean it did not run the tests to their end."""
    if return_code in _PYTEST_EXITS:
        raise TreeProblem(*_PYTEST_EXITS[return_code])
    if return_code not in (0, 1):
        raise TreeProblem(FailureKind.CRASHED, f"pytest ended with the unknown exit code {return_code}")


def _case(test: _Test, clean: Clean) -> CaseResult:
    outcome = test.verdict()
    assert test.expectation is not None, "joined() comes first"
    return CaseResult(
        nodeid=test.nodeid,
        name=test.nodeid.partition("::")[2],
        outcome=outcome,
        expectation=test.expectation,
        duration_seconds=sum(stage.duration for stage in test.stages),
        message=None if outcome == "passed" else clean(test.why()),
    )


def _mismatch(message: str) -> NoReturn:
    raise TreeProblem(FailureKind.REPORT_MISMATCH, message)


def _reject(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _explain(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return short_line(str(error))


def _last_line(text: str) -> str:
    return short_line("\n".join(reversed(text.splitlines())))
