"""The two runs as JUnit XML, for tools that show test results."""

import re
from xml.etree import ElementTree

from evaluation.report.models import Report, TreeResults
from evaluation.suite.result import CaseResult, Role

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: Report) -> str:
    """A testsuite for the verdict, so that a run without tests is not green either, and one per tree.

    Speed that was not shown counts as skipped: whether it is a failure, the verdict says.
    A test case fails when it did not do what was declared: an upgrade test that fails on before is a success.
    """
    root = ElementTree.Element("testsuites", name="mmdit-kata", time=f"{report.duration_seconds:.3f}")
    speed, shown = report.verdict.speed, report.verdict.speed.status == "pass"
    counts = {"tests": "2", "failures": str(int(not report.success)), "skipped": str(int(not shown))}
    suite = ElementTree.SubElement(root, "testsuite", counts, name="verdict")
    verdict = ElementTree.SubElement(suite, "testcase", classname="evaluation", name="verdict")
    if report.error:
        ElementTree.SubElement(verdict, "failure", message=_clean(report.error))
    element = ElementTree.SubElement(suite, "testcase", classname="evaluation", name="speed")
    if not shown:
        ElementTree.SubElement(element, "skipped", message=_clean(f"{speed.status}: {speed.reason}"))
    _add_suite(root, "after", report.results.after)
    _add_suite(root, "before", report.results.before)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_suite(root: ElementTree.Element, role: Role, results: TreeResults) -> None:
    surprises = {case.nodeid: why for case in results.tests if (why := _surprise(role, case))}
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=role,
        tests=str(results.summary.total),
        failures=str(len(surprises)),
        errors="0",
        skipped=str(len(results.not_run)),
        time=f"{sum(case.duration_seconds for case in results.tests):.3f}",
    )
    for case in results.tests:
        element = _add_case(suite, case.nodeid, f"{case.duration_seconds:.3f}")
        if case.nodeid in surprises:
            ElementTree.SubElement(element, "failure", message=_clean(surprises[case.nodeid]))
    for each in results.not_run:
        ElementTree.SubElement(_add_case(suite, each.nodeid, "0"), "skipped", message=_clean(each.reason))


def _add_case(suite: ElementTree.Element, nodeid: str, time: str) -> ElementTree.Element:
    file, _, name = nodeid.partition("::")
    attributes = {"classname": file.removesuffix(".py").replace("/", "."), "name": _clean(name), "time": time}
    return ElementTree.SubElement(suite, "testcase", attributes)


def _surprise(role: Role, case: CaseResult) -> str | None:
    """What is wrong with a test's outcome on the tree of this role; None when it is as declared."""
    if role == "before" and case.expectation == "upgrade":
        failed = case.outcome in ("failed", "error")
        return None if failed else f"{case.outcome} on before, where an upgrade test must fail"
    return case.message


def _clean(text: str) -> str:
    return _NOT_XML.sub("�", text)
