"""Shows failures, and tests that were not run, to a person."""

from collections import Counter
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape

from evaluation.suite.result import Failure, NotRun

_SHOWN = 10


def print_failures(console: Console, failures: tuple[Failure, ...], messages: Mapping[str, str | None]) -> None:
    """Each failure, and under it the first tests or cases that it names with what is wrong."""
    for failure in failures:
        tree = f"{failure.tree}: " if failure.tree else ""
        console.print(f"[red]{tree}{failure.kind}[/] {escape(failure.message)}", soft_wrap=True)
        for nodeid in failure.nodeids[:_SHOWN]:
            message = messages.get(nodeid)
            console.print(f"  {escape(nodeid)}" + (f"\n    {escape(message)}" if message else ""), soft_wrap=True)
        if len(failure.nodeids) > _SHOWN:
            console.print(f"  ... and {len(failure.nodeids) - _SHOWN} more")


def print_not_run(console: Console, not_run: tuple[NotRun, ...]) -> None:
    for reason, number in Counter(each.reason for each in not_run).items():
        console.print(f"[yellow]not run[/]: {number} tests: {escape(reason)}", soft_wrap=True)
