"""Inputs of the functional ops, and their comparison with the oracle; used in both processes, on any device."""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from tests import oracle
from tests.numerics import Values, assert_accurate, evaluate

OPS = ("layernorm_adaln", "rmsnorm_adaln")
SIZES = ((1, 1, 16), (3, 7, 100), (2, 186, 128), (2, 5, 257))  # B, L, D


def adaln_inputs(op: str, size: tuple[int, int, int], rng: torch.Generator) -> dict[str, Tensor]:
    """x (B, L, D) off its origin, scale and shift (B, D), and rmsnorm_adaln's weight (D,)."""
    batch, length, dim = size
    inputs = {
        "x": torch.randn(batch, length, dim, generator=rng) + 0.5,
        "scale": torch.randn(batch, dim, generator=rng),
        "shift": torch.randn(batch, dim, generator=rng),
    }
    weight = {"weight": 0.5 + torch.rand(dim, generator=rng)}
    return inputs | weight if op == "rmsnorm_adaln" else inputs


def strided(t: Tensor) -> Tensor:
    """The values of t in every second row of a larger tensor that is NaN elsewhere."""
    wide = t.new_full((t.shape[0], 2 * t.shape[1], t.shape[2] + 3), torch.nan)
    wide[:, ::2, : t.shape[2]] = t
    return wide[:, ::2, : t.shape[2]]


def chunked(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """scale and shift as two of the six chunks (B, 1, D) of one modulation (B, 1, 6 D), NaN elsewhere."""
    batch, _, dim = inputs["x"].shape
    modulation = torch.full((batch, 1, 6 * dim), torch.nan, device=inputs["x"].device)
    chunks = modulation.chunk(6, dim=-1)
    for chunk, name in zip(chunks[3:5], ("scale", "shift"), strict=True):
        chunk[:] = inputs[name][:, None]
    return {**inputs, "scale": chunks[3], "shift": chunks[4]}


def spaced_weight(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """weight, where there is one, as every third element of a tensor that is NaN elsewhere."""
    spaced = {}
    if "weight" in inputs:
        wide = torch.full((len(inputs["weight"]), 3), torch.nan, device=inputs["x"].device)
        wide[:, 1] = inputs["weight"]
        spaced["weight"] = wide[:, 1]
    return {**inputs, **spaced}


VARIANTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "plain": lambda inputs: inputs,
    "eps-counts": lambda inputs: {**inputs, "x": inputs["x"] * 1e-3},
    "strided-rows": lambda inputs: {**inputs, "x": strided(inputs["x"])},
    "transposed": lambda inputs: {**inputs, "x": inputs["x"].mT.contiguous().mT},
    "expanded": lambda inputs: {**inputs, "x": inputs["x"][:1].expand_as(inputs["x"])},
    "chunks-of-the-modulation": chunked,
    "spaced-weight": spaced_weight,
}


def adaln_values(op: object, inputs: dict[str, Tensor], dtype: torch.dtype, **options: float) -> Values:
    """The output of op in dtype, and the gradient of every input; strides are kept."""
    leaves = {name: t.detach().to(dtype).requires_grad_() for name, t in inputs.items()}
    cotangent = torch.linspace(-2, 2, inputs["x"].numel(), device=inputs["x"].device).sin().reshape(inputs["x"].shape)
    return evaluate(lambda: (op(**leaves, **options),), leaves, {"out": cotangent})


def assert_adaln_matches_oracle(
    mmdit: ModuleType, op: str, inputs: dict[str, Tensor], dtype: torch.dtype, **options: float
) -> None:
    """Forward and every gradient, from inputs rounded to dtype."""
    rounded = {name: t.to(dtype) for name, t in inputs.items()}
    got = adaln_values(getattr(mmdit, op), rounded, dtype, **options)
    assert got.outputs["out"].dtype == dtype
    assert_accurate(got, lambda p: adaln_values(getattr(oracle, op), rounded, p, **options), dtype)
