"""Candidates of the fake kata that are wrong and forge what the suite says of them."""

from evaluation.suite.integrity import check_ids
from evaluation.suite.result import Failure, FailureKind, TreeProblem
from evaluation.suite.run import collect_ids
from evaluation.tests.conftest import Kata

INIT = "after/mmdit/__init__.py"
PROCESSES = 2  # that share the suite
WRONG = "\ndef area(_): return 1\n"
MAKES_EVERY_REPORT_PASS = """
from _pytest.reports import TestReport
_make = TestReport.from_item_and_call.__func__
def _passing(cls, item, call):
    call.excinfo = None
    return _make(cls, item, call)
TestReport.from_item_and_call = classmethod(_passing)
"""
SKIPS_EVERY_BODY = """
import _pytest.python
_pytest.python.Function.runtest = lambda self: None
"""
# It lets fail what does not come from a test that uses the candidate, so that no canary tells.
SPARES_CANARIES = """
from _pytest.reports import TestReport
_make = TestReport.from_item_and_call.__func__
def _passing(cls, item, call):
    if "square" in item.nodeid:
        call.excinfo = None
    return _make(cls, item, call)
TestReport.from_item_and_call = classmethod(_passing)
"""
REWRITES_THE_REPORT = """
import pytest_jsonreport.plugin as plugin
_save = plugin.JSONReport.save_report
def _forged(self, path):
    for test in self.report["tests"]:
        test["outcome"] = "passed"
        for stage in ("setup", "call", "teardown"):
            test[stage] = {"outcome": "passed", "duration": 0.0}
    return _save(self, path)
plugin.JSONReport.save_report = _forged
"""
ENDS_WITH_ZERO = """
import atexit, os
atexit.register(os._exit, 0)
"""
LEAVES_TESTS_OUT = """
from _pytest.python import PyCollector
_collect = PyCollector.collect
PyCollector.collect = lambda self: [item for item in _collect(self) if item.name != "test_perimeter"]
"""

FORGES_CODE_AND_REPORT = ENDS_WITH_ZERO + REWRITES_THE_REPORT.replace(
    "    return _save", '    self.report["exitcode"] = 0\n    return _save'
)
DISARMS_RAISES = """
import contextlib, pytest
pytest.raises = lambda *_, **__: contextlib.nullcontext()
"""
FORGES_ALL_THAT_IT_KNOWS = """
import atexit, json, os, sys
_file = next(each.partition("=")[2] for each in sys.argv if each.startswith("--json-report-file"))
def _forge():
    report = json.load(open(_file))
    for test in report["tests"]:
        if "square" in test["nodeid"]:
            test["outcome"] = "passed"
            for stage in ("setup", "call", "teardown"):
                test[stage] = {"outcome": "passed", "duration": 0.0}
    json.dump(report, open(_file, "w"))
atexit.register(_forge)
"""

# Tests that are imported after the first one lose what they assert, and keep all else.
DISARMS_LATER_TESTS = """
for _file in __import__("pathlib").Path().rglob("test_zone.py"):
    _file.write_text(_file.read_text().replace("assert ", "assert True or "))
"""

# name: code, kind of failure, what it must tell
FORGERIES: dict[str, tuple[str, FailureKind, str]] = {
    "every report passes": (MAKES_EVERY_REPORT_PASS, FailureKind.SUITE_FORGED, "must have the outcome"),
    "no body runs": (SKIPS_EVERY_BODY, FailureKind.SUITE_FORGED, "must have the outcome failed has passed"),
    "canaries are spared": (SPARES_CANARIES, FailureKind.SUITE_FORGED, "whose end was reached 0 times"),
    "the report is rewritten": (REWRITES_THE_REPORT, FailureKind.REPORT_MISMATCH, "contradict"),
    "the exit code is changed": (ENDS_WITH_ZERO, FailureKind.REPORT_MISMATCH, "pytest ended with 0 but its report"),
    "report and exit code are forged": (
        FORGES_CODE_AND_REPORT,
        FailureKind.SUITE_FORGED,
        "must have the outcome",
    ),
    "pytest.raises is disarmed": (DISARMS_RAISES, FailureKind.SUITE_FORGED, "must have the outcome failed has passed"),
    "only its own tests are forged": (FORGES_ALL_THAT_IT_KNOWS, FailureKind.SUITE_FORGED, "whose end was reached 0"),
    "tests are left out": (LEAVES_TESTS_OUT, FailureKind.SUITE_FORGED, "1 tests are not in the report"),
    "it writes to the suite": (
        "\nopen('suite/test_square.py', 'a').write('#')",
        FailureKind.GRADER_CHANGED,
        "files of the suite's copy changed",
    ),
    "it changes its own files": (
        "\nimport os\nos.chmod(__file__, 0o600)\nopen(__file__, 'a').write('#')",
        FailureKind.TREE_CHANGED,
        "the tree changed its own files",
    ),
}


def forge(kata: Kata, code: str) -> tuple[Failure, ...]:
    """What the grader says of the fake kata's after, once it is wrong and runs `code` as well."""
    kata.append(INIT, WRONG + code)
    run = kata.run_after(processes=PROCESSES)
    if run.failures:
        return run.failures
    try:
        ids = [*(case.nodeid for case in run.cases), *(each.nodeid for each in run.not_run)]
        check_ids(ids, collect_ids(kata.settings()))
    except TreeProblem as problem:
        return (problem.failure("after"),)
    return ()
