"""What is left of a timed run before it is judged, and what the report says of it."""

from hashlib import sha256
from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from evaluation.judge.case import Case
from evaluation.suite.condition import EMPTY, NOT_EMPTY, NOT_NULL, NULL, conditions, when
from evaluation.suite.result import Failure, Record, Role

CONFIDENCE = 0.95

Comparison = Literal["faster", "slower", "inconclusive"]
Worker = Literal["before", "again", "after"]  # again: a second process of before
Phase = Literal["warm", "probe", "alone", "beside"]
Path = Literal["fused", "mixed", "fallback", "unknown"]


class Interval(Record):
    """A ratio and its bootstrap interval at the confidence CONFIDENCE."""

    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.3g} [{self.low:.3g}, {self.high:.3g}]"


class Turn(Record):
    """Some calls in a row, with values of their own; seconds by the worker's clock, and of all by the judge's."""

    phase: Phase = Field(description="alone: before and a second before; beside: before and after")
    round: int
    worker: Worker
    contender: str
    host_seconds: float
    seconds: tuple[float, ...]
    sums: tuple[tuple[float | None, ...], ...] = Field(description="of each call's outputs, signed; null: no number")
    forms: tuple[str, ...] = Field(description="type, dtype, shape and device of outputs")

    @property
    def part(self) -> str:
        """What its values are drawn by."""
        return f"{self.phase}:{self.round}:{self.worker}:{self.contender}"

    def file(self, case: Case) -> str:
        """Where the outputs of its checked call are kept."""
        return f"{sha256(case.name.encode()).hexdigest()[:12]}-{self.part.replace(':', '-')}.safetensors"


class Kernel(Record):
    """All launches of one name, in a call that the profiler watched."""

    name: str
    seconds: float


class ContenderFacts(Record):
    """What is known of one way to call a tree beside its times."""

    worker: Worker
    contender: str
    unmeasured: str | None = Field(default=None, description="why it could not be prepared")
    first_call_seconds: float | None = None
    peak_bytes: int | None = Field(default=None, description="that a call allocates on a GPU")
    kernels: tuple[Kernel, ...] | None = Field(default=None, description="of a call; null: the profiler saw none")


class Rates(Record):
    """The most that this machine was seen to do. Bytes are null where caches hide the memory."""

    operations_per_s: float
    bytes_per_s: float | None


class Work(Record):
    """What a call cannot do without, on a machine of these rates."""

    operations: int = Field(gt=0, description="of its matrix products, two for each multiply-add")
    moved_bytes: int = Field(gt=0, description="weights and inputs read once, outputs written once, nothing between")
    rates: Rates

    @property
    def least_seconds(self) -> float:
        by_bytes = self.moved_bytes / self.rates.bytes_per_s if self.rates.bytes_per_s else 0.0
        return max(self.operations / self.rates.operations_per_s, by_bytes)


class RawCase(Record):
    """`calls` a turn, `rounds` in each phase."""

    name: str
    calls: int
    rounds: int
    rates: Rates
    contenders: tuple[ContenderFacts, ...]
    turns: tuple[Turn, ...]


class RawSpeed(Record):
    """A timed run before it is judged: with the files that `files` names, all that the judge goes by."""

    seed: int
    device: str
    cases: tuple[RawCase, ...]
    failures: tuple[Failure, ...]
    duration_seconds: float
    files: dict[str, str] = Field(default={}, description="sha256 by name: CASE/TURN.safetensors, outputs of one call")


class Timed(ContenderFacts):
    """One way to call a tree; `rounds` are the seconds of its calls by round, of the rounds that count."""

    median_seconds: float | None = None
    rounds: tuple[tuple[float, ...], ...] = ()


_COMPARED = {"baseline": NOT_NULL, "contender": NOT_NULL, "ratio": NOT_NULL, "host_ratio": NOT_NULL, "why": NULL}
_NOT_COMPARED = {"baseline": NULL, "contender": NULL, "ratio": NULL, "host_ratio": NULL, "why": NOT_NULL}


class SpeedCase(Record):
    """One case. Ratios are before's time over after's: above 1, after is faster."""

    model_config = ConfigDict(
        json_schema_extra=conditions(when("outcome", ["not_measured"], _NOT_COMPARED, _COMPARED)),
    )
    name: str
    outcome: Comparison | Literal["not_measured"]
    why: str | None = Field(description="why it was not measured")
    baseline: str | None = Field(description="the strongest of before's contenders")
    contender: str | None = Field(description="the strongest of after's")
    ratio: Interval | None = Field(description="by the workers' clocks")
    host_ratio: Interval | None = Field(description="by the judge's, with all that a turn takes beside its calls")
    same: tuple[Interval, ...] = Field(description="before over a second before, and before alone over beside after")
    noise_floor: float | None = Field(description="the ratio that a difference has to beat")
    least_seconds: float | None = Field(description="what no machine like this can beat; null: not known")
    work: Work | None = Field(description="what the least seconds are of; null: not known")
    path: Path = Field(description="whether after's kernels are its own; of a GPU only")
    own_kernels: tuple[str, ...] = Field(description="kernels of after's that before never launches")
    contenders: tuple[Timed, ...]

    @model_validator(mode="after")
    def _compared_or_told_why(self) -> Self:
        compared = {self.baseline is not None, self.contender is not None, self.ratio is not None}
        compared |= {self.host_ratio is not None, self.why is None}
        if compared != {self.outcome != "not_measured"}:
            raise ValueError(f"{self.name}: a ratio goes with every case that was measured, a reason with every other")
        return self


class Speed(Record):
    """Before against after, timed. `what`: the fused path; or, where there is no GPU, the fallback by that name."""

    model_config = ConfigDict(
        json_schema_extra=conditions(
            when("what", ["nothing"], {"cases": EMPTY, "why": NOT_NULL}, {"cases": NOT_EMPTY, "why": NULL}),
        )
    )
    what: Literal["nothing", "fused", "fallback"]
    why: str | None = Field(description="why nothing was timed")
    confidence: float = Field(description="of every interval")
    seed: int | None = None
    duration_seconds: float = 0.0
    cases: tuple[SpeedCase, ...] = ()

    @model_validator(mode="after")
    def _cases_or_why(self) -> Self:
        if {self.what == "nothing", not self.cases, self.why is not None} not in ({True}, {False}):
            raise ValueError("expected timed cases, or the reason why there are none")
        return self


def not_timed(why: str) -> Speed:
    return Speed(what="nothing", why=why, confidence=CONFIDENCE)


def role_of(worker: Worker) -> Role:
    return "after" if worker == "after" else "before"
