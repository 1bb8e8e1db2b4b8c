"""Checks of the sums over rows that the backward takes, for Triton's interpreter (device "cpu") and for a GPU."""

from importlib import import_module
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.kernels import seeded

SHAPE = (32, 64)
TF32_BITS = 11  # of a mantissa, the first among them


@triton.jit
def _kernel(p_from, p_like, p_to, ADD: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr):
    o = tl.arange(0, ROWS)[:, None] * DIM + tl.arange(0, DIM)[None, :]
    ADD(p_to, 1, tl.load(p_from + o), DIM, DIM, p_like.dtype.element_ty)


def summed(given: Tensor, dtype: torch.dtype) -> Tensor:
    """Over rows, in fp32, as a call of `dtype` does."""
    add_sum: Any = import_module("mmdit.ops.stack_backward.kernel_parts").add_sum
    sums = torch.full((3, SHAPE[1]), float("nan"), device=given.device)
    _kernel[(1,)](given, given.to(dtype), sums, add_sum, *SHAPE)
    assert sums[::2].isnan().all(), "beyond its slot"
    return sums[1]


def sums_are_the_rows_and_keep_what_is_no_number(device: str, seed: int) -> None:
    given = torch.randn(SHAPE, generator=seeded(seed)).to(device)
    torch.testing.assert_close(summed(given, torch.float32), given.sum(0))
    mantissa, exponent = given.frexp()
    rounded = (mantissa * 2**TF32_BITS).round().ldexp(exponent - TF32_BITS)
    torch.testing.assert_close(summed(given, torch.float16), rounded.sum(0))
    for bits in (0x7FFFFFFF, 0x7FC00000, 0x7F800000):  # a GPU's NaN, the usual one, infinity
        given.view(torch.int32)[5, 7] = bits
        for dtype in (torch.float32, torch.float16):
            assert (~summed(given, dtype).isfinite()).nonzero().tolist() == [[7]], hex(bits)
