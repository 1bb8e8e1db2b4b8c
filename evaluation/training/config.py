"""What a training run is."""

from typing import Literal, Self

from pydantic import Field, model_validator

from evaluation.suite.result import Record
from evaluation.training.sizes import TOKENS

TaskName = Literal["regression", "classification", "flow"]
Dtype = Literal["float32", "float64", "bfloat16", "autocast"]
Schedule = Literal["cosine", "constant"]


class TrainingConfig(Record):
    """All that decides a run's numbers but the machine. bfloat16: weights in it, which follow fp32 ones that the
    optimizer has; autocast: fp32 weights, products in bfloat16.
    """

    task: TaskName = "flow"
    steps: int = Field(ge=1)
    batch: int = Field(ge=1, description="samples of a step")
    accumulate: int = Field(default=1, ge=1, description="parts that a step's samples are taken in, one after another")
    length: int = Field(default=TOKENS, ge=1, description="tokens of a sample; of an image always the default")
    context: int = Field(default=0, ge=0, description="tokens of regression's context; with any, it has a condition")
    dim: int = Field(ge=4)
    heads: int = Field(ge=1)
    feed_forward: int = Field(ge=1)
    layers: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    learning_rate: float = Field(gt=0)
    schedule: Schedule = "cosine"
    clip: float = Field(default=1.0, gt=0, description="the largest norm of a step's gradient")
    ema: float = Field(default=0.99, ge=0, lt=1, description="how much of their average the weights keep at each step")
    dtype: Dtype
    deterministic: bool = False
    start: str | None = Field(
        default=None, description="a checkpoint whose weights the run begins with, not the seed's"
    )
    seed: int = Field(ge=0, description="of the first weights, of the data, and of the dropout")

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        if self.accumulate > self.batch:
            raise ValueError(f"accumulate: expected at most batch = {self.batch}, got {self.accumulate}")
        if self.task != "regression" and (self.length, self.context) != (TOKENS, 0):
            got = f"length {self.length}, context {self.context}"
            raise ValueError(f"length, context: {self.task} expects {TOKENS} and 0, its images' own, got {got}")
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ValueError(f"heads: expected heads that divide dim = {self.dim} in even parts, got {self.heads}")
        return self


class RunFacts(Record):
    """What is known of a run that ended, but its losses."""

    config: TrainingConfig
    first_weights_sha256: str
    last_weights_sha256: str
    measures: dict[str, float] = Field(description="of the averaged weights, on data that was held out")
    layouts: dict[str, int] = Field(description="inputs of the tree's ops as OP.contiguous, OP.strided and OP.copied")
    seconds: float = Field(description="of its steps")
    peak_bytes: int | None = Field(description="of GPU memory; null: it ran on no GPU")
    path: str | None = Field(description="of a step, as mmdit.explain tells; null: the tree has no explain")
