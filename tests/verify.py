"""A module with spread weights beside the fp64 oracle: same inputs, same cotangents, every output and gradient."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tests import oracle
from tests.cases import Kind, Shape
from tests.numerics import NEGLIGIBLE, Values, assert_accurate, evaluate
from tests.oracle import StartPos

KINK = 1e-5  # ten times what fp32 rounds a normalised query or key by


def spread_weights(module: nn.Module, rng: torch.Generator) -> nn.Module:
    """Give every parameter values that matter: norm weights in [0.5, 1.5), biases away from zero."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            value = torch.randn(parameter.shape, generator=rng) / parameter.shape[-1] ** 0.5
        elif name.endswith("weight"):
            value = 0.5 + torch.rand(parameter.shape, generator=rng)
        else:
            value = 0.3 * torch.randn(parameter.shape, generator=rng)
        parameter.data.copy_(value)
    return module


def build(mmdit: ModuleType, kind: Kind, shape: Shape, rng: torch.Generator) -> nn.Module:
    return spread_weights(kind.build(mmdit, shape), rng).eval()


def draw_inputs(kind: Kind, shape: Shape, rng: torch.Generator) -> dict[str, Tensor]:
    """x (B, L, D), and of y (B, D) and context (B, C, D) what the kind takes."""
    sizes = {
        "x": (shape.batch, shape.length, shape.dim),
        "y": (shape.batch, shape.dim),
        "context": (shape.batch, shape.context, shape.dim),
    }
    return {name: torch.randn(sizes[name], generator=rng) for name in ("x", *kind.takes)}


def oracle_values(
    kind: Kind,
    module: nn.Module,
    inputs: dict[str, Tensor],
    cotangents: dict[str, Tensor],
    dtype: torch.dtype,
    **options: Any,
) -> Values:
    """The oracle on the module's own (rounded) weights and inputs, computed in dtype."""
    state = {name: p.detach().to(dtype).requires_grad_() for name, p in module.named_parameters()}
    leaves = {name: t.detach().to(dtype).requires_grad_() for name, t in inputs.items()}
    return evaluate(lambda: kind.truth(state, **leaves, **options), leaves | state, cotangents)


def module_values(
    module: nn.Module, inputs: dict[str, Tensor], cotangents: dict[str, Tensor], **options: Any
) -> Values:
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    return evaluate(lambda: module(**leaves, **options), leaves | dict(module.named_parameters()), cotangents)


def near_a_kink(module: nn.Module, inputs: dict[str, Tensor], heads: int, start_pos: StartPos) -> bool:
    """Whether rounding might turn a relu of linear attention on or off, and its gradient with it."""
    state = {name: p.detach().double() for name, p in module.named_parameters()}
    doubles = {name: t.double() for name, t in inputs.items()}
    arguments = oracle.relu_arguments(state, **doubles, heads=heads, start_pos=start_pos)
    return bool((arguments.abs() < KINK).any())


def assert_matches_oracle(
    module: nn.Module,
    kind: Kind,
    shape: Shape,
    inputs: dict[str, Tensor],
    rng: torch.Generator,
    negligible: float = NEGLIGIBLE,
    cancelling: str | None = None,
    **options: Any,
) -> None:
    """Forward and every gradient within the dtype's tolerance, or its multiple of plain rounding for 16 bits."""
    dtype = inputs["x"].dtype
    while kind.linear and near_a_kink(module, inputs, shape.heads, options.get("start_pos")):
        inputs = {name: torch.randn(t.shape, generator=rng).to(t) for name, t in inputs.items()}
    streams = {"x_out": inputs["x"], "context_out": inputs.get("context", inputs["x"])}
    cotangents = {n: torch.randn(t.shape, generator=rng).to(t) for n, t in streams.items()}
    got = module_values(module, inputs, cotangents, **options)
    options["heads"] = shape.heads
    assert_accurate(
        got, lambda p: oracle_values(kind, module, inputs, cotangents, p, **options), dtype, negligible, cancelling
    )


def assert_inference_matches_oracle(
    module: nn.Module, kind: Kind, shape: Shape, inputs: dict[str, Tensor], **options: Any
) -> None:
    """Forward with no gradient recorded, within the dtype's tolerance or its multiple of plain rounding."""

    def values(call: Callable[[], tuple[Tensor, Tensor | None]]) -> Values:
        named = zip(("x_out", "context_out"), call(), strict=True)
        return Values({name: out for name, out in named if out is not None}, {})

    def truth(precision: torch.dtype) -> Values:
        state = {name: p.to(precision) for name, p in module.named_parameters()}
        leaves = {name: t.to(precision) for name, t in inputs.items()}
        return values(lambda: kind.truth(state, **leaves, heads=shape.heads, **options))

    with torch.no_grad():
        assert_accurate(values(lambda: module(**inputs, **options)), truth, inputs["x"].dtype)
