"""A numeric case: a module of the public interface, its sizes, a dtype, and what is called with what.

B batch, L x length, C context length, D model dim = H heads * Dh head dim, F feed-forward.
"""

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal[
    "self",
    "self-linear",
    "cross",
    "cross-linear",
    "block",
    "block-conditioned",
    "block-cross",
    "stack",
    "layernorm_adaln",
    "rmsnorm_adaln",
]
Dtype = Literal["float32", "bfloat16", "float16"]
Mode = Literal["backward", "inference", "autocast"]
Values = Literal["normal", "large", "tiny", "constant-rows", "outliers", "needles"]
Scenario = Literal[
    "once",
    "other-values-in-the-same-memory",
    "other-weights-in-the-same-memory",
    "permuted-context",
    "shifted-start",
    "one-sample-alone",
    "doubled-batch",
    "zero-modulation",
]
Start = Literal["none", "int", "last", "tensor"]

CONDITIONED: frozenset[Kind] = frozenset({"block-conditioned", "block-cross", "stack"})
JOINT: frozenset[Kind] = frozenset({"cross", "cross-linear", "block-cross", "stack"})
LINEAR: frozenset[Kind] = frozenset({"self-linear", "cross-linear"})
FUNCTIONS: frozenset[Kind] = frozenset({"layernorm_adaln", "rmsnorm_adaln"})
MAX_POSITION = 4096  # positions of a module that was made without naming a number


@dataclass(frozen=True)
class Sizes:
    """Batch, x length, context length, heads, head dim; feed-forward and layers where a module has them."""

    batch: int
    length: int
    context: int
    heads: int
    dim_head: int
    hidden: int = 0
    layers: int = 1

    @property
    def dim(self) -> int:
        return self.heads * self.dim_head

    @property
    def feed_forward(self) -> int:
        return self.hidden or 3 * self.dim + 1

    def __str__(self) -> str:
        return f"B{self.batch}-L{self.length}-C{self.context}-H{self.heads}-D{self.dim_head}"


@dataclass(frozen=True)
class Case:
    """One case; its name says all of it. `mask` names one of draw.MASKS."""

    kind: Kind
    sizes: Sizes
    dtype: Dtype = "float32"
    mode: Mode = "backward"
    values: Values = "normal"
    scenario: Scenario = "once"
    mask: str = "none"
    start: Start = "none"
    name: str = field(init=False)

    def __post_init__(self) -> None:
        layers = f"x{self.sizes.layers}" if self.kind == "stack" else ""
        usual = {"backward", "normal", "once", "none"}
        parts = [self.dtype, self.mode, self.values, self.scenario]
        parts += [f"mask-{self.mask}" if self.mask != "none" else "none"]
        parts += [f"start-{self.start}" if self.start != "none" else "none"]
        told = [f"{self.kind}{layers}", str(self.sizes), *(part for part in parts if part not in usual)]
        object.__setattr__(self, "name", " ".join(told))

    def __str__(self) -> str:
        return self.name
