"""A metric over runs: like with like only, and where it changed for good."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from evaluation.store.catalogue import Catalogue, Measured
from evaluation.store.errors import StoreError
from evaluation.store.forms import History, HistoryPoint, Statistic
from evaluation.store.models import Scalar, unlike

FEWEST = 6  # values in which a change can be told from noise
_SHORTEST = 3  # values between two changes
_PENALTY = 4.0  # of a change, in variances of the noise times log n


def history(
    catalogue: Catalogue,
    metric: str,
    *,
    statistic: Statistic = "p50",
    like: str | Mapping[str, Scalar] | None = None,
    window: Literal["quick", "full"] | None = None,
    limit: int | None = None,
) -> History:
    """`like`: a run, or a likeness, that the others must be like, in place of the newest that has the metric; `window`:
    of evaluations, quick ones or full ones. Raises StoreError where no run has the metric.
    """
    measured = catalogue.measured(metric, statistic)
    likeness = catalogue.whole(like).likeness() if isinstance(like, str) else like or _newest(measured, window)
    if likeness is None:
        raise StoreError(f"no whole run{f' of the window {window}' if window else ''} has a metric {metric!r}")
    others, taken = Counter[str](), []
    for each in measured:
        if why := unlike(likeness, json.loads(each.likeness)):
            others[why] += 1
        elif each.value is not None:
            taken.append(each)
    taken = taken[-limit:] if limit else taken
    if not taken:
        raise StoreError(f"no whole run like that has a finite {metric!r}")
    changes = change_points([each.value for each in taken])
    points = tuple(
        HistoryPoint(run=x.run, started_at=x.started_at, commit=x.commit, value=x.value, changed=number in changes)
        for number, x in enumerate(taken)
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


def _newest(measured: Sequence[Measured], window: str | None) -> dict[str, Scalar] | None:
    for each in reversed(measured):
        likeness = json.loads(each.likeness)
        if window is None or likeness.get("flag quick") == (window == "quick"):
            return likeness
    return None
