"""SPEC N: RMSNorm and RMSNormWithResidual as deployable modules. What the plain RMSNorm does too is contract."""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import oracle
from tests.numerics import Values, assert_accurate, evaluate
from tests.verify import spread_weights

SIZES = (2, 5, 3, 7)
AXES = ((-1,), (-2, -1), (1,), (0,), (1, 3), (3, 1), (2, 0, 1), (0, 1, 2, 3))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPTIONS = ("elementwise_affine", "bias", "learnable_eps")
REQUIRED = inspect.Parameter.empty


def norm_values(norm: Callable[..., Any], leaves: dict[str, Tensor], cotangent: Tensor) -> Values:
    return evaluate(lambda: (norm(),), leaves, {"out": cotangent})


def assert_norm_matches_oracle(
    module: nn.Module, x: Tensor, axes: tuple[int, ...], eps: float, rng: torch.Generator, scale: float = 1.0
) -> None:
    """module(scale * x), and every gradient, against the oracle's RMSNorm of x with eps / scale**2, its equal."""
    cotangent = torch.randn(x.shape, generator=rng).to(x.dtype)
    parameters = dict(module.named_parameters())
    scaled = (x.detach() * scale).requires_grad_()
    got = norm_values(lambda: module(scaled), {"x": scaled, **parameters}, cotangent)
    got.gradients["x"] = got.gradients["x"].double() * scale

    def reference(dtype: torch.dtype) -> Values:
        leaves = {n: t.detach().to(dtype).requires_grad_() for n, t in {"x": x, **parameters}.items()}
        weight, bias, log_eps = (leaves.get(name) for name in ("weight", "bias", "log_eps"))
        floor = (eps if log_eps is None else log_eps.exp()) / scale / scale
        return norm_values(lambda: oracle.rms_norm_over(leaves["x"], axes, floor, weight, bias), leaves, cotangent)

    assert got.outputs["out"].dtype == x.dtype
    assert_accurate(got, reference, x.dtype)


def build_norm(mmdit: ModuleType, axes: tuple[int, ...], rng: torch.Generator, **options: Any) -> nn.Module:
    sizes = [SIZES[axis] for axis in axes]
    return spread_weights(mmdit.RMSNorm(sizes, normalized_axes=axes, **options), rng)


@pytest.mark.contract
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(7,), (3, 7), (2, 3, 5, 7), (0, 7)], ids=str)
def test_the_plain_norm_over_the_last_axis_matches_the_oracle(
    mmdit: ModuleType, sizes: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator
) -> None:
    module = spread_weights(mmdit.RMSNorm(7, eps=1e-3), rng).to(dtype)
    assert_norm_matches_oracle(module, torch.randn(sizes, generator=rng).to(dtype), (-1,), 1e-3, rng)


@pytest.mark.contract
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_zero_vector_gives_zero_and_a_finite_gradient(mmdit: ModuleType, dtype: torch.dtype) -> None:
    x = torch.zeros(2, 7, dtype=dtype, requires_grad=True)
    out = mmdit.RMSNorm(7).to(dtype)(x)
    out.sum().backward()
    assert (out == 0).all()
    assert x.grad.isfinite().all()


@pytest.mark.upgrade
def test_signatures_are_those_of_the_specification(mmdit: ModuleType) -> None:
    wanted = {
        "normalized_shape": REQUIRED, "eps": 1e-6, "elementwise_affine": True, "bias": False,
        "learnable_eps": False, "normalized_axes": None, "dtype": None, "device": None,
    }  # fmt: skip
    found = inspect.signature(mmdit.RMSNorm).parameters
    assert {name: p.default for name, p in found.items()} == wanted
    assert mmdit.RMSNormWithResidual(4, 1e-6, True, False, False, None, None, None, residual_scale=None)


@pytest.mark.upgrade
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_any_set_of_axes_matches_the_oracle(mmdit: ModuleType, axes: tuple[int, ...], rng: torch.Generator) -> None:
    module = build_norm(mmdit, axes, rng, eps=1e-3, bias=True)
    assert_norm_matches_oracle(module, torch.randn(SIZES, generator=rng), axes, 1e-3, rng)


@pytest.mark.upgrade
@pytest.mark.parametrize("on", [(), *((name,) for name in OPTIONS), OPTIONS], ids=lambda on: "-".join(on) or "none")
def test_every_option_matches_the_oracle(mmdit: ModuleType, on: tuple[str, ...], rng: torch.Generator) -> None:
    module = mmdit.RMSNorm([3, 7], eps=0.1, **{name: name in on for name in OPTIONS})
    names = {"elementwise_affine": "weight", "bias": "bias", "learnable_eps": "log_eps"}
    assert {name for name, _ in module.named_parameters()} == {names[name] for name in on}
    x = torch.randn(SIZES, generator=rng)
    assert_norm_matches_oracle(module, x, (-2, -1), 0.1, rng)


@pytest.mark.upgrade
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_as_accurate_as_it_can_be(mmdit: ModuleType, dtype: torch.dtype, rng: torch.Generator) -> None:
    module = build_norm(mmdit, (1, 3), rng, bias=True, learnable_eps=True).to(dtype)
    assert_norm_matches_oracle(module, torch.randn(SIZES, generator=rng).to(dtype), (1, 3), 1e-6, rng)


@pytest.mark.upgrade
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_parameters_are_made_in_the_dtype_and_on_the_device_asked_for(mmdit: ModuleType, dtype: torch.dtype) -> None:
    module = mmdit.RMSNorm(7, bias=True, learnable_eps=True, dtype=dtype, device="meta")
    assert [(p.dtype, p.device.type) for p in module.parameters()] == [(dtype, "meta")] * 3


