"""What the numeric judge says of a tree."""

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from evaluation.suite.condition import EMPTY, NOT_EMPTY, conditions, when
from evaluation.suite.result import Failure, Record, Role


class Measure(Record):
    """One output or gradient against its bound; `error` is null where it is not a number at all."""

    name: str
    error: float | None = Field(description="relative L2 error against the fp64 oracle")
    bound: float


class CaseNumbers(Record):
    """One case. `worst` is the measure nearest to its bound, or furthest above it."""

    model_config = ConfigDict(
        json_schema_extra=conditions(when("status", ["pass"], {"problems": EMPTY}, {"problems": NOT_EMPTY}))
    )
    name: str
    status: Literal["pass", "fail"]
    worst: Measure | None = Field(description="null: the case gave nothing to measure")
    problems: tuple[str, ...] = Field(description="what is wrong; empty exactly when the case passes")

    @model_validator(mode="after")
    def _problems_say_why(self) -> Self:
        if (self.status == "pass") != (not self.problems):
            raise ValueError(f"{self.name}: problems go with a case that fails, and with no other")
        return self


class NumericsRun(Record):
    """All cases on one tree, in their order, as far as the worker got."""

    cases: tuple[CaseNumbers, ...] = ()
    duration_seconds: float = 0.0


class Numerics(Record):
    """Both trees on the same cases. `seed` is drawn after the suite has run, and no candidate ever sees it."""

    seed: int | None = Field(default=None, description="null: no case was run")
    before: NumericsRun = NumericsRun()
    after: NumericsRun = NumericsRun()


class RawRun(Record):
    """What a worker left of itself: the tensors lie beside this, by tree and number of the case."""

    seconds: float
    failure: Failure | None


class RawNumerics(Record):
    """Both workers' runs before they are judged: with the files that `files` names, all that the judge goes by."""

    seed: int
    device: str
    cases: tuple[str, ...]
    runs: dict[Role, RawRun]
    files: dict[str, str] = Field(description="sha256 by name: TREE/NUMBER.safetensors and TREE/NUMBER.json")
