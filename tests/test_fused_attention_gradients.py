"""SPEC K1: the backward of joint attention, each case in Triton's interpreter and on a GPU."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from tests import attention_gradients
from tests.attention_gradients import Case
from tests.cases import TARGET, Shape

pytestmark = pytest.mark.upgrade

Run = Callable[..., None]
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
# Lengths that no tile divides, one row and none of context, heads of every width.
SHAPES = (
    Shape(3, 1, 1, 2, 16),
    Shape(2, 7, 5, 3, 6),
    Shape(1, 70, 0, 2, 16),
    Shape(1, 65, 64, 2, 32),
    Shape(1, 33, 9, 1, 64),
)
SMALL = Shape(2, 17, 5, 1, 16)
LONG = Shape(1, 250, 70, 1, 16)  # more than a tile of keys
CASES = [Case(shape, dtype) for shape, dtype in product(SHAPES, (FP32, FP16))]
CASES += [Case(replace(TARGET, batch=1, heads=2), FP16, padded=True), Case(LONG, FP16, padded=True), Case(LONG, FP32)]
CASES += [Case(SMALL, FP32, padded=True), Case(Shape(1, 64, 64, 1, 16), FP32, padded=True)]
MASKED = [Case(SMALL, dtype, mask) for dtype in (FP32, FP16) for mask in ("causal", "empty-rows-and-columns")]
MASKED += [Case(SMALL, FP16, "all-empty"), Case(replace(SMALL, context=0), FP16, "all-empty")]
MASKED += [Case(SMALL, FP32, "one-sample-empty", padded=True), Case(LONG, FP16, "empty-rows", padded=True)]
STRIDED = [Case(SMALL, FP32, strided=True), Case(SMALL, FP16, strided=True, padded=True)]
# gain: logits grow with its square, past what exp2 takes without the running maximum.
SIZES = [
    Case(SMALL, FP32, gain=2.0, gradient_gain=1e6),
    Case(SMALL, FP32, gain=1e-3, gradient_gain=1e-6),
    Case(SMALL, FP16, gain=2.5, gradient_gain=100.0),
    Case(SMALL, FP16, "empty-rows", gain=0.05),
    Case(SMALL, FP16, padded=True, gain=3.0, opposed=True),
    Case(SMALL, FP32, padded=True, gain=4.0, opposed=True),
]
GPU = [Case(shape, dtype) for shape, dtype in product(SHAPES, (FP32, FP16, BF16))]
GPU += [Case(TARGET, dtype, mask, padded=True) for dtype in (FP32, FP16, BF16) for mask in (None, "empty-rows")]
GPU += [Case(Shape(32, 186, 64, 8, 16), dtype, padded=True) for dtype in (FP16, BF16)]
GPU += [Case(Shape(1, 1000, 77, 2, width), dtype) for width in (16, 32, 64) for dtype in (FP16, BF16)]
GPU += [Case(Shape(1, 4096, 129, 1, 16), BF16), Case(Shape(1, 500, 129, 2, 64), FP32)]
GPU += [Case(Shape(1, 600, 77, 2, 32), dtype, "empty-rows-and-columns") for dtype in (FP32, BF16)]
GPU += [Case(TARGET, FP32, padded=True, precision="high")]
GPU += [Case(TARGET, BF16, padded=True, gain=gain, gradient_gain=g) for gain, g in ((3.0, 1e6), (1e-3, 1e-6))]
GPU += [Case(TARGET, BF16, padded=True, gain=4.0, opposed=True), Case(TARGET, BF16, strided=True)]
# Of Hopper's kernel: a tile of queries with one row, full tiles, no context, rows that end within a tile.
HOPPER_SHAPES = (Shape(2, 65, 0, 3, 16), Shape(3, 64, 64, 8, 16), Shape(2, 130, 3, 8, 16), Shape(1, 192, 64, 8, 16))
HOPPER = [
    Case(shape, dtype, padded=padded) for shape in HOPPER_SHAPES for dtype in (FP16, BF16) for padded in (False, True)
]
HOPPER += [Case(TARGET, BF16, padded=True, gain=4.0, opposed=True)]
HOPPER += [Case(Shape(2, 70, 50, 8, 16), FP16, padded=True, gain=3.0, opposed=True, strided=True)]


@pytest.mark.parametrize("case", [*CASES, *MASKED, *STRIDED, *SIZES], ids=str)
def test_the_gradients_match_the_oracle(run: Run, case: Case) -> None:
    run(attention_gradients.gradients_match_the_oracle, case)


@pytest.mark.gpu
@pytest.mark.parametrize("case", GPU, ids=str)
def test_the_gradients_match_the_oracle_at_sizes_and_in_dtypes_of_a_gpu(case: Case, seed: int) -> None:
    attention_gradients.gradients_match_the_oracle(case, "cuda", seed)


@pytest.mark.gpu
@pytest.mark.parametrize("case", HOPPER, ids=str)
def test_the_kernel_for_hopper_matches_the_oracle(case: Case, seed: int) -> None:
    attention_gradients.hopper_gives_the_same_gradients(case, "cuda", seed)


@pytest.mark.parametrize("mask", ["empty-rows", "empty-rows-and-columns", "all-empty"])
@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
def test_rows_that_see_nothing_get_and_give_exactly_no_gradient(run: Run, dtype: torch.dtype, mask: str) -> None:
    case = Case(replace(SMALL, context=0), dtype, mask, padded=True)
    run(attention_gradients.rows_that_see_nothing_get_and_give_no_gradient, case)


@pytest.mark.parametrize("case", [Case(SMALL, FP32, "random"), Case(SMALL, FP16, padded=True)], ids=str)
def test_two_runs_give_the_same_bits(run: Run, case: Case) -> None:
    run(attention_gradients.two_runs_give_the_same_bits, case)


@pytest.mark.gpu
@pytest.mark.parametrize("mask", [None, "random"])
@pytest.mark.parametrize("shape", [replace(TARGET, batch=128), Shape(4, 600, 77, 8, 16)], ids=str)
def test_two_runs_on_a_gpu_give_the_same_bits(shape: Shape, mask: str | None, seed: int) -> None:
    attention_gradients.two_runs_give_the_same_bits(Case(shape, BF16, mask, padded=True), "cuda", seed)


# Tiles: queries, keys, warps, stages, block.
@pytest.mark.parametrize(
    "tiles",
    [
        ((16, 128, 8, 1, 16), None),
        ((64, 128, 8, 2, 16), None),
        ((64, 32, 4, 2, 16), (32, 64, 4, 1, 16)),
        ((16, 16, 4, 1, 16), (16, 16, 4, 3, 16)),
    ],
    ids=str,
)
@pytest.mark.parametrize("mask", [None, "empty-rows-and-columns"])
def test_any_tiles_give_the_same_gradients(run: Run, mask: str | None, tiles: tuple[Any, ...]) -> None:
    run(
        attention_gradients.any_tiles_give_the_same_gradients,
        Case(Shape(2, 33, 5, 1, 16), FP16, mask, padded=True),
        tiles,
    )