@pytest.mark.upgrade
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_autocast_returns_the_inputs_dtype_with_fp32_parameters(
    mmdit: ModuleType, dtype: torch.dtype, rng: torch.Generator
) -> None:
    module, x = build_norm(mmdit, (1, 3), rng, bias=True), torch.randn(SIZES, generator=rng).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert_norm_matches_oracle(module, x, (1, 3), 1e-6, rng)


@pytest.mark.upgrade
@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [
        (torch.float32, 100), (torch.float32, -100), (torch.bfloat16, 100), (torch.bfloat16, -100),
        (torch.float64, 664), (torch.float64, -400), (torch.float16, 12), (torch.float16, -12),
    ],
    ids=str,
)  # fmt: skip
def test_values_and_gradients_are_right_at_extreme_magnitudes(
    mmdit: ModuleType, dtype: torch.dtype, exponent: int, rng: torch.Generator
) -> None:
    """2**100 is 1.3e30 and 2**664 is 7.7e199; a power of two scales without rounding."""
    module = build_norm(mmdit, (1, 3), rng, bias=True).to(dtype)
    x = torch.randn(SIZES, generator=rng).to(dtype)
    assert_norm_matches_oracle(module, x, (1, 3), 1e-6, rng, scale=2.0**exponent)


@pytest.mark.upgrade
@pytest.mark.parametrize("learnable_eps", [False, True])
def test_a_zero_vector_gives_the_bias_and_finite_gradients(mmdit: ModuleType, learnable_eps: bool) -> None:
    module = mmdit.RMSNorm([3, 7], bias=True, learnable_eps=learnable_eps)
    x = torch.zeros(2, 3, 7, requires_grad=True)
    out = module(x)
    out.sum().backward()
    assert torch.equal(out, module.bias.expand_as(out))
    assert all(t.grad.isfinite().all() for t in (x, *module.parameters()))


@pytest.mark.upgrade
@pytest.mark.parametrize("sizes", [(0, 5, 3, 7), (2, 5, 0, 7)], ids=str)
def test_an_empty_tensor_gives_an_empty_tensor_and_gradients_of_zero(
    mmdit: ModuleType, sizes: tuple[int, ...], rng: torch.Generator
) -> None:
    module, x = build_norm(mmdit, (1, 3), rng, bias=True), torch.zeros(sizes, requires_grad=True)
    out = module(x)
    out.sum().backward()
    assert out.shape == x.grad.shape == sizes
    assert all((p.grad == 0).all() for p in module.parameters())


@pytest.mark.upgrade
def test_sizes_off_the_normalised_axes_may_change_from_call_to_call(mmdit: ModuleType, rng: torch.Generator) -> None:
    module = build_norm(mmdit, (1, 3), rng, bias=True)
    for batch, length in ((1, 1), (3, 4), (2, 65)):
        assert_norm_matches_oracle(module, torch.randn(batch, 5, length, 7, generator=rng), (1, 3), 1e-6, rng)


@pytest.mark.upgrade
@pytest.mark.parametrize("view", ["transposed", "sliced", "expanded"])
def test_strided_inputs_match_the_oracle(mmdit: ModuleType, view: str, rng: torch.Generator) -> None:
    views = {
        "transposed": lambda: torch.randn(7, 3, 5, 2, generator=rng).permute(3, 2, 1, 0),
        "sliced": lambda: torch.randn(2, 5, 6, 14, generator=rng)[:, :, ::2, ::2],
        "expanded": lambda: torch.randn(1, 5, 1, 7, generator=rng).expand(SIZES),
    }
    module = build_norm(mmdit, (1, 3), rng, bias=True)
    assert_norm_matches_oracle(module, views[view](), (1, 3), 1e-6, rng)


@pytest.mark.upgrade
@pytest.mark.parametrize("learnable_eps", [False, True])
def test_gradcheck_passes(mmdit: ModuleType, learnable_eps: bool, rng: torch.Generator) -> None:
    module = build_norm(mmdit, (1, 3), rng, bias=True, learnable_eps=learnable_eps).double()
    x = torch.randn(SIZES, generator=rng).double().requires_grad_()
    parameters = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    assert torch.autograd.gradcheck(
        lambda x, *values: torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), x),
        (x, *parameters.values()),
    )


@pytest.mark.upgrade
@pytest.mark.parametrize(
    ("argument", "build"),
    [
        ("normalized_shape", lambda m: m.RMSNorm([], bias=True)),
        ("normalized_shape", lambda m: m.RMSNorm([3, 0], bias=True)),
        ("normalized_axes", lambda m: m.RMSNorm([3, 7], normalized_axes=[1])),
        ("normalized_axes", lambda m: m.RMSNorm([3, 3], normalized_axes=[1, 1])),
        ("eps", lambda m: m.RMSNorm([3, 7], eps=-1.0, bias=True)),
    ],
)
def test_arguments_that_do_not_fit_raise_config_errors(
    mmdit: ModuleType, argument: str, build: Callable[[ModuleType], nn.Module]
) -> None:
    with pytest.raises(mmdit.ConfigError) as caught:
        build(mmdit)
    assert caught.value.argument == argument


@pytest.mark.upgrade
@pytest.mark.parametrize("sizes", [(2, 5, 3, 6), (2, 4, 3, 7), (2, 5)], ids=str)
def test_an_input_without_the_normalised_axes_raises_a_shape_error(mmdit: ModuleType, sizes: tuple[int, ...]) -> None:
    with pytest.raises(mmdit.ShapeError) as caught:
        mmdit.RMSNorm([5, 7], normalized_axes=[1, 3])(torch.ones(sizes))
    assert caught.value.argument == "x"
