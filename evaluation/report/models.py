"""The report's form. The JSON Schema in evaluation/schema is generated from these models."""

from datetime import datetime
from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from evaluation.judge.record import Numerics
from evaluation.judge.scan import Finding
from evaluation.judge.speed_record import Speed
from evaluation.suite.condition import EMPTY, NOT_EMPTY, NOT_NULL, NULL, conditions, when
from evaluation.suite.probe import Device, Machine
from evaluation.suite.result import CaseResult, Evidence, Failure, NotRun, Record
from evaluation.suite.run import Isolation

SCHEMA_VERSION = "1.3"

Demand = Literal["speed"]
Status = Literal["pass", "fail", "inconclusive", "not_measured"]


class Environment(Machine):
    """What the run ran on. Fields are null where the grader could not find out."""

    python_version: str
    platform: str
    cpu_count: int | None
    git_commit: str | None
    git_dirty: bool | None


class RunSettings(Record):
    """The command line as it was understood; `seed` is the one drawn when none was given."""

    before: str
    after: str
    quick: bool
    timeout_seconds: float
    seed: int
    device: Device
    isolation: Isolation = "process"
    require: tuple[Demand, ...] = Field(default=(), description="axes that must pass beside those that always must")


class TestRun(Record):
    """One run of the suite. `passed`: pytest passed; `as_declared`: the tree did what its role demands."""

    passed: bool
    as_declared: bool
    return_code: int | None = Field(description="null: pytest did not start, or the time limit ended it")
    duration_seconds: float
    output: str = Field(description="the end of what the run printed")
    evidence: Evidence | None = Field(description="null: the run did not come to its end, or contradicts itself")


class Metrics(Record):
    """Numbers measured on a tree: none so far."""


class TreeSection(Record):
    tests: TestRun
    metrics: Metrics = Metrics()


class Summary(Record):
    """Counts by outcome. `skipped` is every test that neither passed nor failed: above all those not run."""

    total: int
    passed: int
    failed: int
    errors: int
    skipped: int


class TreeResults(Record):
    """Every test by name. `success` and `exit_code` are pytest's."""

    success: bool
    exit_code: int | None
    tests: tuple[CaseResult, ...]
    not_run: tuple[NotRun, ...]
    summary: Summary


class Comparison(Record):
    """Test ids by what they did on before and then on after, of the tests that ran on both."""

    passed_gate: bool
    improvement_summary: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    fail_to_fail: tuple[str, ...]
    pass_to_fail: tuple[str, ...]


class Results(Record):
    before: TreeResults
    after: TreeResults
    comparison: Comparison


class Axis(Record):
    status: Status
    reason: str = Field(min_length=1)


class Verdict(Record):
    """Of the after tree. Correctness: the contract tests and the numeric cases; deployability: the upgrade tests.

    Integrity: what both runs of the suite, and the timed calls, left behind agrees with what they report.
    """

    correctness: Axis
    deployability: Axis
    speed: Axis
    integrity: Axis


_PASSED = {"properties": {"status": {"const": "pass"}}}
_SUCCESS = {
    "error": NULL,
    "failures": EMPTY,
    "comparison": {"properties": {"passed_gate": {"const": True}}},
    "verdict": {"properties": dict.fromkeys(("correctness", "deployability", "integrity"), _PASSED)},
}
_NO_SUCCESS = {
    "error": NOT_NULL,
    "failures": NOT_EMPTY,
    "comparison": {"properties": {"passed_gate": {"const": False}}},
}


class Report(Record):
    """One evaluation. `success` is true exactly when `error` is null and `failures` is empty."""

    model_config = ConfigDict(json_schema_extra=conditions(when("success", [True], _SUCCESS, _NO_SUCCESS)))
    schema_version: Literal["1.3"] = SCHEMA_VERSION
    run_id: str
    started_at: datetime
    finished_at: datetime
    duration_seconds: float = Field(ge=0)
    settings: RunSettings
    environment: Environment
    before: TreeSection
    after: TreeSection
    comparison: Comparison
    results: Results
    numerics: Numerics
    speed: Speed
    findings: tuple[Finding, ...] = Field(description="places of after to read; they decide nothing")
    verdict: Verdict
    failures: tuple[Failure, ...]
    success: bool
    error: str | None

    @model_validator(mode="after")
    def _success_means_no_failure(self) -> Self:
        axes = (self.verdict.correctness, self.verdict.deployability, self.verdict.integrity)
        statuses = {axis.status for axis in axes}
        consistent = {
            self.success,
            not self.failures,
            self.error is None,
            self.comparison.passed_gate,
            self.results.comparison.passed_gate,
        }
        if len(consistent) != 1 or (self.success and statuses != {"pass"}):
            raise ValueError("success, error, failures, comparison and verdict contradict each other")
        return self
