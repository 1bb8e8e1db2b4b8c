"""SPEC A8: layernorm_adaln and rmsnorm_adaln against the fp64 oracle, both layouts of scale and shift, any strides."""

from types import ModuleType

import pytest
import torch

from tests.adaln import OPS, SIZES, VARIANTS, adaln_inputs, assert_adaln_matches_oracle

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_forward_and_gradients_match_the_oracle(
    mmdit: ModuleType, op: str, size: tuple[int, int, int], dtype: torch.dtype, rng: torch.Generator
) -> None:
    assert_adaln_matches_oracle(mmdit, op, adaln_inputs(op, size, rng), dtype)


@pytest.mark.parametrize("op", OPS)
def test_scale_and_shift_may_have_a_length_axis_of_one(mmdit: ModuleType, op: str, rng: torch.Generator) -> None:
    inputs = adaln_inputs(op, (3, 7, 16), rng)
    rows = {**inputs, "scale": inputs["scale"][:, None], "shift": inputs["shift"][:, None]}
    assert torch.equal(getattr(mmdit, op)(**rows), getattr(mmdit, op)(**inputs))
    assert_adaln_matches_oracle(mmdit, op, rows, torch.float32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("op", OPS)
def test_any_strides_and_scale_match_the_oracle(mmdit: ModuleType, op: str, variant: str, rng: torch.Generator) -> None:
    inputs = VARIANTS[variant](adaln_inputs(op, (3, 7, 16), rng))
    assert_adaln_matches_oracle(mmdit, op, inputs, torch.float32)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
@pytest.mark.parametrize("op", OPS)
def test_eps_is_added_under_the_root(mmdit: ModuleType, op: str, eps: float, rng: torch.Generator) -> None:
    inputs = adaln_inputs(op, (2, 7, 16), rng)
    inputs["x"] *= 1e-3  # so that an eps of 1e-6 counts as much as the mean square
    assert_adaln_matches_oracle(mmdit, op, inputs, torch.float32, eps=eps)


def test_a_weight_left_out_is_a_weight_of_ones(mmdit: ModuleType, rng: torch.Generator) -> None:
    inputs = adaln_inputs("rmsnorm_adaln", (2, 7, 16), rng)
    del inputs["weight"]
    assert_adaln_matches_oracle(mmdit, "rmsnorm_adaln", inputs, torch.float32)


@pytest.mark.parametrize("op", OPS)
def test_gradcheck_passes(mmdit: ModuleType, op: str, rng: torch.Generator) -> None:
    inputs = {name: t.double().requires_grad_() for name, t in adaln_inputs(op, (2, 3, 6), rng).items()}
    assert torch.autograd.gradcheck(
        lambda *tensors: getattr(mmdit, op)(**dict(zip(inputs, tensors, strict=True))), tuple(inputs.values())
    )
