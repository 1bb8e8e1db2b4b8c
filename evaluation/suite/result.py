"""What a run of the suite on one tree gave, and the name of every way in which it can go wrong."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evaluation.suite.condition import EMPTY, NOT_EMPTY, NOT_NULL, NULL, conditions, when

Role = Literal["before", "after"]
Expectation = Literal["contract", "upgrade"]
Outcome = Literal["passed", "failed", "error", "skipped", "xfailed", "xpassed"]

_MESSAGE_LENGTH = 300


class Record(BaseModel):
    """Base of all records: unknown fields, NaN and infinity are errors, and a record never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FailureKind(StrEnum):
    """Every way to fail. What a kind means for the exit code is `exit_code` below."""

    # The tree is not one that tests could run on.
    UNREADABLE_TREE = "unreadable_tree"
    NO_PACKAGE = "no_package"
    SYNTAX_ERROR = "syntax_error"
    IMPORT_ERROR = "import_error"
    IMPORT_HANG = "import_hang"
    IMPORT_EXIT = "import_exit"
    IMPORT_CRASHED = "import_crashed"

    # Its processes took more of the machine than they may.
    LIMIT_BROKEN = "limit_broken"

    # The suite did not run to its end, or its report cannot be believed.
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    NO_REPORT = "no_report"
    INVALID_REPORT = "invalid_report"
    REPORT_MISMATCH = "report_mismatch"
    COLLECTION_ERROR = "collection_error"
    INTERRUPTED = "interrupted"
    INTERNAL_ERROR = "internal_error"
    PYTEST_USAGE = "pytest_usage"
    NO_TESTS = "no_tests"
    EXPECTATION_MISSING = "expectation_missing"

    # What came back contradicts what only a run that took place leaves, or files changed that must not.
    SUITE_FORGED = "suite_forged"
    TREE_CHANGED = "tree_changed"
    GRADER_CHANGED = "grader_changed"

    # The suite ran, and the tree did not do what was declared.
    CONTRACT_FAILED = "contract_failed"
    UPGRADE_PASSED_ON_BEFORE = "upgrade_passed_on_before"
    UPGRADE_FAILED_ON_AFTER = "upgrade_failed_on_after"
    UNDECLARED_OUTCOME = "undeclared_outcome"
    MISSING_TESTS = "missing_tests"
    EXPECTATION_DIFFERS = "expectation_differs"

    # The numeric cases: the worker did not run to its end, or what the tree computes is wrong.
    WORKER_LIMIT_BROKEN = "worker_limit_broken"
    WORKER_TIMEOUT = "worker_timeout"
    WORKER_CRASHED = "worker_crashed"
    WORKER_NO_RESULT = "worker_no_result"
    NUMERICS_WRONG = "numerics_wrong"

    # The timed calls: what they give is wrong, what they tell of time cannot be, or --require speed asked for more.
    TIMED_OUTPUT_WRONG = "timed_output_wrong"
    SPEED_FORGED = "speed_forged"
    SPEED_NOT_SHOWN = "speed_not_shown"
    SPEED_NOT_MEASURED = "speed_not_measured"

    # The grader could not do its work.
    GRADER_ERROR = "grader_error"


WORKER_PROBLEMS = frozenset(
    {
        FailureKind.WORKER_LIMIT_BROKEN,
        FailureKind.WORKER_TIMEOUT,
        FailureKind.WORKER_CRASHED,
        FailureKind.WORKER_NO_RESULT,
    }
)
INTEGRITY_PROBLEMS = frozenset(
    {FailureKind.SUITE_FORGED, FailureKind.SPEED_FORGED, FailureKind.TREE_CHANGED, FailureKind.GRADER_CHANGED}
)
SPEED_DEMANDS = frozenset({FailureKind.SPEED_NOT_SHOWN, FailureKind.SPEED_NOT_MEASURED})
RUN_PROBLEMS = (
    WORKER_PROBLEMS
    | INTEGRITY_PROBLEMS
    | frozenset(
        {
            FailureKind.LIMIT_BROKEN,
            FailureKind.TIMEOUT,
            FailureKind.CRASHED,
            FailureKind.NO_REPORT,
            FailureKind.INVALID_REPORT,
            FailureKind.REPORT_MISMATCH,
            FailureKind.COLLECTION_ERROR,
            FailureKind.INTERRUPTED,
            FailureKind.INTERNAL_ERROR,
            FailureKind.PYTEST_USAGE,
            FailureKind.NO_TESTS,
            FailureKind.EXPECTATION_MISSING,
        }
    )
)


