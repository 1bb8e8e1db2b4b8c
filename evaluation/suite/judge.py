"""Says whether a tree did exactly what was declared for its role, and whether two runs can be compared."""

from collections.abc import Callable, Collection

from evaluation.suite.result import CaseResult, Failure, FailureKind, SuiteRun


def judge_tree(run: SuiteRun) -> tuple[Failure, ...]:
    """The failures of one run: contract tests pass on both trees, upgrade tests fail on before, pass on after."""
    if run.failures:
        return run.failures
    undeclared = _select(run, lambda case: case.outcome not in ("passed", "failed", "error"))
    contract = _select(run, lambda case: case.expectation == "contract" and _failed(case))
    if run.role == "before":
        upgrade_kind, verb = FailureKind.UPGRADE_PASSED_ON_BEFORE, "passed"
        upgrade = _select(run, lambda case: case.expectation == "upgrade" and case.outcome == "passed")
    else:
        upgrade_kind, verb = FailureKind.UPGRADE_FAILED_ON_AFTER, "failed"
        upgrade = _select(run, lambda case: case.expectation == "upgrade" and _failed(case))
    return (
        *_failure(FailureKind.CONTRACT_FAILED, run, contract, ("contract test", "failed")),
        *_failure(upgrade_kind, run, upgrade, ("upgrade test", verb)),
        *_failure(FailureKind.UNDECLARED_OUTCOME, run, undeclared, ("test", "neither passed nor failed")),
    )


def judge_pair(before: SuiteRun, after: SuiteRun) -> tuple[Failure, ...]:
    """Failures of the comparison: the same tests, run or left out, with the same expectation, on both trees."""
    if before.failures or after.failures:
        return ()
    seen_before, seen_after = _declared(before), _declared(after)
    failures = []
    for role, lacking in (("before", seen_after.keys() - seen_before), ("after", seen_before.keys() - seen_after)):
        if lacking:
            failures.append(
                Failure(
                    kind=FailureKind.MISSING_TESTS,
                    tree=role,
                    message=f"{_count(lacking)} of the other tree missing on {role}: {min(lacking)}",
                    nodeids=tuple(sorted(lacking)),
                )
            )
    differing = {each for each in seen_before.keys() & seen_after if seen_before[each] != seen_after[each]}
    if differing:
        failures.append(
            Failure(
                kind=FailureKind.EXPECTATION_DIFFERS,
                tree=None,
                message=f"{_count(differing)} declared or run differently on the two trees: {min(differing)}",
                nodeids=tuple(sorted(differing)),
            )
        )
    return tuple(failures)


def _declared(run: SuiteRun) -> dict[str, tuple[str, str]]:
    """By test id: the expectation, and why it was left out ("" when it ran)."""
    ran = {case.nodeid: (case.expectation, "") for case in run.cases}
    return ran | {each.nodeid: (each.expectation, each.reason) for each in run.not_run}


def _failed(case: CaseResult) -> bool:
    return case.outcome in ("failed", "error")


def _select(run: SuiteRun, wanted: Callable[[CaseResult], bool]) -> list[CaseResult]:
    return [case for case in run.cases if wanted(case)]


def _failure(
    kind: FailureKind, run: SuiteRun, cases: list[CaseResult], subject_and_verb: tuple[str, str]
) -> tuple[Failure, ...]:
    """No failure without cases, else one that tells the first case and names all."""
    if not cases:
        return ()
    first, (subject, verb) = cases[0], subject_and_verb
    told = f"{_count(cases, subject)} {verb} on {run.role}, first {first.nodeid}"
    told += f": {first.message}" if first.message else ""
    return (Failure(kind=kind, tree=run.role, message=told, nodeids=tuple(case.nodeid for case in cases)),)


def _count(things: Collection[object], noun: str = "test") -> str:
    return f"{len(things)} {noun}" + ("s" if len(things) != 1 else "")
