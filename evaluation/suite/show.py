"""Shows failures, and tests that were not run, to a person."""

from collections import Counter

from rich.console import Console
from rich.markup import escape

from evaluation.suite.result import CaseResult, Failure, NotRun

_SHOWN = 10


def print_failures(console: Console, failures: tuple[Failure, ...], cases: dict[str, CaseResult]) -> None:
    """Each failure, and under it the first tests that it names with the line that failed."""
    for failure in failures:
        tree = f"{failure.tree}: " if failure.tree else ""
        console.print(f"[red]{tree}{failure.kind}[/] {escape(failure.message)}", soft_wrap=True)
        for nodeid in failure.nodeids[:_SHOWN]:
            message = cases[nodeid].message if nodeid in cases else None
            console.print(f"  {escape(nodeid)}" + (f"\n    {escape(message)}" if message else ""), soft_wrap=True)
        if len(failure.nodeids) > _SHOWN:
            console.print(f"  ... and {len(failure.nodeids) - _SHOWN} more")


def print_not_run(console: Console, not_run: tuple[NotRun, ...]) -> None:
    for reason, number in Counter(each.reason for each in not_run).items():
        console.print(f"[yellow]not run[/]: {number} tests: {escape(reason)}", soft_wrap=True)
