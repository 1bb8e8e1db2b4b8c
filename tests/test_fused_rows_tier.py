"""SPEC K1, K2, K5: inference with PyTorch's matrix products and a kernel for all between two of them."""

from collections.abc import Callable
from itertools import product

import pytest
import torch

from tests import rows_tier
from tests.cases import TARGET, Shape
from tests.quick import slow_unless
from tests.rows_tier import KINDS, SMALL, STARTS, VARIANTS

pytestmark = pytest.mark.upgrade

Run = Callable[..., None]
DTYPES = (torch.float32, torch.float16)  # Triton's interpreter computes bf16 wrongly
GPU_DTYPES = (*DTYPES, torch.bfloat16)
SHAPES = (SMALL, Shape(1, 1, 1, 4, 16), Shape(3, 37, 5, 3, 32), Shape(2, 7, 0, 2, 6))
WIDE = (TARGET, Shape(2, 130, 33, 8, 128), Shape(1, 65, 7, 32, 32), Shape(2, 300, 1, 5, 64), Shape(2, 300, 3, 16, 16))
# What gated_residual may go without.
LEFT_OUT = ((), ("rms_weight",), ("scale", "shift"), ("bias", "gate", "rms_weight"))
OPS = ("pack_heads", "gated_residual")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_heads_match_the_oracle(run: Run, shape: Shape, dtype: torch.dtype) -> None:
    run(rows_tier.heads_are_packed, shape, dtype, "none", "plain")


@pytest.mark.parametrize("start", STARTS)
def test_packed_heads_turn_by_their_positions(run: Run, start: str) -> None:
    run(rows_tier.heads_are_packed, SMALL, torch.float32, start, "plain")


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "plain"])
def test_packed_heads_match_the_oracle_on_any_strides_and_scale(run: Run, variant: str) -> None:
    run(rows_tier.heads_are_packed, SMALL, torch.float32, "none", variant)


@pytest.mark.parametrize("as_tensor", [False, True], ids=["int", "tensor"])
@pytest.mark.parametrize("start", [-3, 10**6])
def test_positions_outside_the_tables_take_their_first_or_last_row(run: Run, start: int, as_tensor: bool) -> None:
    run(rows_tier.positions_stay_in_the_tables, start, as_tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("left_out", LEFT_OUT, ids=lambda names: "without-" + "-".join(names or ("nothing",)))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gated_residual_matches_the_oracle(
    run: Run, shape: Shape, left_out: tuple[str, ...], dtype: torch.dtype
) -> None:
    run(rows_tier.residual_is_gated, shape, dtype, left_out, "plain", shape.batch)


@pytest.mark.parametrize("left_out", [("bias",), ("bias", "rms_weight")], ids=["rms-norm", "none"])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "plain"])
def test_a_gated_residual_matches_the_oracle_on_any_strides_and_scale(
    run: Run, variant: str, left_out: tuple[str, ...]
) -> None:
    run(rows_tier.residual_is_gated, SMALL, torch.float32, left_out, variant, SMALL.batch)


def test_a_gated_residual_takes_one_modulation_for_all_samples(run: Run) -> None:
    run(rows_tier.residual_is_gated, SMALL, torch.float32, (), "plain", 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gated_residual_of_the_branch_s_dtype_stays_in_it(run: Run, dtype: torch.dtype) -> None:
    run(rows_tier.residual_may_have_the_branch_s_dtype, dtype)


@pytest.mark.parametrize("op", OPS)
def test_where_gradients_are_recorded_ops_take_pytorch_and_keep_them(run: Run, op: str) -> None:
    run(rows_tier.recorded_gradients_take_pytorch, op)


@pytest.mark.parametrize("op", OPS)
def test_registered_ops_pass_opcheck(run: Run, op: str) -> None:
    run(rows_tier.ops_pass_opcheck, op)


@pytest.mark.parametrize(
    ("kind", "shape", "dtype"),
    slow_unless(
        lambda kind, shape, dtype: shape.length < 37 or (kind, dtype) == ("cross", torch.float32),
        product(KINDS, SHAPES, DTYPES),
    ),
    ids=str,
)
def test_layers_match_the_oracle_and_launch_one_kernel_between_products(
    run: Run, kind: str, shape: Shape, dtype: torch.dtype
) -> None:
    run(rows_tier.layers_match_the_oracle, kind, shape, dtype, None, "none", False)


@pytest.mark.parametrize(
    ("kind", "mask", "start"),
    slow_unless(
        lambda kind, mask, start: kind == "cross" or (mask, start) == ("padding", "int"),
        product(KINDS, (None, "empty-rows-and-columns", "padding"), ("int", "spaced-tensor")),
    ),
)
def test_layers_with_masks_and_positions_match_the_oracle(run: Run, kind: str, mask: str | None, start: str) -> None:
    run(rows_tier.layers_match_the_oracle, kind, SMALL, torch.float32, mask, start, False)


@pytest.mark.parametrize("mask", ["empty-rows-and-columns", "padding"])
def test_layers_with_masks_and_heads_too_wide_for_the_kernel_match_the_oracle(run: Run, mask: str) -> None:
    run(rows_tier.layers_match_the_oracle, "cross", Shape(3, 13, 6, 3, 32), torch.float32, mask, "int", False)


@pytest.mark.parametrize("kind", slow_unless(lambda kind: kind == "cross", KINDS))
def test_layers_compile_whole_and_keep_their_kernels(run: Run, kind: str) -> None:
    run(rows_tier.layers_match_the_oracle, kind, SMALL, torch.float32, None, "int", True)


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "dtype"), [*product(WIDE, GPU_DTYPES), (SMALL, torch.bfloat16)], ids=str)
def test_packed_heads_of_any_size_match_the_oracle_on_a_gpu(shape: Shape, dtype: torch.dtype, seed: int) -> None:
    rows_tier.heads_are_packed(shape, dtype, "tensor", "plain", "cuda", seed)


@pytest.mark.gpu
@pytest.mark.parametrize("left_out", LEFT_OUT[:2], ids=["rms-norm", "none"])
@pytest.mark.parametrize(("shape", "dtype"), [*product(WIDE, GPU_DTYPES), (SMALL, torch.bfloat16)], ids=str)
def test_a_gated_residual_of_any_size_matches_the_oracle_on_a_gpu(
    shape: Shape, dtype: torch.dtype, left_out: tuple[str, ...], seed: int
) -> None:
    rows_tier.residual_is_gated(shape, dtype, left_out, "plain", shape.batch, "cuda", seed)


@pytest.mark.gpu
@pytest.mark.parametrize("mask", [None, "random"])
@pytest.mark.parametrize(("shape", "dtype"), [*product(WIDE, GPU_DTYPES), (SMALL, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_any_size_match_the_oracle_on_a_gpu(
    kind: str, shape: Shape, dtype: torch.dtype, mask: str | None, seed: int
) -> None:
    rows_tier.layers_match_the_oracle(kind, shape, dtype, mask, "tensor", False, "cuda", seed)
