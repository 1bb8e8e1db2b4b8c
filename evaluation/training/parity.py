"""Whether two trees learn the same: a bound on the distance of their loss curves, from the spread over seeds.

n seeds; each curve is cut into windows of steps and averaged in each. In a window, were after's curves drawn like
before's, the difference of the two means would have the standard deviation s sqrt(2 / n), s before's over its seeds,
pooled with the windows beside it so that few seeds do not make it small by chance. More than BOUND of those is not
chance. As both trees begin with the same weights and see the same data, what is within is well within.
"""

from datetime import datetime
from itertools import pairwise
from math import sqrt
from statistics import fmean, stdev
from typing import Literal

from pydantic import Field

from evaluation.suite.result import Record, Role
from evaluation.training.config import RunFacts

WINDOWS = 20
BOUND = 4.0


class ParityRun(RunFacts):
    """One training of one tree."""

    role: Role
    windows: list[float] = Field(description="mean loss of each window of steps")


class ParityWindow(Record):
    """Means over the seeds."""

    before: float
    after: float
    allowed: float = Field(description="how far from each other they may be")


class ParityResult(Record):
    """Both trees at one dropout."""

    dropout: float
    windows: list[ParityWindow]
    problem: str | None = Field(description="why the curves cannot be compared; null: they can")

    @property
    def worst(self) -> float:
        """The largest distance, as a share of what is allowed."""
        return max((abs(w.after - w.before) / w.allowed for w in self.windows), default=float("inf"))

    @property
    def same(self) -> bool:
        return self.problem is None and self.worst <= 1


class ParityRecord(Record):
    """One run of `python -m evaluation.training`."""

    schema_version: Literal["1.0"] = "1.0"
    benchmark: Literal["training"] = "training"
    command: str
    started_at: datetime
    before_sha256: str
    after_sha256: str
    machine: str
    at_once: int = Field(default=1, ge=1, description="runs side by side")
    runs: list[ParityRun]
    results: list[ParityResult] = Field(description="none where one tree was trained alone")


def in_windows(losses: list[float]) -> list[float]:
    """The mean loss of each of up to WINDOWS windows."""
    count = min(WINDOWS, len(losses))
    edges = [round(i * len(losses) / count) for i in range(count + 1)]
    return [fmean(losses[a:b]) for a, b in pairwise(edges)]


def compare(runs: list[ParityRun]) -> list[ParityResult]:
    """The result at each dropout; needs both trees at two seeds or more."""
    return [_compare(p, [r for r in runs if r.config.dropout == p]) for p in sorted({r.config.dropout for r in runs})]


def _compare(dropout: float, runs: list[ParityRun]) -> ParityResult:
    before, after = ({r.config.seed: r for r in runs if r.role == role} for role in ("before", "after"))
    if set(before) != set(after) or len(before) < 2:
        problem = f"expected both trees at the same two seeds or more, got {sorted(before)} and {sorted(after)}"
        return ParityResult(dropout=dropout, windows=[], problem=problem)
    unlike = [s for s in before if before[s].first_weights_sha256 != after[s].first_weights_sha256]
    problem = f"the trees begin with other weights at seeds {unlike}" if unlike else None
    columns = list(zip(*(r.windows for r in before.values()), strict=True))
    others = zip(*(r.windows for r in after.values()), strict=True)
    variances = [stdev(column) ** 2 for column in columns]
    windows = []
    for index, (column, other) in enumerate(zip(columns, others, strict=True)):
        deviation = sqrt(fmean(variances[max(0, index - 2) : index + 3]))
        allowed = BOUND * deviation * sqrt(2 / len(column))
        windows.append(ParityWindow(before=fmean(column), after=fmean(other), allowed=allowed))
    return ParityResult(dropout=dropout, windows=windows, problem=problem)
