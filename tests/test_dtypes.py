"""Floating dtypes: what comes in comes out, as accurate as the dtype allows; buffers keep their own precision."""

from types import ModuleType

import pytest
import torch

from tests.cases import (
    BLOCK,
    BLOCK_CONDITIONED,
    BLOCK_CROSS,
    CROSS,
    LINEAR,
    LINEAR_SHAPES,
    SELF,
    SMALL,
    SOFTMAX,
    STACK,
    TARGET,
    Kind,
    Shape,
)
from tests.numerics import ROUNDING_MULTIPLE, relative_l2
from tests.verify import assert_matches_oracle, build, draw_inputs

pytestmark = pytest.mark.contract

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ACCURATE = (SELF, CROSS, BLOCK, BLOCK_CONDITIONED, BLOCK_CROSS, STACK)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [*SOFTMAX, *LINEAR], ids=str)
def test_outputs_have_the_dtype_and_shape_of_their_inputs(
    mmdit: ModuleType, kind: Kind, dtype: torch.dtype, rng: torch.Generator
) -> None:
    module = build(mmdit, kind, SMALL, rng).to(dtype)
    inputs = {name: t.to(dtype) for name, t in draw_inputs(kind, SMALL, rng).items()}
    out = module(**inputs)
    assert (out.x_out.dtype, out.x_out.shape) == (dtype, inputs["x"].shape)
    if "context" in inputs:
        assert (out.context_out.dtype, out.context_out.shape) == (dtype, inputs["context"].shape)
    else:
        assert out.context_out is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [SMALL, TARGET], ids=str)
@pytest.mark.parametrize("kind", ACCURATE, ids=str)
def test_every_dtype_is_as_accurate_as_it_can_be(
    mmdit: ModuleType, kind: Kind, shape: Shape, dtype: torch.dtype, rng: torch.Generator
) -> None:
    module = build(mmdit, kind, shape, rng).to(dtype)
    inputs = {name: t.to(dtype) for name, t in draw_inputs(kind, shape, rng).items()}
    assert_matches_oracle(module, kind, shape, inputs, rng)


@pytest.mark.parametrize("shape", LINEAR_SHAPES, ids=str)
@pytest.mark.parametrize("kind", LINEAR, ids=str)
def test_linear_attention_is_exact_in_fp64(mmdit: ModuleType, kind: Kind, shape: Shape, rng: torch.Generator) -> None:
    module = build(mmdit, kind, shape, rng).double()
    inputs = {name: t.double() for name, t in draw_inputs(kind, shape, rng).items()}
    assert_matches_oracle(module, kind, shape, inputs, rng)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", LINEAR, ids=str)
def test_linear_attention_forward_is_accurate_in_16_bits(
    mmdit: ModuleType, kind: Kind, dtype: torch.dtype, rng: torch.Generator
) -> None:
    shape = Shape(1, 65, 64, 2, 64)
    module = build(mmdit, kind, shape, rng).to(dtype)
    inputs = {name: t.to(dtype) for name, t in draw_inputs(kind, shape, rng).items()}
    truth, plain = (
        kind.truth(
            {name: t.to(precision) for name, t in module.state_dict().items()},
            **{name: t.to(precision) for name, t in inputs.items()},
            heads=shape.heads,
        )
        for precision in (torch.float64, dtype)
    )
    for got, rounded, want in zip(module(**inputs), plain, truth, strict=True):
        if want is not None:
            assert relative_l2(got, want) <= ROUNDING_MULTIPLE * relative_l2(rounded, want)


def test_positions_stay_exact_when_the_module_is_cast_to_16_bits(mmdit: ModuleType, rng: torch.Generator) -> None:
    module = build(mmdit, CROSS, SMALL, rng).bfloat16()
    inputs = {name: t.bfloat16() for name, t in draw_inputs(CROSS, SMALL, rng).items()}
    assert_matches_oracle(module, CROSS, SMALL, inputs, rng, start_pos=4096 - SMALL.length)


def test_casting_to_fp64_and_back_keeps_the_outputs(mmdit: ModuleType, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, STACK, SMALL, rng), draw_inputs(STACK, SMALL, rng)
    before = module(**inputs, start_pos=1000)
    after = module.double().float()(**inputs, start_pos=1000)
    assert torch.equal(before.x_out, after.x_out)


@pytest.mark.parametrize("kind", [SELF, CROSS, BLOCK, BLOCK_CROSS, STACK], ids=str)
def test_autocast_runs_forward_and_backward_near_fp32(mmdit: ModuleType, kind: Kind, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, kind, SMALL, rng), draw_inputs(kind, SMALL, rng)
    want = module(**inputs).x_out
    with torch.autocast("cpu", torch.bfloat16):
        got = module(**inputs).x_out
    assert relative_l2(got, want.double()) < 0.05  # measured: at most 0.015
    got.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
