"""What a training run is."""

from typing import Literal

from pydantic import Field

from evaluation.suite.result import Record

Dtype = Literal["float32", "bfloat16"]


class TrainingConfig(Record):
    """Sizes of the model, of the batch and of the run. bfloat16: weights in it, which follow fp32 ones that the
    optimizer has.
    """

    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    dim: int = Field(ge=4)
    heads: int = Field(ge=1)
    feed_forward: int = Field(ge=1)
    layers: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    learning_rate: float = Field(gt=0)
    dtype: Dtype
    seed: int = Field(ge=0, description="of the first weights, of the data, and of the dropout")
