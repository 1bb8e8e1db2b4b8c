"""The forms of a run's files. The JSON Schemas in evaluation/schema are generated from these models."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from evaluation.report.models import Environment
from evaluation.suite.result import Record

RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
TAG = r"^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,63}$"
Tag = Annotated[str, Field(pattern=TAG)]
LONGEST_NAME = 200
MetricName = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
ArtifactName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Scalar = str | int | float | bool | None

RunKind = Literal["evaluate", "training", "bench", "other"]
RunStatus = Literal["running", "success", "failed", "no_verdict"]
ArtifactKind = Literal["report", "page", "plot", "trace", "checkpoint", "config", "other"]


class FileSeal(Record):
    """What a file was when the run ended."""

    size: int = Field(ge=0, description="bytes")
    sha256: Sha256


class Artifact(FileSeal):
    """A file in the run's folder artifacts, and a line of its artifacts.jsonl."""

    name: ArtifactName
    kind: ArtifactKind


class MetricsLine(Record):
    """A line of metrics.jsonl: values measured at one step. null: the value was no finite number."""

    step: int
    time: float = Field(description="seconds since the epoch")
    values: dict[MetricName, float | None]


class MetricSummary(Record):
    """One metric over all steps of a run. The numbers are of the finite values, and null where there is none."""

    name: MetricName
    count: int = Field(ge=1, description="values, those that are no finite numbers too")
    not_finite: int = Field(ge=0)
    last: float | None = Field(description="null: the last value was no finite number")
    minimum: float | None
    maximum: float | None
    mean: float | None
    p25: float | None
    p50: float | None
    p75: float | None
    p95: float | None

    @property
    def quartile_distance(self) -> float | None:
        """Between the quartiles of a value measured at least four times; null where it was not."""
        if self.count < 4 or self.p25 is None or self.p75 is None:
            return None
        return self.p75 - self.p25


class RunSummary(Record):
    """A run's summary.json, computed from its metrics when it ended."""

    schema_version: Literal["1.0"] = "1.0"
    metrics: tuple[MetricSummary, ...]


class Seal(Record):
    """All files of a run that ended."""

    metrics: FileSeal
    summary: FileSeal
    artifacts: tuple[Artifact, ...]


class Run(Record):
    """What is known of a run but its files."""

    id: RunId
    kind: RunKind
    tags: tuple[Tag, ...]
    status: RunStatus
    started_at: datetime
    finished_at: datetime | None
    config: dict[str, Scalar] = Field(description="as resolved: options given, defaults, and the seed drawn")
    flags: dict[str, Scalar] = Field(description="of the config, what makes runs with other flags incomparable")
    provenance: Environment
    seal: Seal | None = Field(description="null: the run has not ended")

    @model_validator(mode="after")
    def _is_running_or_sealed(self) -> Self:
        if len({self.status == "running", self.seal is None, self.finished_at is None}) != 1:
            raise ValueError("status, seal and finished_at contradict each other")
        return self

    def likeness(self) -> dict[str, Scalar]:
        return likeness(self.kind, self.provenance, self.flags)


def likeness(kind: RunKind, where: Environment, flags: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """What two runs must agree in to be comparable: kind, machine, versions and flags."""
    return {
        "kind": kind,
        "gpu": ", ".join(where.gpus) or None,
        "cpu_count": where.cpu_count,
        "python": where.python_version,
        "torch": where.torch_version,
        "triton": where.triton_version,
        "cuda": where.cuda_version,
    } | {f"flag {name}": value for name, value in sorted(flags.items())}


def unlike(a: Mapping[str, Scalar], b: Mapping[str, Scalar]) -> str | None:
    """Why runs of these likenesses are not comparable, as 'gpu: H100 against H200; ...'; None when they are."""
    return "; ".join(f"{k}: {a.get(k)} against {b.get(k)}" for k in {**a, **b} if a.get(k) != b.get(k)) or None


class RunFile(Record):
    """A run's run.json. `sha256` is of the run, so that no change of a byte in it goes unnoticed."""

    schema_version: Literal["1.0"] = "1.0"
    run: Run
    sha256: Sha256

    @classmethod
    def of(cls, run: Run) -> Self:
        return cls(run=run, sha256=_digest(run))

    @model_validator(mode="after")
    def _is_what_its_digest_says(self) -> Self:
        if self.sha256 != _digest(self.run):
            raise ValueError("the run is not what its sha256 says")
        return self


def _digest(run: Run) -> str:
    return hashlib.sha256(json.dumps(run.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
