"""The forms of what is told of several runs: comparisons, gates, histories, exports. Schemas come from these too."""

import math
from datetime import datetime
from typing import Literal, Self

from pydantic import Field

from evaluation.store.models import MetricName, MetricSummary, RunId, RunKind, RunStatus
from evaluation.suite.result import Record

Statistic = Literal["last", "minimum", "maximum", "mean", "p50", "p95"]
Judgement = Literal["outside_noise", "within_noise", "noise_unknown", "missing_in_base", "missing_in_run"]


class Difference(Record):
    """A metric of a run against the baseline's."""

    run: RunId
    metric: MetricName
    base: float | None
    value: float | None
    change: float | None = Field(description="value - base")
    percent: float | None = Field(description="of the base's magnitude; null: the base is zero, or either is missing")
    noise: float | None = Field(
        description="the larger quartile distance: within the two runs where the metric was measured four times or "
        "more, else over the runs like the base; null: there are too few"
    )
    judgement: Judgement


class RunComparison(Record):
    """Some runs against one. Runs on another machine, with other versions or flags are in `unlike`."""

    schema_version: Literal["1.0"] = "1.0"
    base: RunId
    statistic: Statistic
    differences: tuple[Difference, ...]
    unlike: tuple[str, ...] = Field(description="why a comparison says less than it seems to")


Severity = Literal["error", "warning"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning")


class Rule(Record):
    """How much worse a metric may become; null: no limit of this kind."""

    metric: MetricName = Field(description="a name, or a pattern with * and ?")
    higher_is_better: bool
    max_percent: float | None = Field(ge=0)
    max_absolute: float | None = Field(ge=0)
    severity: Severity

    @classmethod
    def parse(cls, text: str) -> Self:
        """From METRIC:MAX_PCT:MAX_ABS:SEVERITY, +METRIC where higher is better; an empty limit is none."""
        parts = text.rsplit(":", 3)
        if len(parts) != 4 or not parts[0].removeprefix("+"):
            raise ValueError(f"expected METRIC:MAX_PCT:MAX_ABS:SEVERITY, got {text!r}")
        metric, *limits, severity = parts
        if severity not in SEVERITIES:
            raise ValueError(f"{text!r}: expected a severity of {' or '.join(SEVERITIES)}, got {severity!r}")
        percent, absolute = (_limit(text, limit) for limit in limits)
        if percent is None and absolute is None:
            raise ValueError(f"{text!r}: expected a limit in percent, an absolute one, or both, got none")
        return cls(
            metric=metric.removeprefix("+"),
            higher_is_better=metric.startswith("+"),
            max_percent=percent,
            max_absolute=absolute,
            severity=severity,
        )


class GateResult(Record):
    """A rule on one metric. A metric that is missing, or is no finite number, keeps no rule."""

    rule: Rule
    difference: Difference
    kept: bool
    reason: str


class GateRecord(Record):
    schema_version: Literal["1.0"] = "1.0"
    base: RunId
    run: RunId
    results: tuple[GateResult, ...] = Field(min_length=1)
    passed: bool = Field(description="every rule of severity error is kept")


class HistoryPoint(Record):
    run: RunId
    started_at: datetime
    commit: str | None
    value: float
    changed: bool = Field(description="here begins another level")


class History(Record):
    """Runs like the newest that has the metric, oldest first."""

    schema_version: Literal["1.0"] = "1.0"
    metric: MetricName
    statistic: Statistic
    points: tuple[HistoryPoint, ...] = Field(min_length=1)
    left_out: tuple[str, ...] = Field(description="how many runs are not like these, and in what")


class SummaryRow(MetricSummary):
    """A metric of a run."""

    run: RunId
    kind: RunKind
    status: RunStatus
    started_at: datetime
    commit: str | None


class ValueRow(Record):
    """A value of a metric at a step."""

    run: RunId
    step: int
    time: float
    name: MetricName
    value: float | None = Field(description="null: it was no finite number")


class SummaryExport(Record):
    schema_version: Literal["1.0"] = "1.0"
    rows: tuple[SummaryRow, ...]


class ValueExport(Record):
    schema_version: Literal["1.0"] = "1.0"
    rows: tuple[ValueRow, ...]


def _limit(rule: str, text: str) -> float | None:
    try:
        limit = float(text) if text else None
    except ValueError:
        limit = math.nan
    if limit is not None and not (math.isfinite(limit) and limit >= 0):
        raise ValueError(f"{rule!r}: expected a limit of 0 or more, got {text!r}")
    return limit
