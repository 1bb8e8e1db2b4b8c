"""Checks of the op that takes all modulations of a stack in one launch: for Triton's interpreter in a process of its
own (device "cpu"), and for a GPU. Each raises or returns.
"""

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from tests import oracle
from tests.kernels import seeded
from tests.numerics import Values, assert_accurate
from tests.tiles_tier import fp32_products, shifted

Size = tuple[int, int, int]  # B, D, how many weights
VARIANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda y: y,
    "strided-rows": lambda y: torch.stack((torch.full_like(y, torch.nan), y), dim=1)[:, 1],
    "transposed": lambda y: y.mT.contiguous().mT,
    "expanded": lambda y: y[:1].expand_as(y),
    "large": lambda y: y * 20,
}
# What the kernel cannot take: (D, which tensors are moved, precision of fp32 products).
FALLBACKS = {
    "a-weight-at-an-odd-address": (32, "weights", "high"),
    "a-bias-at-an-odd-address": (32, "biases", "high"),
    "exact-fp32-products": (32, "", "highest"),
    "wide": (272, "", "high"),
}


def draw(
    size: Size, dtype: torch.dtype, device: str, rng: torch.Generator
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    batch, dim, count = size
    weights = [torch.randn(6 * dim, dim, generator=rng) / dim**0.5 for _ in range(count)]
    tensors = (torch.randn(batch, dim, generator=rng), *weights, *torch.randn(count, 6 * dim, generator=rng).unbind())
    y, *others = (t.to(device, dtype) for t in tensors)
    return y, others[:count], others[count:]


def truth(y: Tensor, weights: list[Tensor], biases: list[Tensor], precision: torch.dtype) -> Values:
    activated = oracle.silu(y.to(precision))
    chunks = [activated @ w.to(precision).T + b.to(precision) for w, b in zip(weights, biases, strict=True)]
    return Values({"out": torch.stack(chunks, dim=1)}, {})


def assert_modulates(
    y: Tensor, weights: list[Tensor], biases: list[Tensor], launches: tuple[str, ...], precision: str
) -> None:
    """In fp32, near to the oracle and to the reference, by these launches."""
    op, reference = (import_module(f"mmdit.ops.modulation.{name}") for name in ("op", "reference"))
    got: list[Tensor] = []
    with torch.no_grad(), fp32_products(precision):
        explanation = import_module("mmdit").explain(lambda: got.append(op.modulation(y, weights, biases)))
        beside = reference.modulation_reference(y, weights, biases)
    assert explanation.launches == launches, str(explanation)
    assert (got[0].dtype, got[0].shape, got[0].is_contiguous()) == (torch.float32, beside.shape, True)
    rounds_as_half = y.is_cuda and y.dtype == torch.float32  # by TF32
    for out in (got[0], beside):
        assert_accurate(
            Values({"out": out}, {}),
            lambda precision: truth(y, weights, biases, precision),
            torch.float16 if rounds_as_half else y.dtype,
        )


def launches_for(y: Tensor) -> tuple[str, ...]:
    """On a GPU fp32 products are PyTorch's."""
    return () if y.is_cuda and y.dtype == torch.float32 else ("modulation_kernel",)


def modulations_match_the_oracle(size: Size, dtype: torch.dtype, variant: str, device: str, seed: int) -> None:
    y, weights, biases = draw(size, dtype, device, seeded(seed))
    assert_modulates(VARIANTS[variant](y), weights, biases, launches_for(y), "high")


def takes_pytorch(name: str, device: str, seed: int) -> None:
    dim, moved, precision = FALLBACKS[name]
    y, weights, biases = draw((3, dim, 2), torch.float32, device, seeded(seed))
    if moved == "weights":
        weights[1] = shifted(weights[1])
    if moved == "biases":
        biases[0] = shifted(biases[0])
    assert_modulates(y, weights, biases, (), precision)


def weights_of_another_call_are_told_apart(device: str, seed: int) -> None:
    """Where the same memory holds other values, and where the same weights come in another order."""
    y, weights, biases = draw((3, 16, 2), torch.float32, device, seeded(seed))
    for _ in range(2):
        assert_modulates(y, weights, biases, launches_for(y), "high")
        assert_modulates(y, weights[::-1], biases[::-1], launches_for(y), "high")
        assert_modulates(y, weights[:1], biases[:1], launches_for(y), "high")
        weights[0].neg_()
