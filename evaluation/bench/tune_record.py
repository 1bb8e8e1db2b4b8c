"""The record of a run of `tune`: other tiles beside those of the fused tree's tuning tables."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from evaluation.bench.record import BenchMachine, Measurement
from evaluation.bench.stack_record import StackCase
from evaluation.suite.result import Record

TunedOp = Literal[
    "norm_adaln",
    "norm_adaln_backward",
    "norm_adaln_reduce",
    "pack_heads",
    "gated_residual",
    "joint_attention",
    "stack_attention",
    "stack_rows",
]


class TileTiming(Measurement):
    """Tiles that were right: a call's time, in a CUDA graph, called back to back."""

    tiles: str = Field(description="the numbers of the entry: queries=64, keys=32, ...")


class Rejected(Record):
    """Tiles that were not timed, and why."""

    tiles: str
    reason: str


class TuneJob(Record):
    """What is tuned: the table that an op asks, at the sizes of a model."""

    op: TunedOp
    case: StackCase

    def __str__(self) -> str:
        return f"{self.op}, {self.case}"


class TuneResult(Record):
    """One job. All tiles that were to be tried are in timings, rejected or not_tried."""

    job: TuneJob
    table: str = Field(description="the function that looks the tiles up, by module")
    asked: str | None = Field(
        description="with which arguments; null: it was not asked, as the op's kernel did not run"
    )
    problem: str | None = Field(description="why nothing was timed; null: something was")
    timings: list[TileTiming] = Field(description="the first is the table's")
    rejected: list[Rejected]
    not_tried: list[str] = Field(description="for want of time")

    @property
    def fastest(self) -> TileTiming:
        return min(self.timings, key=lambda timing: timing.median_us)

    @property
    def is_short(self) -> bool:
        """Whether other tiles are faster beyond the spread."""
        return bool(self.timings) and self.timings[0].slower_than(self.fastest)


class TuneRecord(Record):
    """One run of `tune`, as far as it came."""

    schema_version: Literal["1.0"] = "1.0"
    benchmark: Literal["tune"] = "tune"
    command: str = Field(description="with the options that decide what is measured")
    started_at: datetime
    before_sha256: str = Field(description="of the Python files of the vanilla tree")
    after_sha256: str = Field(description="of the Python files of the fused tree")
    machine: BenchMachine
    architecture: str = Field(
        description="the tables' key for this GPU, and whether the tables say that it was measured"
    )
    results: list[TuneResult] = Field(min_length=1)
    not_begun: list[TuneJob] = Field(description="asked for, but the run ended, or its budget, before they began")
