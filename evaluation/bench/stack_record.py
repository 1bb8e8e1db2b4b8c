"""The record of a run of `stack`: the whole model, case by case."""

from datetime import datetime
from typing import Literal, Self

from pydantic import Field, model_validator

from evaluation.bench.record import BenchMachine, Measurement
from evaluation.suite.result import Record

MAX_LENGTH = 4096  # positions in the trees' rotary tables

Precision = Literal["bfloat16", "float16", "tf32", "float32"]
Recompute = Literal["none", "selective", "full"]
# fused* is the fused tree, the others vanilla; *_graph and max_autotune are replayed from a CUDA graph
StackContender = Literal["eager", "eager_graph", "compiled", "compiled_graph", "max_autotune", "fused", "fused_graph"]


class StackMachine(BenchMachine):
    """What the run ran on."""

    sms: int = Field(description="streaming multiprocessors")
    sm_clock_mhz: int = Field(description="the highest that nvidia-smi tells")


class StackCase(Record):
    """What is run: sizes, precision, and whether with a random mask and start positions."""

    batch: int = Field(ge=1)
    dtype: Precision = Field(description="float32: IEEE; tf32: float32 tensors, TF32 allowed in matrix products")
    masked: bool = Field(description="a random half of x's attention is masked, and every sample starts elsewhere")
    length: int = Field(ge=1, le=MAX_LENGTH, description="of x")
    context: int = Field(ge=0, description="length of the context; 0: a model without one")
    dim: int = Field(ge=1)
    heads: int = Field(ge=1)
    feed_forward: int = Field(ge=1)
    layers: int = Field(ge=1)
    backward: bool = Field(default=False, description="with the gradients of all inputs and weights")
    recompute: Recompute = Field(default="none", description="what the fused model's backward computes again")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dim % (2 * self.heads):
            raise ValueError(f"expected heads of even size, got dim {self.dim} for {self.heads} heads")
        if self.recompute != "none" and not self.backward:
            raise ValueError(f"expected --backward beside --recompute {self.recompute}")
        return self

    @property
    def streams(self) -> int:
        return 2 if self.context else 1

    @property
    def name(self) -> str:
        """All that it is, without a space: B8-L186-C64-D128-H8-F512-N12-bfloat16-masked-backward-full."""
        sizes = f"B{self.batch}-L{self.length}-C{self.context}-D{self.dim}-H{self.heads}-F{self.feed_forward}"
        kind = ("masked",) * self.masked + ("backward", self.recompute) * self.backward
        return "-".join((sizes, f"N{self.layers}", self.dtype, *kind))

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.dtype}{', masked' if self.masked else ''}"


class Floor(Record):
    """What one call cannot do without, and the least microseconds that each of it takes on this machine."""

    operations: int
    operations_us: float
    moved_bytes: int
    moved_bytes_us: float
    exponentials: int
    exponentials_us: float

    @property
    def times_us(self) -> dict[str, float]:
        return {
            "operations": self.operations_us,
            "bytes": self.moved_bytes_us,
            "exponentials": self.exponentials_us,
        }

    @property
    def bound(self) -> str:
        """Which of the three takes longest."""
        return max(self.times_us, key=self.times_us.__getitem__)

    @property
    def us(self) -> float:
        return self.times_us[self.bound]


class StackTiming(Measurement):
    """One contender at one case, called back to back: what fits in the L2 stays there."""

    contender: StackContender


class Unmeasured(Record):
    """A contender without a time at a case, and why."""

    contender: StackContender
    reason: str


class Count(Record):
    name: str
    count: int


class CountedDecision(Record):
    """A choice of path that the fused tree made, and how many times in a forward."""

    op: str
    path: str
    reason: str
    count: int


class FusedCall(Record):
    """One forward of the fused model, called as is."""

    path: str = Field(description="as mmdit.explain tells, and so decisions and launches")
    decisions: list[CountedDecision]
    launches: list[Count] = Field(description="of the tree's own kernels")
    kernels: list[Count] | None = Field(description="all that the GPU ran, copies too; null: the profiler saw nothing")
    host_us: float | None = Field(description="the host's time for a call; null: not measured, as at a batch above 1")
    peak_bytes: int = Field(description="GPU memory that a call allocates at its peak, outputs included")

    @property
    def total_kernels(self) -> int | None:
        return None if self.kernels is None else sum(kernel.count for kernel in self.kernels)


class StackResult(Record):
    """One case. A contender that was asked for is in timings or in unmeasured."""

    case: StackCase
    timings: list[StackTiming]
    unmeasured: list[Unmeasured]
    floor: Floor | None = Field(description="null: the ceilings of this GPU have not been measured")
    eager_peak_bytes: int | None = Field(description="as fused's peak_bytes; null: eager did not run")
    fused: FusedCall | None = Field(description="null: the fused model did not run")

    def timing(self, contender: StackContender) -> StackTiming | None:
        return next((timing for timing in self.timings if timing.contender == contender), None)


class StackRecord(Record):
    """One run of `stack`, or of `sizes`, as far as it came."""

    schema_version: Literal["1.0"] = "1.0"
    benchmark: Literal["stack", "sizes"] = "stack"
    command: str = Field(description="with the options that decide what is measured")
    started_at: datetime
    before_sha256: str = Field(description="of the Python files of the vanilla tree")
    after_sha256: str = Field(description="of the Python files of the fused tree")
    machine: StackMachine
    results: list[StackResult] = Field(min_length=1)
    not_begun: list[StackCase] = Field(description="asked for, but the run ended, or its budget, before they began")
