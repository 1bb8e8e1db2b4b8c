"""What a person reads at the end of a run: the verdict first, then why, then the numbers."""

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evaluation.judge.record import NumericsRun
from evaluation.judge.scan import RULES
from evaluation.judge.speed_record import Speed
from evaluation.report.models import Report, Status, TreeResults
from evaluation.suite.result import exit_code
from evaluation.suite.show import print_failures, print_not_run

_STYLES: dict[Status, str] = {"pass": "green", "fail": "red", "inconclusive": "yellow", "not_measured": "dim"}
_WORDS = {0: "[bold green]SUCCESS[/]", 1: "[bold red]FAILED[/]", 3: "[bold yellow]NO VERDICT[/]"}


def print_report(console: Console, report: Report, file: Path) -> None:
    reason = report.error or report.comparison.improvement_summary
    console.print(f"\n{_WORDS[exit_code(report.failures)]} {escape(reason)}\n", soft_wrap=True)
    print_failures(console, report.failures, _messages(report))
    console.print(_axes(report))
    console.print(_counts(report))
    if report.speed.cases:
        console.print(_times(report.speed))
    print_not_run(console, report.results.after.not_run)
    for each in report.findings:
        place = f"{each.file}:{each.line}: {each.message}: {RULES[each.rule]}"
        console.print(f"[yellow]to read[/]: {escape(place)}", soft_wrap=True)
    console.print(f"report: {file}", soft_wrap=True)


def _messages(report: Report) -> dict[str, str | None]:
    """What is wrong by the name of a test or of a numeric case; where both trees have it, after's."""
    tests = (*report.results.before.tests, *report.results.after.tests)
    numbers = (*report.numerics.before.cases, *report.numerics.after.cases)
    return {test.nodeid: test.message for test in tests} | {
        case.name: "; ".join(case.problems) for case in numbers if case.problems
    }


def _axes(report: Report) -> Table:
    table = Table("axis", "status", "reason")
    for name, axis in report.verdict:
        table.add_row(name, f"[{_STYLES[axis.status]}]{axis.status}[/]", escape(axis.reason))
    return table


def _counts(report: Report) -> Table:
    table = Table("tests", "before", "after")
    for expectation in ("contract", "upgrade"):
        columns = [_count(results, expectation) for results in (report.results.before, report.results.after)]
        table.add_row(expectation, *columns)
    table.add_row("numeric", *(_numbers(run) for run in (report.numerics.before, report.numerics.after)))
    seconds = (report.before.tests.duration_seconds, report.after.tests.duration_seconds)
    table.add_row("seconds", *(f"{each:.0f}" for each in seconds))
    return table


def _times(speed: Speed) -> Table:
    """Timed cases; `what` was timed is said, as a fallback is not the fused path."""
    table = Table(f"timed: {speed.what}", "before", "after", "before / after", "may be noise", "after is")
    for case in speed.cases:
        medians = {(each.worker, each.contender): each.median_seconds for each in case.contenders}
        told = [
            f"{name} {1e3 * seconds:.4g} ms" if name and (seconds := medians[worker, name]) else ""
            for worker, name in (("before", case.baseline), ("after", case.contender))
        ]
        noise = "" if case.noise_floor is None else f"{case.noise_floor:.3g}"
        table.add_row(escape(case.name), *told, escape(str(case.ratio or "")), noise, case.outcome)
    return table


def _numbers(run: NumericsRun) -> str:
    """Outcomes of the numeric cases, and the largest error as a share of its bound."""
    shares = [case.worst.error / case.worst.bound for case in run.cases if case.worst and case.worst.error is not None]
    counts = Counter("passed" if case.status == "pass" else "failed" for case in run.cases)
    told = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    return f"{told}, at most {max(shares):.2g} of the bound" if shares else told or "none"


def _count(results: TreeResults, expectation: str) -> str:
    outcomes = Counter(case.outcome for case in results.tests if case.expectation == expectation)
    outcomes["not run"] = sum(each.expectation == expectation for each in results.not_run)
    return ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items() if number) or "none"