# A failure of any other kind is one tree's, and names no test.
OF_NO_TREE = frozenset({FailureKind.GRADER_ERROR, FailureKind.EXPECTATION_DIFFERS, FailureKind.SPEED_NOT_MEASURED})
NAMES_TESTS = frozenset(
    {
        FailureKind.CONTRACT_FAILED,
        FailureKind.UPGRADE_PASSED_ON_BEFORE,
        FailureKind.UPGRADE_FAILED_ON_AFTER,
        FailureKind.UNDECLARED_OUTCOME,
        FailureKind.MISSING_TESTS,
        FailureKind.EXPECTATION_DIFFERS,
        FailureKind.NUMERICS_WRONG,
        FailureKind.COLLECTION_ERROR,
        FailureKind.EXPECTATION_MISSING,
    }
)
MAY_NAME_TESTS = frozenset({FailureKind.SUITE_FORGED})


class Failure(Record):
    """One named reason why the verdict is not success. Its kind says whether it has a tree and names tests."""

    model_config = ConfigDict(
        json_schema_extra=conditions(
            when("kind", sorted(OF_NO_TREE), {"tree": NULL}, {"tree": NOT_NULL}),
            when("kind", sorted(NAMES_TESTS), {"nodeids": NOT_EMPTY}),
            when("kind", sorted(set(FailureKind) - NAMES_TESTS - MAY_NAME_TESTS), {"nodeids": EMPTY}),
        )
    )
    kind: FailureKind
    tree: Role | None
    message: str
    nodeids: tuple[str, ...] = Field(default=(), description="names of tests or of numeric cases")

    @model_validator(mode="after")
    def _has_what_its_kind_has(self) -> Self:
        if (self.tree is None) != (self.kind in OF_NO_TREE):
            raise ValueError(f"{self.kind}: expected {'no' if self.kind in OF_NO_TREE else 'a'} tree, got {self.tree}")
        if self.kind not in MAY_NAME_TESTS and bool(self.nodeids) != (self.kind in NAMES_TESTS):
            raise ValueError(f"{self.kind}: names tests exactly where its kind does, got {self.nodeids}")
        return self


class CaseResult(Record):
    """One test that ran. `message` is the line that failed, and is there exactly when it did not pass."""

    model_config = ConfigDict(
        json_schema_extra=conditions(when("outcome", ["passed"], {"message": NULL}, {"message": NOT_NULL}))
    )
    nodeid: str
    name: str
    outcome: Outcome
    expectation: Expectation
    duration_seconds: float
    message: str | None = None

    @model_validator(mode="after")
    def _message_says_why(self) -> Self:
        if (self.outcome == "passed") != (self.message is None):
            raise ValueError(f"{self.nodeid}: a message goes with every outcome but passed")
        return self


class NotRun(Record):
    """One test that was left out, and why. It is never counted as passed."""

    nodeid: str
    reason: str
    expectation: Expectation


class Evidence(Record):
    """What a run's results were checked against."""

    canary_file: str
    canaries: int = Field(description="tests of the grader's own that failed, erred and passed as they must")
    bodies_reached: int = Field(description="tests whose last line told that it was reached")


class SuiteRun(Record):
    """The suite on one tree. `return_code` is None when pytest did not start or had to be killed."""

    role: Role
    tree: str
    cases: tuple[CaseResult, ...] = ()
    not_run: tuple[NotRun, ...] = ()
    return_code: int | None = None
    duration_seconds: float = 0.0
    log_tail: str = ""
    evidence: Evidence | None = None
    failures: tuple[Failure, ...] = ()


class GraderError(Exception):
    """The grader could not do its work; no candidate is to blame."""


class TreeProblem(Exception):
    """A tree, or the suite's run on it, failed in a named way."""

    def __init__(self, kind: FailureKind, message: str, nodeids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.kind, self.message, self.nodeids = kind, message, nodeids

    def failure(self, tree: Role) -> Failure:
        return Failure(kind=self.kind, tree=tree, message=self.message, nodeids=self.nodeids)


def short_line(text: str) -> str:
    """The first line of `text` that says something, cut to a length that a table can show."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= _MESSAGE_LENGTH else line[: _MESSAGE_LENGTH - 1] + "…"


def grader_is_to_blame(failure: Failure) -> bool:
    """Whether a failure means that the grader could not do its work.

    A run that broke on `before` leaves nothing to grade against, and whatever the machine or the suite did to
    the reference is not the candidate's doing. A `before` that cannot be imported, or that ran and did not do
    what was declared, is at fault itself, like any other tree.
    """
    broken_reference = failure.tree == "before" and failure.kind in RUN_PROBLEMS
    return failure.kind is FailureKind.GRADER_ERROR or broken_reference


def exit_code(failures: Iterable[Failure]) -> int:
    """0 without failures, 3 when the grader could not do its work, 1 when a tree is at fault."""
    return max((3 if grader_is_to_blame(failure) else 1 for failure in failures), default=0)
