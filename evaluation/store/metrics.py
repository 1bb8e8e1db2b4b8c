"""The metrics of a run: how a line is written, read and summed up."""

import math
from array import array
from collections.abc import Iterator, Mapping
from operator import index
from pathlib import Path
from time import time

import msgspec
import numpy as np
from pydantic import TypeAdapter, ValidationError

from evaluation.store.errors import StoreError
from evaluation.store.lines import whole_lines
from evaluation.store.models import LONGEST_NAME, MetricsLine, MetricSummary
from evaluation.store.quantiles import Quantiles

_LINES = TypeAdapter(list[MetricsLine])
_ENCODER = msgspec.json.Encoder()
_PENDING = 1024


def metrics_line(step: int, values: Mapping[str, float]) -> bytes:
    """A line of metrics.jsonl; NaN and infinities become null. Raises StoreError for anything else."""
    try:
        plain = {name: float(value) for name, value in values.items()}
        if not plain or not all(0 < len(name) <= LONGEST_NAME for name in plain):
            raise ValueError(f"names have 1 to {LONGEST_NAME} characters")
        return _ENCODER.encode({"step": index(step), "time": time(), "values": plain}) + b"\n"
    except (TypeError, ValueError) as error:
        raise StoreError(f"expected a step and numbers by name, got {step!r}, {dict(values)!r}: {error}") from error


def read_metrics(file: Path) -> Iterator[MetricsLine]:
    """Every whole line. Raises StoreError at one that is not of the form."""
    number = 0
    for block in whole_lines(file):
        lines = block.split(b"\n")
        try:
            found = _LINES.validate_json(b"[" + b",".join(lines) + b"]")
        except ValidationError as error:
            raise StoreError(f"{file}, within lines {number + 1} to {number + len(lines)}: {error}") from error
        number += len(lines)
        yield from found


class _Accumulator:
    """One metric, as its values come."""

    def __init__(self) -> None:
        self.count = self.finite = 0
        self.last: float | None = None
        self.minimum, self.maximum, self.total = math.inf, -math.inf, 0.0
        self.pending = array("d")
        self.quantiles = Quantiles()

    def add(self, value: float | None) -> None:
        self.count += 1
        self.last = value
        if value is not None:
            self.pending.append(value)
            if len(self.pending) == _PENDING:
                self._flush()

    def _flush(self) -> None:
        if self.pending:
            values = np.frombuffer(self.pending)
            self.finite += len(values)
            self.minimum = min(self.minimum, float(values.min()))
            self.maximum = max(self.maximum, float(values.max()))
            self.total += float(values.sum())
            self.quantiles.add(values)
            self.pending = array("d")

    def summary(self, name: str) -> MetricSummary:
        self._flush()
        numbers = dict.fromkeys(("minimum", "maximum", "mean", "p25", "p50", "p75", "p95"))
        if self.finite:
            quartiles = zip(("p25", "p50", "p75", "p95"), self.quantiles.at(0.25, 0.5, 0.75, 0.95), strict=True)
            mean = self.total / self.finite if math.isfinite(self.total) else None
            numbers |= {"minimum": self.minimum, "maximum": self.maximum, "mean": mean} | dict(quartiles)
        not_finite = self.count - self.finite
        return MetricSummary(name=name, count=self.count, not_finite=not_finite, last=self.last, **numbers)


def summarise(file: Path) -> tuple[MetricSummary, ...]:
    """Each metric of a metrics.jsonl, by name. Memory: some kilobytes a metric, however many values."""
    found: dict[str, _Accumulator] = {}
    for line in read_metrics(file):
        for name, value in line.values.items():
            if name not in found:
                found[name] = _Accumulator()
            found[name].add(value)
    return tuple(found[name].summary(name) for name in sorted(found))
