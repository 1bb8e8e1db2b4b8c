"""SPEC N6 and K2: every public module scripts, is saved and loaded, and gives eager's numbers at other sizes."""

import io
from types import ModuleType

import pytest
import torch
from torch import nn

from tests.cases import (
    BLOCK,
    BLOCK_CONDITIONED,
    BLOCK_CROSS,
    CONTEXT_LEFT_OUT,
    CROSS,
    CROSS_LINEAR,
    NO_CONTEXT,
    SELF,
    SELF_LINEAR,
    SMALL,
    STACK,
    Kind,
    Shape,
)
from tests.numerics import assert_close
from tests.verify import build, draw_inputs, spread_weights

pytestmark = [pytest.mark.upgrade, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

KINDS = (
    SELF,
    SELF_LINEAR,
    NO_CONTEXT,
    CONTEXT_LEFT_OUT,
    CROSS,
    CROSS_LINEAR,
    BLOCK,
    BLOCK_CONDITIONED,
    BLOCK_CROSS,
    STACK,
)
OTHER_SHAPES = (Shape(1, 1, 1, 4, 16), SMALL, Shape(3, 65, 64, 4, 16))
ROUNDING = 1e-6
NORMS = {
    "last-axis": {"normalized_shape": 7},
    "two-axes": {"normalized_shape": [5, 7], "normalized_axes": [1, 3], "bias": True},
    "learnable-eps": {"normalized_shape": [3, 7], "learnable_eps": True},
    "without-weight": {"normalized_shape": [7], "elementwise_affine": False},
}


def scripted(module: nn.Module) -> torch.jit.ScriptModule:
    """The module after torch.jit.script, save and load."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_scripted_module_gives_the_same_numbers_at_every_size(
    mmdit: ModuleType, kind: Kind, rng: torch.Generator
) -> None:
    module = build(mmdit, kind, SMALL, rng)
    loaded = scripted(module)
    for shape in OTHER_SHAPES:
        inputs = draw_inputs(kind, shape, rng)
        for got, want in zip(loaded(**inputs), module(**inputs), strict=True):
            assert (got is None) == (want is None)
            if want is not None:
                assert_close(got, want, ROUNDING)


@pytest.mark.parametrize("start_pos", [3, torch.tensor([0, 4000])], ids=["int", "tensor"])
@pytest.mark.parametrize("kind", [SELF, CROSS, CROSS_LINEAR, BLOCK_CROSS, STACK], ids=str)
def test_a_scripted_module_takes_masks_and_positions(
    mmdit: ModuleType, kind: Kind, start_pos: int | torch.Tensor, rng: torch.Generator
) -> None:
    module, inputs = build(mmdit, kind, SMALL, rng), draw_inputs(kind, SMALL, rng)
    attn_mask = torch.rand(2, 17, 17, generator=rng).round().index_fill(1, torch.tensor(3), 0.0)
    options = {"attn_mask": attn_mask, "start_pos": start_pos}
    assert_close(scripted(module)(**inputs, **options).x_out, module(**inputs, **options).x_out, ROUNDING)


def test_a_scripted_stack_gives_the_same_gradients(mmdit: ModuleType, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, STACK, SMALL, rng), draw_inputs(STACK, SMALL, rng)
    loaded = scripted(module)
    for subject in (module, loaded):
        subject(**inputs).x_out.square().sum().backward()
    wanted = dict(module.named_parameters())
    for name, parameter in loaded.named_parameters():
        if wanted[name].grad is not None:
            assert_close(parameter.grad, wanted[name].grad, 1e-5)


@pytest.mark.parametrize("options", NORMS)
def test_a_scripted_norm_gives_the_same_numbers(mmdit: ModuleType, options: str, rng: torch.Generator) -> None:
    module = spread_weights(mmdit.RMSNorm(**NORMS[options]), rng)
    loaded = scripted(module)
    for batch in (1, 4):
        x = torch.randn(batch, 5, 3, 7, generator=rng)
        assert_close(loaded(x), module(x), ROUNDING)


@pytest.mark.parametrize("options", NORMS)
def test_a_scripted_norm_with_residual_gives_the_same_numbers(
    mmdit: ModuleType, options: str, rng: torch.Generator
) -> None:
    module = spread_weights(mmdit.RMSNormWithResidual(**NORMS[options], residual_scale=0.5), rng)
    x, residual = torch.randn(2, 4, 5, 3, 7, generator=rng)
    for got, want in zip(scripted(module)(x, residual), module(x, residual), strict=True):
        assert_close(got, want, ROUNDING)


@pytest.mark.parametrize("op", ["layernorm_adaln", "rmsnorm_adaln"])
def test_a_scripted_op_gives_the_same_numbers(mmdit: ModuleType, op: str, rng: torch.Generator) -> None:
    function = getattr(mmdit, op)
    x, scale, shift = (torch.randn(2, length, 16, generator=rng) for length in (7, 1, 1))
    assert_close(torch.jit.script(function)(x, scale, shift), function(x, scale, shift), ROUNDING)


def test_explain_says_that_a_scripted_module_takes_the_pytorch_path(mmdit: ModuleType, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, BLOCK_CROSS, SMALL, rng), draw_inputs(BLOCK_CROSS, SMALL, rng)
    explanation = mmdit.explain(torch.jit.script(module), **inputs)
    assert explanation.path == "pytorch"
    assert explanation.launches == ()
    assert "TorchScript" in str(explanation)
