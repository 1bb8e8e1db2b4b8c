"""SPEC N5: RMSNormWithResidual adds a scaled residual and normalises the sum."""

from types import ModuleType

import pytest
import torch

from tests import oracle
from tests.numerics import Values, assert_accurate, evaluate
from tests.verify import spread_weights

pytestmark = pytest.mark.upgrade


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [None, 0.0, 0.5, -2.0], ids=str)
def test_both_outputs_and_every_gradient_match_the_oracle(
    mmdit: ModuleType, scale: float | None, dtype: torch.dtype, rng: torch.Generator
) -> None:
    module = spread_weights(mmdit.RMSNormWithResidual(16, bias=True, residual_scale=scale), rng).to(dtype)
    inputs = {name: torch.randn(2, 7, 16, generator=rng).to(dtype) for name in ("x", "residual")}
    cotangents = {name: torch.randn(2, 7, 16, generator=rng).to(dtype) for name in ("normed", "sum")}
    parameters = dict(module.named_parameters())

    leaves = {name: t.clone().requires_grad_() for name, t in inputs.items()}
    got = evaluate(lambda: module(**leaves), leaves | parameters, cotangents)
    assert {t.dtype for t in got.outputs.values()} == {dtype}

    def reference(precision: torch.dtype) -> Values:
        own = {n: t.detach().to(precision).requires_grad_() for n, t in (inputs | parameters).items()}
        total = own["x"] + (1.0 if scale is None else scale) * own["residual"]
        normed = oracle.rms_norm_over(total, (-1,), 1e-6, own["weight"], own["bias"])
        return evaluate(lambda: (normed, total), own, cotangents)

    assert_accurate(got, reference, dtype)


def test_the_sum_is_normalised_over_any_axes(mmdit: ModuleType, rng: torch.Generator) -> None:
    module = spread_weights(mmdit.RMSNormWithResidual([5, 7], normalized_axes=[1, 3], residual_scale=0.5), rng)
    x, residual = torch.randn(2, 2, 5, 3, 7, generator=rng)
    normed, total = module(x, residual)
    torch.testing.assert_close(total, x + 0.5 * residual)
    torch.testing.assert_close(normed, oracle.rms_norm_over(total, (1, 3), 1e-6, module.weight))


@pytest.mark.parametrize("magnitude", [1e30, 1e-30, 0.0])
def test_outputs_and_gradients_are_finite_at_every_magnitude(mmdit: ModuleType, magnitude: float) -> None:
    x, residual = (torch.full((2, 7), magnitude, requires_grad=True) for _ in range(2))
    normed, total = mmdit.RMSNormWithResidual(7)(x, residual)
    (normed.sum() + total.sum()).backward()
    assert all(t.isfinite().all() for t in (normed, total, x.grad, residual.grad))


def test_a_residual_of_another_shape_raises_a_shape_error(mmdit: ModuleType) -> None:
    with pytest.raises(mmdit.ShapeError) as caught:
        mmdit.RMSNormWithResidual(7)(torch.ones(2, 7), torch.ones(1, 7))
    assert caught.value.argument == "residual"
