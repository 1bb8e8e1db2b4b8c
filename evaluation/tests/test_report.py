"""The document: its schema, its form, how it says what happened, and how it gets onto the disk."""

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from jsonschema import ValidationError as SchemaError
from pydantic import ValidationError
from rich.console import Console

from evaluation.judge.record import CaseNumbers, Numerics, NumericsRun
from evaluation.report import schema, write
from evaluation.report.build import verdict
from evaluation.report.junit import to_junit
from evaluation.report.models import Report
from evaluation.report.schema import MODELS, schema_file, validate
from evaluation.report.summary import print_report
from evaluation.report.write import write_atomically, write_record
from evaluation.suite.result import Failure, FailureKind, Record, exit_code
from evaluation.tests.conftest import Kata

pytestmark = pytest.mark.usefixtures("known_machine")

INIT = "after/mmdit/__init__.py"


def test_the_committed_schema_is_what_the_models_say():
    assert schema.main(["--check"]) == 0


def test_an_outdated_schema_is_noticed_and_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(schema, "FOLDER", tmp_path)
    schema_file(Report).write_text("{}")
    assert schema.main(["--check"]) == 1
    assert schema.main([]) == 0
    assert schema.main(["--check"]) == 0


@pytest.mark.parametrize("model", MODELS)
def test_no_object_in_a_schema_takes_other_keys_or_values_of_any_type(model: type[Record]):
    def objects(node: object):
        if isinstance(node, dict):
            if node.get("type") == "object":
                yield node
            for value in node.values():
                yield from objects(value)
        elif isinstance(node, list):
            for value in node:
                yield from objects(value)

    found = list(objects(json.loads(schema_file(model).read_text(encoding="utf-8"))))
    assert found
    others = [each["additionalProperties"] for each in found]
    assert all(other is False or other.keys() & {"type", "anyOf"} for other in others)


def test_a_success_says_so_everywhere(passing: Report):
    assert (passing.success, passing.error, passing.failures) == (True, None, ())
    assert {name: axis.status for name, axis in passing.verdict} == {
        "correctness": "pass",
        "deployability": "pass",
        "speed": "not_measured",
        "integrity": "pass",
    }
    assert passing.verdict.correctness.reason == (
        "2 contract tests passed, 1 were not run; 1 numeric cases are as near to the oracle as vanilla"
    )
    assert passing.comparison.fail_to_pass == (
        "test_square.py::test_perimeter",
        "test_square.py::test_large_perimeter",
    )
    assert len(passing.comparison.pass_to_pass) == 2
    assert (passing.before.tests.passed, passing.before.tests.as_declared) == (False, True)
    assert (passing.after.tests.passed, passing.after.tests.as_declared) == (True, True)
    summary = passing.results.after.summary
    assert (summary.total, summary.passed, summary.failed, summary.errors, summary.skipped) == (5, 4, 0, 0, 1)


@pytest.mark.parametrize(
    ("code", "correctness", "deployability", "error"),
    [
        ("def area(side): return 0", "fail", "pass", "after: contract_failed: 1 contract test failed on after"),
        ("del perimeter", "pass", "fail", "after: upgrade_failed_on_after: 2 upgrade tests failed on after"),
        ("def area(:", "fail", "fail", "after: syntax_error: import mmdit"),
        ("import os\ndef area(_): os._exit(0)", "fail", "fail", "after: no_report: pytest ended with exit code 0"),
    ],
    ids=["contract", "upgrade", "syntax", "exit"],
)
def test_a_failing_after_tree_fails_its_axes(kata: Kata, code: str, correctness: str, deployability: str, error: str):
    kata.append(INIT, code)
    report = kata.report()
    assert report.error.startswith(error)
    assert (report.verdict.correctness.status, report.verdict.deployability.status) == (correctness, deployability)
    assert not report.success
    assert not report.comparison.passed_gate


@pytest.mark.parametrize(
    ("code", "correctness", "deployability", "error"),
    [
        ("def area(side): return 0", "inconclusive", "pass", "before: contract_failed"),
        ("def perimeter(side): return 4 * side", "pass", "inconclusive", "before: upgrade_passed_on_before"),
        ("1 / 0", "inconclusive", "inconclusive", "before: import_error"),
        ("import os\ndef area(_): os._exit(0)", "inconclusive", "inconclusive", "before: no_report"),
    ],
    ids=["contract", "upgrade", "import", "exit"],
)
def test_a_failing_before_tree_leaves_the_axes_of_after_inconclusive(
    kata: Kata, code: str, correctness: str, deployability: str, error: str
):
    kata.append("before/mmdit/__init__.py", code)
    report = kata.report()
    assert report.error.startswith(error)
    assert (report.verdict.correctness.status, report.verdict.deployability.status) == (correctness, deployability)
    assert not report.success


def numbers(**after: object) -> Numerics:
    run = NumericsRun(cases=(CaseNumbers(name="case", status="pass", worst=None, problems=()),))
    return Numerics(seed=1, before=run, after=run.model_copy(update=after))


