"""The cases of the suite: sizes, kinds of module, masks and positions, each with the id that names it.

B batch, L x length, C context length, D model dim = H heads * Dh head dim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from types import ModuleType

import torch
from torch import Tensor, nn

from tests import oracle
from tests.oracle import StartPos


@dataclass(frozen=True)
class Shape:
    batch: int
    length: int
    context: int
    heads: int
    dim_head: int

    @property
    def dim(self) -> int:
        return self.heads * self.dim_head

    def __str__(self) -> str:
        return f"B{self.batch}-L{self.length}-C{self.context}-H{self.heads}-D{self.dim_head}"


TARGET = Shape(2, 186, 64, 8, 16)
SMALL = Shape(2, 17, 5, 4, 16)
SHAPES = (
    Shape(4, 1, 1, 4, 16),
    Shape(3, 7, 5, 5, 6),
    Shape(2, 15, 64, 2, 16),
    Shape(2, 16, 1, 4, 16),
    SMALL,
    Shape(1, 63, 5, 1, 64),
    Shape(1, 64, 64, 4, 8),
    Shape(1, 65, 1, 2, 32),
    TARGET,
)
# With relu(q) all but zero the normaliser's eps takes over, and rounding with it: wide heads make that rare.
LINEAR_SHAPES = (Shape(4, 1, 1, 1, 64), Shape(2, 17, 5, 2, 64), Shape(1, 65, 64, 2, 64), Shape(1, 186, 64, 1, 64))


@dataclass(frozen=True)
class Kind:
    """A way to build one of the modules, the oracle's function for it, and the inputs it takes beside x."""

    name: str
    build: Callable[[ModuleType, Shape], nn.Module]
    truth: Callable[..., tuple[Tensor, Tensor | None]]
    takes: tuple[str, ...] = ()
    linear: bool = False

    def __str__(self) -> str:
        return self.name


def block(mmdit: ModuleType, shape: Shape, **options: bool) -> nn.Module:
    return mmdit.MMDiTBlock(shape.dim, shape.heads, dim_feedforward=3 * shape.dim + 1, **options)


def stack(mmdit: ModuleType, shape: Shape, num_layers: int) -> nn.Module:
    sizes = {"dim_base": shape.dim, "num_attn_head": shape.heads, "dim_feedforward": 2 * shape.dim}
    return mmdit.MMDiT(mmdit.MMDiTConfig(num_layers=num_layers, **sizes))


SELF = Kind("self", lambda m, s: m.RMSNormSelfAttention(s.dim, s.heads), oracle.attention)
SELF_LINEAR = Kind(
    "self-linear",
    lambda m, s: m.RMSNormSelfAttention(s.dim, s.heads, linear=True),
    partial(oracle.attention, linear_kernel=True),
    linear=True,
)
NO_CONTEXT = Kind("cross-without-context", lambda m, s: m.RMSNormSelfCrossAttention(s.dim, s.heads), oracle.attention)
CONTEXT_LEFT_OUT = Kind(
    "cross-context-left-out",
    lambda m, s: m.RMSNormSelfCrossAttention(s.dim, s.heads, use_context=True),
    oracle.attention,
)
CROSS = Kind(
    "cross",
    lambda m, s: m.RMSNormSelfCrossAttention(s.dim, s.heads, use_context=True),
    oracle.attention,
    ("context",),
)
CROSS_LINEAR = Kind(
    "cross-linear",
    lambda m, s: m.RMSNormSelfCrossAttention(s.dim, s.heads, use_context=True, linear=True),
    partial(oracle.attention, linear_kernel=True),
    ("context",),
    linear=True,
)
BLOCK = Kind("block", block, oracle.block)
BLOCK_CONDITIONED = Kind("block-conditioned", partial(block, conditioning=True), oracle.block, ("y",))
BLOCK_CROSS = Kind(
    "block-cross", partial(block, conditioning=True, use_cross_attn=True), oracle.block, ("y", "context")
)
STACK = Kind("stack", partial(stack, num_layers=2), oracle.stack, ("y", "context"))
TARGET_STACK = Kind("stack-of-12", lambda m, s: m.MMDiT(m.MMDiTConfig()), oracle.stack, ("y", "context"))

SOFTMAX = (SELF, NO_CONTEXT, CONTEXT_LEFT_OUT, CROSS, BLOCK, BLOCK_CONDITIONED, BLOCK_CROSS, STACK)
LINEAR = (SELF_LINEAR, CROSS_LINEAR)
CASES = (*product(SOFTMAX, SHAPES), *product(LINEAR, LINEAR_SHAPES))


def random_mask(shape: Shape, rng: torch.Generator) -> Tensor:
    """(B, L, L) bool, about half True, its diagonal True: no empty row, no empty column."""
    size = (shape.batch, shape.length, shape.length)
    return (torch.rand(size, generator=rng) < 0.5) | torch.eye(shape.length, dtype=torch.bool)


def causal(mask: Tensor) -> Tensor:
    return torch.ones_like(mask).tril()


def empty_rows(mask: Tensor) -> Tensor:
    mask[0, 0], mask[-1, 3], mask[-1, -1] = False, False, False
    return mask


def empty_columns(mask: Tensor) -> Tensor:
    mask[0, :, 0], mask[-1, :, 3], mask[-1, :, -1] = False, False, False
    return mask


def padding(mask: Tensor) -> Tensor:
    """The last third of x sees nothing and is not seen."""
    kept = mask.shape[-1] - mask.shape[-1] // 3
    mask[:, kept:], mask[:, :, kept:] = False, False
    return mask


# What is done to a random mask without empty rows or columns.
MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda mask: mask,
    "causal": causal,
    "empty-rows": empty_rows,
    "empty-columns": empty_columns,
    "empty-rows-and-columns": lambda mask: empty_columns(empty_rows(mask)),
    "padding": padding,
    "one-sample-empty": lambda mask: mask.index_fill(0, torch.tensor(0), False),
    "all-empty": torch.zeros_like,
    "float": lambda mask: mask * 0.25,
    "negative": lambda mask: -mask.float(),
    "uint8": lambda mask: mask * torch.tensor(2, dtype=torch.uint8),
    "int64": lambda mask: mask * 256,
    "transposed-strides": lambda mask: mask.mT,
}

# For max_seq_len 4096 and a batch of two; the last position is what still fits the table.
START_POSITIONS: dict[str, Callable[[Shape], StartPos]] = {
    "none": lambda shape: None,
    "int-0": lambda shape: 0,
    "int-1": lambda shape: 1,
    "int-last": lambda shape: 4096 - shape.length,
    "tensor-int64": lambda shape: torch.tensor([3, 1000]),
    "tensor-int32": lambda shape: torch.tensor([17, 0], dtype=torch.int32),
    "tensor-last": lambda shape: torch.tensor([0, 4096 - shape.length]),
}
