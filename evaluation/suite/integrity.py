"""Whether a run of the suite can be believed: its report against what only a run that took place leaves behind."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from evaluation.suite.instrument import Instrumented
from evaluation.suite.result import Evidence, FailureKind, TreeProblem

_IGNORED = {"__pycache__", "reports", ".pytest_cache", ".ruff_cache"}


def check_traces(outcomes: Sequence[Mapping[str, str]], instrumented: Instrumented) -> Evidence:
    """Raise TreeProblem(SUITE_FORGED) where outcomes by test id, those of each of the processes that shared the suite,
    contradict the canaries or the bodies reached there.
    """
    bodies = 0
    for process, told in enumerate(outcomes):
        reached = instrumented.reached(process)
        bodies += sum(reached.values())
        if wrong := _contradictions(told, reached, instrumented):
            more = f" (and {len(wrong) - 1} more contradictions)" if len(wrong) > 1 else ""
            raise TreeProblem(FailureKind.SUITE_FORGED, f"the results contradict themselves: {wrong[0]}{more}")
    return Evidence(canary_file=instrumented.canary_file, canaries=len(instrumented.canaries), bodies_reached=bodies)


def _contradictions(outcomes: Mapping[str, str], reached: Counter[str], instrumented: Instrumented) -> list[str]:
    wrong = []
    seen = {nodeid.rpartition("::")[2]: nodeid for nodeid in outcomes if instrumented.is_canary(nodeid)}
    for name, expected in instrumented.canaries.items():
        got = outcomes[seen[name]] if name in seen else "nothing"
        if got != expected:
            wrong.append(f"a test that must have the outcome {expected} has {got}")
    if "" in reached:
        wrong.append(f"{reached['']} lines in the log of reached ends that no test writes")
    passed = Counter(instrumented.function(nodeid) for nodeid, outcome in outcomes.items() if outcome == "passed")
    for function, count in passed.items():
        if reached[function] < count:
            wrong.append(f"{count} passes of {function}, whose end was reached {reached[function]} times")
    return wrong


def check_ids(reported: Iterable[str], collected: set[str]) -> None:
    """Raise TreeProblem(SUITE_FORGED) unless the tests are those that the grader itself collects from its copy."""
    found = set(reported)
    for these, told in ((collected - found, "are not in the report"), (found - collected, "are not in the suite")):
        if these:
            why = f"{len(these)} tests {told}: {min(these)}"
            raise TreeProblem(FailureKind.SUITE_FORGED, why, tuple(sorted(these)))


def digest_of(*roots: Path) -> str:
    """Of the names and bytes of all files below `roots`, caches and reports left out."""
    total = hashlib.sha256()
    for root in roots:
        for file in sorted(root.rglob("*")):
            if file.is_file() and not _IGNORED & set(file.relative_to(root).parts) and file.suffix != ".pyc":
                total.update(f"{file.relative_to(root)}\0{file.is_symlink()}\0".encode())
                total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()
