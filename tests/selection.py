"""Which tests run: each declares one expectation, and what is not run is counted and named, never passed."""

from collections import Counter
from typing import Any

import pytest

EXPECTATIONS = ("contract", "upgrade")


def expectation(item: pytest.Item) -> str:
    """The one of contract and upgrade that a test is marked with; UsageError where it is not exactly one."""
    found = [name for name in EXPECTATIONS if item.get_closest_marker(name)]
    if len(found) != 1:
        raise pytest.UsageError(f"{item.nodeid}: expected one marker of {EXPECTATIONS}, got {found}")
    return found[0]


class Selection:
    """Pytest plugin that leaves out what this run cannot or shall not run, and says so everywhere it reports.

    reasons: why tests of a marker are not run, None where they are.
    """

    def __init__(self, reasons: dict[str, str | None]) -> None:
        self.reasons = reasons
        self.not_run: list[dict[str, str]] = []

    def reason_not_to_run(self, item: pytest.Item) -> str | None:
        marked = (reason for mark, reason in self.reasons.items() if item.get_closest_marker(mark))
        return next(filter(None, marked), None)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        kept, left_out = [], []
        for item in items:
            entry = {"nodeid": item.nodeid, "expectation": expectation(item)}
            if reason := self.reason_not_to_run(item):
                self.not_run.append({**entry, "reason": reason})
            (left_out if reason else kept).append(item)
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.not_run:
            return
        terminalreporter.section("not run")
        for reason, count in Counter(entry["reason"] for entry in self.not_run).items():
            terminalreporter.line(f"{count} tests ({reason})")
        for entry in self.not_run:
            terminalreporter.line(f"NOT RUN {entry['nodeid']}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_json_runtest_metadata(self, item: pytest.Item) -> dict[str, str]:
        return {"expectation": expectation(item)}

    @pytest.hookimpl(optionalhook=True)
    def pytest_json_modifyreport(self, json_report: dict[str, Any]) -> None:
        json_report["not_run"] = self.not_run
