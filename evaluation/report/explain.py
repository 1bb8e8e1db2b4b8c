"""A report in plain words: what each axis means, what went wrong, and what to do about it."""

from pathlib import Path

from jsonschema import ValidationError as SchemaError
from pydantic import ValidationError

from evaluation.report.models import Report, Status
from evaluation.suite.result import Failure, FailureKind, GraderError, exit_code

_STATUS: dict[Status, str] = {
    "pass": "passes",
    "fail": "fails",
    "inconclusive": "cannot be told from this run",
    "not_measured": "was not measured, which is not a pass",
}
_AXES = {
    "correctness": "Whether after computes what it must",
    "deployability": "Whether after can do what the upgrade promises",
    "speed": "Whether after is faster",
    "integrity": "Whether the results can be believed",
}
MEANINGS: dict[FailureKind, str] = {
    FailureKind.UNREADABLE_TREE: "A file of the tree cannot be copied. Look at its permissions.",
    FailureKind.NO_PACKAGE: "The folder holds no package mmdit. Name the folder that has mmdit/__init__.py in it.",
    FailureKind.SYNTAX_ERROR: "A file of the package is not valid Python.",
    FailureKind.IMPORT_ERROR: "`import mmdit` raises. It must work with torch alone: no GPU, no Triton.",
    FailureKind.IMPORT_HANG: "`import mmdit` does not return.",
    FailureKind.IMPORT_EXIT: "`import mmdit` ends the process instead of returning.",
    FailureKind.IMPORT_CRASHED: "`import mmdit` is ended by a signal, as by a fault in compiled code.",
    FailureKind.LIMIT_BROKEN: "The tests took more of the machine than a candidate may, and were stopped.",
    FailureKind.TIMEOUT: "The tests did not end in time. --timeout gives them more.",
    FailureKind.CRASHED: "The process that ran the tests died.",
    FailureKind.NO_REPORT: "The tests stopped in the middle, without a word.",
    FailureKind.INVALID_REPORT: "What pytest left cannot be read.",
    FailureKind.REPORT_MISMATCH: "What pytest reports contradicts how it ended.",
    FailureKind.COLLECTION_ERROR: "A test file cannot be imported.",
    FailureKind.INTERRUPTED: "The tests were interrupted from within.",
    FailureKind.INTERNAL_ERROR: "pytest itself failed.",
    FailureKind.PYTEST_USAGE: "pytest could not start.",
    FailureKind.NO_TESTS: "There was nothing to run.",
    FailureKind.EXPECTATION_MISSING: "A test says neither contract nor upgrade.",
    FailureKind.SUITE_FORGED: "Results contradict what a run leaves behind: they were made, not measured.",
    FailureKind.TREE_CHANGED: "The tree changed its own files while it was tested. It must not.",
    FailureKind.GRADER_CHANGED: "Files of the grader or of the tests changed during the run.",
    FailureKind.CONTRACT_FAILED: "Tests that every tree must pass failed. Begin with the first.",
    FailureKind.UPGRADE_PASSED_ON_BEFORE: "Tests of the upgrade pass without it: they do not test it.",
    FailureKind.UPGRADE_FAILED_ON_AFTER: "Tests of the upgrade failed: after does not yet do all that it promises.",
    FailureKind.UNDECLARED_OUTCOME: "Tests were skipped or expected to fail, which no test of this suite may.",
    FailureKind.MISSING_TESTS: "Tests ran on one tree only.",
    FailureKind.EXPECTATION_DIFFERS: "The same tests were declared or left out differently on the two trees.",
    FailureKind.WORKER_LIMIT_BROKEN: "Its numeric or timed cases took more of the machine than they may: stopped.",
    FailureKind.WORKER_TIMEOUT: "The numeric or timed cases did not end in time. --timeout gives them more.",
    FailureKind.WORKER_CRASHED: "The process that ran the numeric or timed cases died.",
    FailureKind.WORKER_NO_RESULT: "The process that ran the numeric or timed cases ended before it had done them.",
    FailureKind.NUMERICS_WRONG: "What it computes is further from the truth than rounding explains, or malformed.",
    FailureKind.TIMED_OUTPUT_WRONG: "What it gives while it is timed is wrong.",
    FailureKind.SPEED_FORGED: "What it tells of its times contradicts the grader's clock, or what machines can do.",
    FailureKind.SPEED_NOT_SHOWN: "--require speed asks for a faster after than was shown.",
    FailureKind.SPEED_NOT_MEASURED: "--require speed asks for the fused path's speed, which needs a GPU.",
    FailureKind.GRADER_ERROR: "The grader could not do its work. This says nothing about either tree.",
}
_SHOWN = 3


def read_report(file: Path) -> Report:
    """Raises GraderError unless `file` is a report of this version's form."""
    try:
        return Report.model_validate_json(file.read_bytes())
    except (OSError, ValidationError, SchemaError) as error:
        raise GraderError(f"{file} is not a report that can be read: {error}") from error


def explain(report: Report) -> str:
    """Some lines for a person: the outcome, each axis, each failure with what it names first."""
    lines = [_outcome(report), ""]
    lines += [f"{_AXES[name]}: it {_STATUS[axis.status]} ({axis.reason})." for name, axis in report.verdict]
    problems = {case.name: "; ".join(case.problems) for case in report.numerics.after.cases if case.problems}
    problems |= {test.nodeid: test.message or "" for test in report.results.after.tests if test.message}
    for failure in report.failures:
        lines += ["", *_failure(failure, problems)]
    if report.findings:
        lines += ["", f"{len(report.findings)} places of after are worth reading, though they decide nothing:"]
        lines += [f"  {each.file}:{each.line}: {each.message}" for each in report.findings]
    return "\n".join(lines)


def _outcome(report: Report) -> str:
    code = exit_code(report.failures)
    if code == 3:
        return "There is no verdict: the grader, or the tree it compares against, could not do its part (exit code 3)."
    if code == 1:
        return f"The verdict is a failure (exit code 1), for {len(report.failures)} reason(s)."
    return f"The verdict is a success (exit code 0): {report.comparison.improvement_summary}."


def _failure(failure: Failure, problems: dict[str, str]) -> list[str]:
    tree = f" on {failure.tree}" if failure.tree else ""
    lines = [f"{failure.kind}{tree}: {MEANINGS[failure.kind]}", f"  {failure.message}"]
    for name in failure.nodeids[:_SHOWN]:
        lines.append(f"  - {name}" + (f": {problems[name]}" if name in problems else ""))
    return lines
