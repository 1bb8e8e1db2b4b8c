"""Turns two runs of the suite and their failures into a report."""

from collections import Counter, defaultdict
from datetime import datetime, timedelta

from evaluation.judge.record import Numerics
from evaluation.judge.scan import Finding
from evaluation.judge.speed_record import Speed
from evaluation.report.models import (
    Axis,
    Comparison,
    Environment,
    Report,
    Results,
    RunSettings,
    Summary,
    TestRun,
    TreeResults,
    TreeSection,
    Verdict,
)
from evaluation.report.speed_axis import speed_axis, unmet
from evaluation.suite.pair import PairRun
from evaluation.suite.result import (
    INTEGRITY_PROBLEMS,
    SPEED_DEMANDS,
    WORKER_PROBLEMS,
    Expectation,
    Failure,
    FailureKind,
    SuiteRun,
)

_FORGED = INTEGRITY_PROBLEMS | {FailureKind.REPORT_MISMATCH}
_OF_SPEED = SPEED_DEMANDS | {FailureKind.SPEED_FORGED}
_SAYS_NOTHING_OF: dict[Expectation, frozenset[FailureKind]] = {
    "contract": _OF_SPEED | {FailureKind.UPGRADE_PASSED_ON_BEFORE, FailureKind.UPGRADE_FAILED_ON_AFTER},
    "upgrade": _OF_SPEED
    | WORKER_PROBLEMS
    | {FailureKind.CONTRACT_FAILED, FailureKind.NUMERICS_WRONG, FailureKind.TIMED_OUTPUT_WRONG},
}


def build_report(
    pair: PairRun,
    *,
    run_id: str,
    started_at: datetime,
    duration_seconds: float,
    settings: RunSettings,
    environment: Environment,
    findings: tuple[Finding, ...] = (),
) -> Report:
    """The verdict on a pair of runs: success when nothing failed."""
    before, after = pair.before, pair.after
    failures = (*pair.failures, *unmet(settings.require, speed_axis(pair.speed, pair.failures)))
    comparison = _compare(before, after, passed_gate=not failures)
    return Report(
        run_id=run_id,
        started_at=started_at,
        finished_at=started_at + timedelta(seconds=duration_seconds),
        duration_seconds=duration_seconds,
        settings=settings,
        environment=environment,
        before=_section(before, failures),
        after=_section(after, failures),
        comparison=comparison,
        results=Results(before=_results(before), after=_results(after), comparison=comparison),
        numerics=pair.numerics,
        speed=pair.speed,
        findings=findings,
        verdict=verdict(before, after, pair.numerics, pair.speed, failures),
        failures=failures,
        success=not failures,
        error=headline(failures),
    )


def verdict(
    before: SuiteRun, after: SuiteRun, numerics: Numerics, speed: Speed, failures: tuple[Failure, ...]
) -> Verdict:
    """The axes, each from what was recorded and nothing else."""
    return Verdict(
        correctness=_correctness(after, numerics, failures),
        deployability=_axis("upgrade", after, failures),
        speed=speed_axis(speed, failures),
        integrity=_integrity(before, after, failures),
    )


def headline(failures: tuple[Failure, ...]) -> str | None:
    """One line that names the cause; None when there is nothing to name."""
    if not failures:
        return None
    first, more = failures[0], len(failures) - 1
    tree = f"{first.tree}: " if first.tree else ""
    return f"{tree}{first.kind}: {first.message}" + (f" (and {more} more)" if more else "")


def _correctness(after: SuiteRun, numerics: Numerics, failures: tuple[Failure, ...]) -> Axis:
    """The contract tests' axis, which passes only where the numeric cases do as well."""
    axis, cases = _axis("contract", after, failures), numerics.after.cases
    wrong = sum(case.status == "fail" for case in cases)
    if wrong:
        return Axis(status="fail", reason=f"{wrong} of {len(cases)} numeric cases are wrong; {axis.reason}")
    told = f"; {len(cases)} numeric cases are as near to the oracle as vanilla" if axis.status == "pass" else ""
    return Axis(status=axis.status, reason=axis.reason + told)


