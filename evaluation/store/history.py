"""A metric over runs: like with like only, and where it changed for good."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from evaluation.store.catalogue import Catalogue
from evaluation.store.errors import StoreError
from evaluation.store.forms import History, HistoryPoint, Statistic
from evaluation.store.models import Run, unlike

FEWEST = 6  # values in which a change can be told from noise
_SHORTEST = 3  # values between two changes
_PENALTY = 4.0  # of a change, in variances of the noise times log n


def history(
    catalogue: Catalogue,
    metric: str,
    *,
    statistic: Statistic = "p50",
    like: str | None = None,
    window: Literal["quick", "full"] | None = None,
    limit: int | None = None,
) -> History:
    """`like`: a run that the others must be like, in place of the newest; `window`: of evaluations, quick ones or
    full ones. Raises StoreError where no run has the metric.
    """
    measured = [(run, getattr(summary, statistic)) for run, summary in catalogue.measured(metric)]
    model = catalogue.whole(like) if like else _newest([run for run, _ in measured], window)
    if model is None:
        raise StoreError(f"no whole run{f' of the window {window}' if window else ''} has a metric {metric!r}")
    likeness = model.likeness()
    others = Counter(unlike(model, run) for run, _ in measured if run.likeness() != likeness)
    taken = [(run, v) for run, v in measured if v is not None and run.likeness() == likeness]
    taken = taken[-limit:] if limit else taken
    if not taken:
        raise StoreError(f"no whole run like {model.id} has a finite {metric!r}")
    changes = change_points([value for _, value in taken])
    points = tuple(
        HistoryPoint(
            run=run.id,
            started_at=run.started_at,
            commit=run.provenance.git_commit,
            value=value,
            changed=number in changes,
        )
        for number, (run, value) in enumerate(taken)
    )
    left_out = tuple(f"{count} runs: {why}" for why, count in others.most_common())
    return History(metric=metric, statistic=statistic, points=points, left_out=left_out)


def change_points(values: Sequence[float]) -> list[int]:
    """Where another level begins: the segmentation of least squares plus a penalty for each change, found exactly
    (Jackson et al., An Algorithm for Optimal Partitioning of Data on an Interval). The noise is told from differences
    of neighbours, which a change of level hardly touches.
    """
    if len(values) < FEWEST:
        return []
    series = np.asarray(values, dtype=np.float64) - np.median(values)
    series /= np.abs(series).max() or 1.0
    steps = np.diff(series)
    noise = max(1.4826 * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(2), 1e-9)
    sums, squares = (np.concatenate(([0.0], np.cumsum(each))) for each in (series, series**2))
    penalty = _PENALTY * noise**2 * math.log(len(series))
    least, begin = np.full(len(series) + 1, np.inf), [0] * (len(series) + 1)
    least[0] = -penalty
    for end in range(_SHORTEST, len(series) + 1):
        starts = np.arange(end - _SHORTEST + 1)
        error = squares[end] - squares[starts] - (sums[end] - sums[starts]) ** 2 / (end - starts)
        costs = least[starts] + error + penalty
        begin[end] = int(costs.argmin())
        least[end] = costs[begin[end]]
    found, end = [], len(series)
    while end := begin[end]:
        found.append(end)
    return found[::-1]


def _newest(runs: Sequence[Run], window: str | None) -> Run | None:
    wanted = [run for run in runs if window is None or run.flags.get("quick") == (window == "quick")]
    return wanted[-1] if wanted else None
