"""SPEC K1, K2, K5: attention without gradients takes its kernel, run through Triton's interpreter."""

from collections.abc import Callable
from itertools import product

import pytest
import torch

from tests import kernels
from tests.cases import MASKS, SHAPES, SMALL, Shape

pytestmark = pytest.mark.upgrade

Interpreted = Callable[..., None]
DTYPES = (torch.float32, torch.float16)  # Triton's interpreter computes bf16 wrongly
WIDE = Shape(1, 70, 9, 1, 64)
# In fp32 the kernel takes heads of up to 16: above, PyTorch's is the faster one.
CASES = [(s, d) for s, d in product([*SHAPES, WIDE], DTYPES) if d != torch.float32 or s.dim_head <= 16]


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_the_kernel_matches_the_oracle(
    interpreted: Interpreted, kind: str, shape: Shape, dtype: torch.dtype, seed: int
) -> None:
    interpreted(kernels.inference_takes_only_kernels, kind, shape, dtype, None, 1.0, seed)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_the_masked_kernel_matches_the_oracle(interpreted: Interpreted, kind: str, mask: str, seed: int) -> None:
    interpreted(kernels.inference_takes_only_kernels, kind, SMALL, torch.float32, mask, 1.0, seed)


@pytest.mark.parametrize("mask", [None, "empty-rows-and-columns"])
@pytest.mark.parametrize(("dtype", "gain"), [(torch.float32, 4.0), (torch.float16, 2.0)], ids=str)
def test_logits_too_large_for_a_plain_exponential_are_exact_still(
    interpreted: Interpreted, dtype: torch.dtype, gain: float, mask: str | None, seed: int
) -> None:
    interpreted(kernels.inference_takes_only_kernels, "cross", SMALL, dtype, mask, gain, seed)


@pytest.mark.parametrize("kind", kernels.FUSED_KINDS)
def test_blocks_without_gradients_take_only_kernels_and_match_the_oracle(
    interpreted: Interpreted, kind: str, seed: int
) -> None:
    interpreted(kernels.inference_takes_only_kernels, kind, SMALL, torch.float32, None, 1.0, seed)


@pytest.mark.parametrize(("dtype", "dim_head"), [(torch.float32, 32), (torch.float16, 128)], ids=str)
def test_heads_too_wide_for_the_kernel_take_pytorch_and_explain_says_so(
    interpreted: Interpreted, dtype: torch.dtype, dim_head: int, seed: int
) -> None:
    interpreted(kernels.wide_heads_take_pytorch, dtype, dim_head, seed)
