"""Runs beside a baseline, metric by metric."""

from collections.abc import Sequence

from evaluation.store.catalogue import Catalogue
from evaluation.store.errors import StoreError
from evaluation.store.forms import Difference, Judgement, RunComparison, Statistic
from evaluation.store.models import MetricSummary, unlike


def compare(
    catalogue: Catalogue,
    base: str,
    runs: Sequence[str],
    *,
    metrics: Sequence[str] = (),
    statistic: Statistic = "p50",
    top: int | None = None,
    anyway: bool = False,
) -> RunComparison:
    """`top`: only that many, by the largest change in percent. Raises StoreError for runs that are not whole, for a
    metric that no run has, and, unless `anyway`, for runs that are not like the base, with what differs.
    """
    baseline, others = catalogue.whole(base), [catalogue.whole(run) for run in runs]
    likeness = baseline.likeness()
    reasons = tuple(f"{run.id}: {why}" for run in others if (why := unlike(likeness, run.likeness())))
    if reasons and not anyway:
        told = "\n  ".join(reasons)
        raise StoreError(f"only like is compared with like, and these differ from {baseline.id}:\n  {told}")
    expected = catalogue.summaries(baseline.id, metrics)
    once = [name for name, each in expected.items() if each.quartile_distance is None]
    spreads = catalogue.spreads(baseline.id, once, statistic) if once else {}
    found: list[Difference] = []
    for run in others:
        got = catalogue.summaries(run.id, metrics)
        for name in sorted({*expected, *got}):
            found.append(_difference(run.id, name, expected.get(name), got.get(name), statistic, spreads.get(name)))
    if not found:
        raise StoreError(f"none of the runs has a metric like {' or '.join(metrics) or '*'}")
    if top is not None:
        found = sorted(found, key=lambda each: -abs(each.percent or 0.0))[:top]
    return RunComparison(base=baseline.id, statistic=statistic, differences=tuple(found), unlike=reasons)


def _difference(
    run: str,
    metric: str,
    base: MetricSummary | None,
    other: MetricSummary | None,
    statistic: Statistic,
    spread: float | None,
) -> Difference:
    a, b = (None if each is None else getattr(each, statistic) for each in (base, other))
    noise, change = _noise(base, other, spread), None
    if a is None:
        judgement: Judgement = "missing_in_base"
    elif b is None:
        judgement = "missing_in_run"
    else:
        change = b - a
        judgement = "noise_unknown"
        if noise is not None:
            judgement = "outside_noise" if abs(change) > noise else "within_noise"
    percent = 100 * change / abs(a) if change is not None and a else None
    return Difference(
        run=run, metric=metric, base=a, value=b, change=change, percent=percent, noise=noise, judgement=judgement
    )


def _noise(base: MetricSummary | None, other: MetricSummary | None, spread: float | None) -> float | None:
    own = [each.quartile_distance for each in (base, other) if each is not None]
    measured = [distance for distance in own if distance is not None]
    return max(measured) if measured and len(measured) == len(own) else spread
