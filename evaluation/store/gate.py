"""A regression gate: rules that a run must keep against a baseline."""

import math
from collections.abc import Sequence

from evaluation.store.catalogue import Catalogue
from evaluation.store.compare import compare
from evaluation.store.errors import StoreError
from evaluation.store.forms import Difference, GateRecord, GateResult, Rule, Statistic


def gate(
    catalogue: Catalogue, base: str, run: str, rules: Sequence[Rule], *, statistic: Statistic = "p50"
) -> GateRecord:
    """Raises StoreError as `compare` does, and for a rule whose metric neither run has."""
    if not rules:
        raise StoreError("a gate without a rule lets everything pass: expected one or more")
    results = []
    for rule in rules:
        found = compare(catalogue, base, [run], metrics=[rule.metric], statistic=statistic)
        results += [_judge(rule, difference) for difference in found.differences]
    passed = all(each.kept or each.rule.severity == "warning" for each in results)
    return GateRecord(base=found.base, run=found.differences[0].run, results=tuple(results), passed=passed)


def _judge(rule: Rule, found: Difference) -> GateResult:
    if found.change is None or found.base is None:
        return GateResult(rule=rule, difference=found, kept=False, reason=found.judgement.replace("_", " "))
    worse = -found.change if rule.higher_is_better else found.change
    percent = 100 * worse / abs(found.base) if found.base else math.copysign(math.inf, worse) if worse else 0.0
    limits = ((rule.max_percent, percent, "%"), (rule.max_absolute, worse, ""))
    broken = [
        f"{by:.4g}{unit} worse, {most:g}{unit} allowed" for most, by, unit in limits if most is not None and by > most
    ]
    return GateResult(rule=rule, difference=found, kept=not broken, reason="; ".join(broken) or "within its limits")
