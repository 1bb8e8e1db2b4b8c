"""The record of a benchmark run: what was timed, on what, and every round's median."""

from datetime import datetime
from statistics import median, quantiles
from typing import Literal

from pydantic import Field

from evaluation.suite.result import Record

Direction = Literal["forward", "forward+backward"]
Mode = Literal["eager", "graph"]
Contender = Literal["eager", "compiled", "fused"]


class BenchMachine(Record):
    """What the run ran on."""

    gpu: str
    driver: str
    torch_version: str
    triton_version: str
    cuda_version: str
    python_version: str
    copy_gb_s: float = Field(description="measured device-to-device copy, bytes read plus bytes written")


class Measurement(Record):
    """The times of one contender: the median of each round in microseconds, the rounds of contenders interleaved."""

    rounds_us: list[float]
    samples: int = Field(description="calls timed, over all rounds")
    error: float = Field(description="worst relative L2 error of outputs and gradients against an fp64 oracle")

    @property
    def median_us(self) -> float:
        return median(self.rounds_us)

    @property
    def spread_us(self) -> float:
        """Distance between the quartiles of the rounds."""
        low, _, high = quantiles(self.rounds_us, n=4)
        return high - low

    def slower_than(self, other: "Measurement") -> bool:
        """Whether the medians differ by more than either spread."""
        return self.median_us > other.median_us + max(self.spread_us, other.spread_us)


class Timing(Measurement):
    """One contender at one case of an op."""

    op: str
    shape: tuple[int, ...] = Field(description="B, L, D of x for norms; B, H, L, C, Dh for attention")
    dtype: str
    direction: Direction
    mode: Mode = Field(description="eager: called as is; graph: replayed from a CUDA graph; L2 flushed before either")
    contender: Contender
    floor_bytes: int = Field(description="each input read once, each output written once")


class BenchRecord(Record):
    """One run of `ops`."""

    schema_version: Literal["1.0"] = "1.0"
    command: str = Field(description="with the options that decide what is measured")
    started_at: datetime
    before_sha256: str = Field(description="of the Python files of the vanilla tree")
    after_sha256: str = Field(description="of the Python files of the fused tree")
    machine: BenchMachine
    timings: list[Timing]
