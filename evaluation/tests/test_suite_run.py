"""Running the suite on a tree: what happened is read from pytest's file, and every way to break it has a name."""

import json
import os
from pathlib import Path

import pytest

from evaluation.suite import pytest_report
from evaluation.suite.pytest_report import read_pytest_report
from evaluation.suite.result import FailureKind, TreeProblem
from evaluation.suite.stage import staged
from evaluation.tests.conftest import Kata

SUITE = "suite/test_square.py"
INIT = "after/mmdit/__init__.py"
CONFTEST = "suite/conftest.py"

BROKEN_RUNS = {
    "collection": (SUITE, "import no_such_thing", FailureKind.COLLECTION_ERROR, "No module named 'no_such_thing'"),
    "conftest": (CONFTEST, "raise ValueError", FailureKind.PYTEST_USAGE, "a conftest failed"),
    "no-tests": (CONFTEST, "def pytest_ignore_collect(): return True", FailureKind.NO_TESTS, "collected no tests"),
    "no-upgrade": (SUITE, "del test_perimeter, test_large_perimeter", FailureKind.NO_TESTS, "no upgrade test ran"),
    "unmarked": (SUITE, "def test_unmarked(): pass", FailureKind.EXPECTATION_MISSING, "test_unmarked"),
    "internal": (CONFTEST, "def pytest_runtestloop(): 1 / 0", FailureKind.INTERNAL_ERROR, "failed internally"),
    "interrupted": (INIT, "def area(_): raise KeyboardInterrupt", FailureKind.INTERRUPTED, "was interrupted"),
    "exits": (INIT, "import os\ndef area(_): os._exit(0)", FailureKind.NO_REPORT, "exit code 0 in the middle"),
    "exits-1": (INIT, "import os\ndef area(_): os._exit(1)", FailureKind.NO_REPORT, "exit code 1 in the middle"),
    "exits-77": (INIT, "import os\ndef area(_): os._exit(77)", FailureKind.CRASHED, "unknown exit code 77"),
    "dies": (INIT, "import os\ndef area(_): os.kill(os.getpid(), 11)", FailureKind.CRASHED, "signal 11"),
    "hangs": (INIT, "def area(_):\n    while True: pass", FailureKind.TIMEOUT, "did not end within 6 s"),
    "stops-early": (CONFTEST, "def pytest_runtest_logfinish(): 1 / 0", FailureKind.INTERNAL_ERROR, "internally"),
    "changes-code": (
        CONFTEST,
        "def pytest_sessionfinish(session): session.exitstatus = 0",
        FailureKind.REPORT_MISMATCH,
        "pytest ended with 0 but its report says 1",
    ),
    "nan": (CONFTEST, "NOT_RUN.append(float('nan'))", FailureKind.INVALID_REPORT, "NaN is not JSON"),
    "hides-tests": (
        CONFTEST,
        "def pytest_json_modifyreport(json_report): json_report['not_run'] = []",
        FailureKind.REPORT_MISMATCH,
        "1 tests were left out but 0 are named",
    ),
}


@pytest.mark.parametrize(("file", "code", "kind", "message"), BROKEN_RUNS.values(), ids=BROKEN_RUNS)
def test_a_broken_run_is_named(kata: Kata, file: str, code: str, kind: FailureKind, message: str):
    kata.append(file, code)
    (failure,) = kata.run_after(timeout=6 if kind is FailureKind.TIMEOUT else 60, processes=2).failures
    assert (failure.kind, failure.tree) == (kind, "after")
    assert message in failure.message


def test_a_whole_run_has_every_test_by_name(kata: Kata):
    run = kata.run_after()
    assert run.failures == ()
    assert run.return_code == 0
    assert [(case.name, case.outcome, case.expectation) for case in run.cases] == [
        ("test_area", "passed", "contract"),
        ("test_area_of_a_point", "passed", "contract"),
        ("test_perimeter", "passed", "upgrade"),
        ("test_large_perimeter", "passed", "upgrade"),
    ]
    assert [(each.nodeid, each.reason) for each in run.not_run] == [("test_square.py::test_on_a_gpu", "no CUDA device")]


def test_a_quick_run_names_what_it_left_out(kata: Kata):
    run = kata.run_after(quick=True)
    assert [each.reason for each in run.not_run] == ["no CUDA device", "quick run"]
    assert len(run.cases) == 3


def test_a_failing_test_carries_the_line_that_failed(kata: Kata):
    kata.append(INIT, "def area(side): raise ValueError(f'{__file__}\\nand more')")
    case = kata.run_after().cases[0]
    assert (case.outcome, case.message) == ("failed", "ValueError: after/mmdit/__init__.py")


def test_an_error_in_set_up_or_tear_down_is_not_a_pass(kata: Kata):
    kata.append(CONFTEST, "@pytest.fixture(autouse=True)\ndef broken():\n    yield\n    raise OSError('torn')")
    cases = kata.run_after().cases
    assert {(case.outcome, case.message) for case in cases} == {("error", "OSError: torn")}


WRITABLE = "import os; os.chmod(__file__, 0o600); os.chmod(os.path.dirname(__file__), 0o700)"


