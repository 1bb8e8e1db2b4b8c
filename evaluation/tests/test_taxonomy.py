"""Every status has the fields that go with it and no others: the models say so, and their schemas without them."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from evaluation.judge.record import CaseNumbers
from evaluation.judge.speed_record import Speed, SpeedCase
from evaluation.suite.result import MAY_NAME_TESTS, NAMES_TESTS, OF_NO_TREE, CaseResult, Failure, FailureKind, Record


def refused(model: type[Record], document: dict[str, Any]) -> tuple[bool, bool]:
    """By the model's validators, and by its schema."""
    try:
        model.model_validate_json(json.dumps(document))
        by_model = False
    except ValidationError:
        by_model = True
    schema = Draft202012Validator(model.model_json_schema(mode="serialization"))
    return by_model, not schema.is_valid(document)


@pytest.mark.parametrize("kind", FailureKind)
@pytest.mark.parametrize("tree", [None, "after"])
@pytest.mark.parametrize("nodeids", [[], ["a"]], ids=["no-test", "a-test"])
def test_a_kind_of_failure_says_whether_it_has_a_tree_and_names_tests(
    kind: FailureKind, tree: str | None, nodeids: list[str]
):
    wrong_tree = (tree is None) != (kind in OF_NO_TREE)
    wrong_tests = kind not in MAY_NAME_TESTS and bool(nodeids) != (kind in NAMES_TESTS)
    document = {"kind": str(kind), "tree": tree, "message": "m", "nodeids": nodeids}
    wrong = wrong_tree or wrong_tests
    assert refused(Failure, document) == (wrong, wrong)


@pytest.mark.parametrize(("outcome", "message"), [("passed", "m"), ("failed", None), ("error", None)])
def test_a_test_tells_why_exactly_when_it_did_not_pass(outcome: str, message: str | None):
    document = {"nodeid": "a", "name": "a", "outcome": outcome, "expectation": "contract", "duration_seconds": 1.0}
    assert refused(CaseResult, document | {"message": message}) == (True, True)
    assert refused(CaseResult, document | {"message": "m" if message is None else None}) == (False, False)


CASE = dict.fromkeys(("baseline", "contender"), "eager") | {
    "name": "a",
    "why": None,
    "ratio": {"ratio": 1.0, "low": 0.9, "high": 1.1},
    "host_ratio": {"ratio": 1.0, "low": 0.9, "high": 1.1},
    "same": [],
    "noise_floor": 1.0,
    "least_seconds": None,
    "work": None,
    "path": "fused",
    "own_kernels": [],
    "contenders": [],
}
UNMEASURED = CASE | dict.fromkeys(("baseline", "contender", "ratio", "host_ratio")) | {"why": "w"}


@pytest.mark.parametrize("outcome", ["faster", "slower", "inconclusive", "not_measured"])
def test_a_timed_case_has_a_ratio_exactly_when_it_was_measured_and_else_a_reason(outcome: str):
    measured = outcome != "not_measured"
    assert refused(SpeedCase, CASE | {"outcome": outcome}) == (not measured, not measured)
    assert refused(SpeedCase, UNMEASURED | {"outcome": outcome}) == (measured, measured)
    for name in ("baseline", "contender", "ratio", "host_ratio"):
        assert refused(SpeedCase, CASE | {"outcome": outcome, name: None}) == (True, True)


@pytest.mark.parametrize("what", ["fused", "fallback", "nothing"])
def test_a_speed_section_has_cases_exactly_when_something_was_timed_and_else_a_reason(what: str):
    timed = what != "nothing"
    cases = [CASE | {"outcome": "faster"}]
    document = {"what": what, "why": None, "confidence": 0.95, "cases": cases}
    assert refused(Speed, document) == (not timed, not timed)
    assert refused(Speed, document | {"why": "w", "cases": []}) == (timed, timed)
    assert refused(Speed, document | {"why": "w"}) == (True, True)


@pytest.mark.parametrize(("status", "problems"), [("pass", ["p"]), ("fail", [])])
def test_a_numeric_case_has_problems_exactly_when_it_fails(status: str, problems: list[str]):
    document = {"name": "a", "status": status, "worst": None, "problems": problems}
    assert refused(CaseNumbers, document) == (True, True)
    assert refused(CaseNumbers, document | {"problems": [] if problems else ["p"]}) == (False, False)