def _integrity(before: SuiteRun, after: SuiteRun, failures: tuple[Failure, ...]) -> Axis:
    """Fail where after's results contradict themselves; nothing is known of a run that did not come to its end."""
    forged = tuple(each for each in failures if each.kind in _FORGED and each.tree == "after")
    if forged:
        return Axis(status="fail", reason=forged[0].message)
    if before.evidence is None or after.evidence is None:
        return Axis(status="inconclusive", reason=headline(failures) or "no run of the suite came to its end")
    canaries, bodies = after.evidence.canaries, after.evidence.bodies_reached
    reason = f"{canaries} canaries did as they must, {bodies} tests reached their last line, no file changed"
    return Axis(status="pass", reason=reason)


def _axis(expectation: Expectation, after: SuiteRun, failures: tuple[Failure, ...]) -> Axis:
    """Fail when `after` is at fault, inconclusive when something else keeps its passes from meaning anything."""
    cases = [case for case in after.cases if case.expectation == expectation]
    wrong = [case for case in cases if case.outcome != "passed"]
    if wrong:
        return Axis(status="fail", reason=f"{len(wrong)} of {len(cases)} {expectation} tests did not pass")
    doubts = tuple(failure for failure in failures if failure.kind not in _SAYS_NOTHING_OF[expectation])
    if doubts or not cases:
        blame = tuple(failure for failure in doubts if failure.tree == "after")
        return Axis(
            status="fail" if blame else "inconclusive",
            reason=headline(blame or doubts) or f"no {expectation} test ran",
        )
    left_out = sum(each.expectation == expectation for each in after.not_run)
    more = f", {left_out} were not run" if left_out else ""
    return Axis(status="pass", reason=f"{len(cases)} {expectation} tests passed{more}")


def _section(run: SuiteRun, failures: tuple[Failure, ...]) -> TreeSection:
    return TreeSection(
        tests=TestRun(
            passed=run.return_code == 0,
            as_declared=bool(run.cases) and not any(failure.tree == run.role for failure in failures),
            return_code=run.return_code,
            duration_seconds=run.duration_seconds,
            output=run.log_tail,
            evidence=run.evidence,
        )
    )


def _compare(before: SuiteRun, after: SuiteRun, passed_gate: bool) -> Comparison:
    passed_before = {case.nodeid: case.outcome == "passed" for case in before.cases}
    moves: dict[tuple[bool, bool], list[str]] = defaultdict(list)
    for case in after.cases:
        if case.nodeid in passed_before:
            moves[passed_before[case.nodeid], case.outcome == "passed"].append(case.nodeid)
    fixed, kept, broken, still_failing = (
        tuple(moves[move]) for move in ((False, True), (True, True), (True, False), (False, False))
    )
    return Comparison(
        passed_gate=passed_gate,
        improvement_summary=(
            f"{len(fixed)} tests that fail on before pass on after, {len(kept)} pass on both, "
            f"{len(broken) + len(still_failing)} fail on after, {len(after.not_run)} were not run"
        ),
        fail_to_pass=fixed,
        pass_to_pass=kept,
        pass_to_fail=broken,
        fail_to_fail=still_failing,
    )


def _results(run: SuiteRun) -> TreeResults:
    counts = Counter(case.outcome for case in run.cases)
    skipped = len(run.not_run) + counts["skipped"] + counts["xfailed"] + counts["xpassed"]
    return TreeResults(
        success=run.return_code == 0,
        exit_code=run.return_code,
        tests=run.cases,
        not_run=run.not_run,
        summary=Summary(
            total=len(run.cases) + len(run.not_run),
            passed=counts["passed"],
            failed=counts["failed"],
            errors=counts["error"],
            skipped=skipped,
        ),
    )