WRONG = Failure(kind=FailureKind.NUMERICS_WRONG, tree="after", message="m", nodeids=("case",))
WRONG_CASE = CaseNumbers(name="case", status="fail", worst=None, problems=("0.x_out is all zeros",))


@pytest.mark.parametrize(
    ("judged", "correctness", "reason"),
    [
        ((numbers(cases=(WRONG_CASE,)), (WRONG,)), "fail", "1 of 1 numeric cases are wrong; after: numerics_wrong: m"),
        ((numbers(), (WRONG.model_copy(update={"tree": "before"}),)), "inconclusive", "before: numerics_wrong: m"),
    ],
    ids=["after", "before"],
)
def test_wrong_numbers_fail_correctness_and_nothing_else(
    kata: Kata, monkeypatch: pytest.MonkeyPatch, judged: object, correctness: str, reason: str
):
    monkeypatch.setattr("evaluation.tests.conftest.right_numbers", lambda *_: judged)
    pair = kata.grade()
    axes = verdict(pair.before, pair.after, pair.numerics, pair.speed, pair.failures)
    assert (axes.correctness.status, axes.correctness.reason) == (correctness, reason)
    assert axes.deployability.status == "pass"


def test_no_numeric_case_is_no_verdict(kata: Kata, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("evaluation.tests.conftest.right_numbers", lambda *_: (numbers(cases=()), ()))
    report = kata.report()
    assert report.error == "grader_error: no numeric case was run"
    assert exit_code(report.failures) == 3


def test_the_summary_tells_wrong_cases_with_their_problems(kata: Kata, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("evaluation.tests.conftest.right_numbers", lambda *_: (numbers(cases=(WRONG_CASE,)), (WRONG,)))
    out = io.StringIO()
    print_report(Console(file=out, width=200), kata.report(), Path("/r/report.json"))
    assert "    0.x_out is all zeros" in out.getvalue().splitlines()


def test_models_and_schema_refuse_unknown_keys_and_numbers_that_are_none(passing: Report):
    document = passing.model_dump(mode="json")
    validate(Report, document)
    extra = document | {"surprise": 1}
    with pytest.raises(SchemaError):
        validate(Report, extra)
    with pytest.raises(ValidationError):
        Report.model_validate(extra)
    with pytest.raises(ValidationError):
        Report.model_validate(document | {"duration_seconds": float("nan")})


def test_a_report_cannot_contradict_itself(passing: Report):
    document = passing.model_dump(mode="json")
    for change in ({"success": False}, {"error": "why"}, {"verdict": document["verdict"] | {"correctness": UNSURE}}):
        with pytest.raises(ValidationError, match="contradict"):
            Report.model_validate(document | change)
        with pytest.raises(SchemaError):
            validate(Report, document | change)


UNSURE = {"status": "inconclusive", "reason": "r"}


def test_what_is_written_reads_back_and_is_for_everyone_to_read(passing: Report, tmp_path: Path):
    files = tmp_path / "new" / "report.json", tmp_path / "latest.json"
    write_record(passing, *files)
    for file in files:
        assert Report.model_validate_json(file.read_bytes()) == passing
        assert file.stat().st_mode & 0o777 == 0o644


def test_a_report_that_the_committed_schema_refuses_is_not_written(
    passing: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    older = json.loads(schema_file(Report).read_text(encoding="utf-8"))
    del older["properties"]["verdict"]
    monkeypatch.setattr(schema, "FOLDER", tmp_path)
    schema_file(Report).write_text(json.dumps(older))
    with pytest.raises(SchemaError):
        write_record(passing, tmp_path / "report.json")
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
):
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "latest.json"
    file.write_text("old")
    monkeypatch.setattr(write.os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, "new")
    assert [each.name for each in tmp_path.iterdir()] == ["latest.json"]
    assert file.read_text() == "old"


def test_junit_has_each_test_and_counts_what_was_not_as_declared(kata: Kata):
    kata.append(INIT, "def area(side): raise ValueError('\\x00 <&> \\ud800')")
    root = ElementTree.fromstring(to_junit(kata.report()))
    suites = {suite.get("name"): suite for suite in root}
    assert {name: (s.get("tests"), s.get("failures"), s.get("skipped")) for name, s in suites.items()} == {
        "verdict": ("2", "1", "1"),
        "after": ("5", "2", "1"),
        "before": ("5", "0", "1"),
    }
    assert "<&>" in suites["after"].find("testcase/failure").get("message")
    assert suites["after"].find("testcase/skipped").get("message") == "no CUDA device"


def test_the_summary_starts_with_the_verdict_and_says_why(kata: Kata):
    kata.append(INIT, "def area(side): raise ValueError('[bold]no area')")
    out = io.StringIO()
    print_report(Console(file=out, width=200), kata.report(), Path("/r/report.json"))
    lines = out.getvalue().strip().splitlines()
    assert lines[0].startswith("FAILED after: contract_failed: 2 contract tests failed on after")
    assert "    ValueError: [bold]no area" in lines
    assert "not run: 1 tests: no CUDA device" in lines
    assert lines[-1] == "report: /r/report.json"
