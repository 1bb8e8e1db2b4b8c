"""What is declared for each role, and what makes two runs comparable."""

import pytest

from evaluation.suite.judge import judge_pair, judge_tree
from evaluation.suite.result import NAMES_TESTS, CaseResult, Failure, FailureKind, NotRun, SuiteRun, exit_code

Kind = FailureKind


def run_of(role: str, *, not_run: tuple[str, ...] = (), **outcomes: str) -> SuiteRun:
    """A run of tests c1, c2 (contract) and u1 (upgrade), with what is declared for the role unless told otherwise."""
    declared = {"c1": "passed", "c2": "passed", "u1": "failed" if role == "before" else "passed"} | outcomes
    cases = tuple(
        CaseResult(
            nodeid=name,
            name=name,
            outcome=outcome,
            expectation=expectation_of(name),
            duration_seconds=0,
            message=None if outcome == "passed" else "why",
        )
        for name, outcome in declared.items()
        if name not in not_run
    )
    left_out = tuple(NotRun(nodeid=name, reason="no GPU", expectation=expectation_of(name)) for name in not_run)
    return SuiteRun(role=role, tree="t", return_code=0, cases=cases, not_run=left_out)


def expectation_of(name: str) -> str:
    return "contract" if name.startswith("c") else "upgrade"


@pytest.mark.parametrize("role", ["before", "after"])
def test_a_tree_that_does_what_is_declared_has_no_failure(role: str):
    assert judge_tree(run_of(role)) == ()
    assert judge_tree(run_of(role, not_run=("c2",))) == ()


@pytest.mark.parametrize(
    ("role", "test", "outcome", "kind"),
    [
        ("before", "c1", "failed", Kind.CONTRACT_FAILED),
        ("before", "c1", "error", Kind.CONTRACT_FAILED),
        ("before", "u1", "passed", Kind.UPGRADE_PASSED_ON_BEFORE),
        ("before", "u1", "skipped", Kind.UNDECLARED_OUTCOME),
        ("before", "u1", "xfailed", Kind.UNDECLARED_OUTCOME),
        ("after", "c1", "failed", Kind.CONTRACT_FAILED),
        ("after", "u1", "failed", Kind.UPGRADE_FAILED_ON_AFTER),
        ("after", "u1", "error", Kind.UPGRADE_FAILED_ON_AFTER),
        ("after", "c1", "skipped", Kind.UNDECLARED_OUTCOME),
        ("after", "c1", "xfailed", Kind.UNDECLARED_OUTCOME),
        ("after", "c1", "xpassed", Kind.UNDECLARED_OUTCOME),
    ],
)
def test_another_outcome_than_declared_is_named(role: str, test: str, outcome: str, kind: FailureKind):
    (failure,) = judge_tree(run_of(role, **{test: outcome}))
    assert (failure.kind, failure.tree, failure.nodeids) == (kind, role, (test,))
    assert test in failure.message


def test_an_upgrade_test_may_error_on_before():
    assert judge_tree(run_of("before", u1="error")) == ()


def test_a_test_that_only_one_tree_has_is_missing_on_the_other():
    before, after = run_of("before"), run_of("after", c3="passed")
    (failure,) = judge_pair(before, after)
    assert (failure.kind, failure.tree, failure.nodeids) == (Kind.MISSING_TESTS, "before", ("c3",))
    (failure,) = judge_pair(run_of("before", c3="passed"), run_of("after"))
    assert (failure.kind, failure.tree, failure.nodeids) == (Kind.MISSING_TESTS, "after", ("c3",))


def test_a_test_left_out_on_one_tree_only_is_named():
    (failure,) = judge_pair(run_of("before"), run_of("after", not_run=("c2",)))
    assert (failure.kind, failure.nodeids) == (Kind.EXPECTATION_DIFFERS, ("c2",))


def test_a_test_that_declares_different_things_on_the_two_trees_is_named():
    after = run_of("after")
    turned = after.cases[0].model_copy(update={"expectation": "upgrade"})
    (failure,) = judge_pair(run_of("before"), after.model_copy(update={"cases": (turned, *after.cases[1:])}))
    assert (failure.kind, failure.nodeids) == (Kind.EXPECTATION_DIFFERS, ("c1",))


def test_runs_of_the_same_tests_can_be_compared():
    assert judge_pair(run_of("before", not_run=("c2",)), run_of("after", not_run=("c2",))) == ()


@pytest.mark.parametrize(
    ("tree", "kind", "code"),
    [
        ("after", Kind.TIMEOUT, 1),
        ("after", Kind.IMPORT_ERROR, 1),
        ("before", Kind.CONTRACT_FAILED, 1),
        ("before", Kind.IMPORT_HANG, 1),
        ("before", Kind.TIMEOUT, 3),
        ("before", Kind.COLLECTION_ERROR, 3),
        (None, Kind.GRADER_ERROR, 3),
        (None, Kind.EXPECTATION_DIFFERS, 1),
    ],
)
def test_the_exit_code_blames_the_right_side(tree: str | None, kind: FailureKind, code: int):
    broken_after = Failure(kind=Kind.CONTRACT_FAILED, tree="after", message="m", nodeids=("a",))
    failure = Failure(kind=kind, tree=tree, message="m", nodeids=("a",) if kind in NAMES_TESTS else ())
    assert exit_code([failure]) == exit_code([broken_after, failure]) == code
    assert exit_code([]) == 0