def test_the_tree_is_not_written_to(kata: Kata):
    kata.append(INIT, f"{WRITABLE}; open(__file__, 'a').write('x'); open(__file__ + '.new', 'w')")
    before = (kata.folder / INIT).read_bytes()
    assert kata.run_after().cases
    assert [path.name for path in (kata.after / "mmdit").iterdir()] == ["__init__.py"]
    assert (kata.folder / INIT).read_bytes() == before


def test_a_tree_is_copied_for_reading_only_and_gone_afterwards(kata: Kata):
    with staged(kata.after, "after") as stage:
        copies = [stage.tree, *stage.tree.rglob("*")]
        assert len(copies) >= 3
        assert not any(path.stat().st_mode & 0o222 for path in copies)
        assert os.access(stage.scratch, os.W_OK)
    assert not stage.tree.exists()


def test_a_link_in_a_tree_is_copied_as_a_link(kata: Kata):
    (kata.after / "loop").symlink_to(kata.after)
    with staged(kata.after, "after") as stage:
        assert (stage.tree / "loop").is_symlink()


@pytest.mark.usefixtures("known_machine")
def test_no_suite_runs_when_one_of_the_trees_cannot_be_imported(kata: Kata):
    kata.append(INIT, "1 / 0")
    pair = kata.grade()
    assert (pair.before.return_code, pair.before.failures, len(pair.failures)) == (None, (), 1)


def test_the_environment_of_a_run_is_built_by_the_grader(kata: Kata, monkeypatch: pytest.MonkeyPatch):
    for name in ("PYTEST_ADDOPTS", "PYTHONPATH", "MMDIT_FUSED", "TRITON_INTERPRET", "REPO_PATH"):
        monkeypatch.setenv(name, "outside")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    told_file = kata.folder / "environment.json"
    kata.append(INIT, f"import os, json; json.dump(dict(os.environ), open({str(told_file)!r}, 'w'))")
    assert kata.run_after().cases
    told = json.loads(told_file.read_text())
    assert "outside" not in told.values()
    assert not {"PYTEST_ADDOPTS", "PYTHONPATH", "MMDIT_FUSED", "TRITON_INTERPRET"} & set(told)
    assert (told["MMDIT_TEST_SEED"], told["MMDIT_TEST_DEVICE"], told["CUDA_VISIBLE_DEVICES"]) == ("7", "cpu", "3")
    assert told["PATH"]
    assert Path(told["TMPDIR"]) in Path(told["TRITON_CACHE_DIR"]).parents


def report_with(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "pytest.json"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "valid dictionary"),
        ("{}", "exitcode: Field required"),
        ('{"exitcode": 0, "summary": {"collected": 0}, "tests": [{"nodeid": "a", "outcome": "rerun"}]}', "outcome"),
        ("[" * 100_000, "recursion"),
    ],
    ids=["empty", "list", "no-fields", "unknown-outcome", "deep"],
)
def test_a_report_of_another_form_is_invalid(tmp_path: Path, text: str, message: str):
    with pytest.raises(TreeProblem, match=message) as caught:
        read_pytest_report(report_with(tmp_path, text))
    assert caught.value.kind is FailureKind.INVALID_REPORT


STAGE = {"outcome": "passed", "duration": 0.0}
WHOLE = {"setup": STAGE, "call": STAGE, "teardown": STAGE}


def contents(*tests: dict, exitcode: int = 0, collected: int | None = None) -> str:
    count = len(tests) if collected is None else collected
    return json.dumps({"exitcode": exitcode, "summary": {"collected": count}, "tests": tests})


def entry(nodeid: str, expectation: str = "contract", **stages: dict) -> dict:
    return {"nodeid": nodeid, "outcome": "passed", "metadata": {"expectation": expectation}, **stages}


def test_a_test_of_which_a_stage_is_missing_did_not_pass(tmp_path: Path):
    report = read_pytest_report(report_with(tmp_path, contents(entry("a::b", setup=STAGE, call=STAGE))))
    (case,) = report.cases(str)
    assert (case.outcome, case.message) == ("error", "it did not run to its end")


@pytest.mark.parametrize(
    ("return_code", "exitcode", "collected", "message"),
    [
        (1, 0, 2, "pytest ended with 1 but its report says 0"),
        (1, 1, 2, "pytest ended with 1, which the outcomes in its report contradict"),
        (0, 0, 3, "1 of 3 collected tests have no outcome"),
    ],
)
def test_a_report_that_disagrees_with_the_run_is_a_mismatch(
    tmp_path: Path, return_code: int, exitcode: int, collected: int, message: str
):
    tests = (entry("a", **WHOLE), entry("b", "upgrade", **WHOLE))
    text = contents(*tests, exitcode=exitcode, collected=collected)
    report = read_pytest_report(report_with(tmp_path, text))
    with pytest.raises(TreeProblem, match=message) as caught:
        report.check(return_code)
    assert caught.value.kind is FailureKind.REPORT_MISMATCH


def test_a_report_too_large_to_read_is_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pytest_report, "_MAX_BYTES", 10)
    with pytest.raises(TreeProblem, match="larger than 10 bytes"):
        read_pytest_report(report_with(tmp_path, contents()))
