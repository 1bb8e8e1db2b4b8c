"""How values are compared: relative L2 error against the fp64 oracle, and the suite's tolerances.

Measured on repository_before with torch 2.13.0 on an x86-64 CPU, worst over the cases and 15 seeds: fp32 2.5e-6, but
for a length of 1 (4e-6); 16 bits, as a share of the plain reference's own error: bf16 1.7, fp16 1.5.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# A 16-bit tree may be this much further from the truth than the oracle's own arithmetic in the same dtype.
# For gradients it is the plain reference's worst one that counts: how sums over rows round is the backend's own.
ROUNDING_MULTIPLE = 3.0
ROUNDING_CEILING = 0.1  # however badly the plain reference rounds
# A gradient below this share of all gradients' root mean square is held to that share, as what cancels out to
# (next to) nothing has no relative accuracy.
NEGLIGIBLE = 0.1

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Values:
    """What a module computes: its outputs, and the gradients of its inputs and of every parameter, if recorded."""

    outputs: Tensors
    gradients: Tensors


def evaluate(call: Callable[[], tuple], leaves: Tensors, cotangents: Tensors) -> Values:
    outputs = {name: out for name, out in zip(cotangents, call(), strict=False) if out is not None}
    used = [cotangents[name].to(out) for name, out in outputs.items()]
    arguments = (list(outputs.values()), list(leaves.values()), used)
    gradients = torch.autograd.grad(*arguments, allow_unused=True, materialize_grads=True)
    return Values(outputs, dict(zip(leaves, gradients, strict=True)))


def as_one_vector(tensors: Tensors) -> Tensor:
    return torch.cat([t.double().flatten() for t in tensors.values()])


def root_mean_square(tensors: Tensors) -> float:
    return as_one_vector(tensors).square().mean().sqrt().item() if tensors else 0.0


def errors(got: Values, truth: Values, negligible: float, cancelling: str | None = None) -> dict[str, float]:
    """Relative L2 error of every output and gradient; gradients with `cancelling` in their names count as part of the
    vector of all gradients only.
    """
    assert got.outputs.keys() == truth.outputs.keys(), f"{got.outputs.keys()} is not {truth.outputs.keys()}"
    found = {name: relative_l2(got.outputs[name], want) for name, want in truth.outputs.items()}
    floor = negligible * root_mean_square(truth.gradients)
    for name, want in truth.gradients.items():
        if cancelling is None or cancelling not in name:
            found[f"d_{name}"] = relative_l2(got.gradients[name], want, floor)
    if cancelling is not None:
        found["d_all"] = relative_l2(as_one_vector(got.gradients), as_one_vector(truth.gradients))
    return found


def assert_accurate(
    got: Values,
    reference: Callable[[torch.dtype], Values],
    dtype: torch.dtype,
    negligible: float = NEGLIGIBLE,
    cancelling: str | None = None,
    ill_conditioned: bool = False,
) -> None:
    """Every output and gradient within the dtype's tolerance, or its multiple of plain rounding for 16 bits; for fp32
    too, if that is more, where values are ill-conditioned: logits of hundreds, whose roundings exp multiplies.

    reference(precision): the oracle's values, computed in that precision.
    """
    truth = reference(torch.float64)
    found = errors(got, truth, negligible, cancelling)
    allowed = dict.fromkeys(found, TOLERANCE.get(dtype, 0.0))
    if ill_conditioned or dtype not in TOLERANCE:
        plain = allowed_errors(errors(reference(dtype), truth, negligible, cancelling), dtype)
        allowed = {name: max(least, plain[name]) for name, least in allowed.items()}
    wrong = [f"{n} {error:.1e} > {allowed[n]:.1e}" for n, error in found.items() if not error <= allowed[n]]
    assert not wrong, f"relative L2 error above what is allowed: {', '.join(wrong)}"


def allowed_errors(plain: Mapping[str, float], dtype: torch.dtype) -> dict[str, float]:
    """What a 16-bit tree may have, given the plain reference's errors; the result itself is always rounded once."""
    worst = max((error for name, error in plain.items() if name.startswith("d_")), default=0.0)
    roundoff = torch.finfo(dtype).eps / 2
    bases = {name: max(worst if name.startswith("d_") else error, roundoff) for name, error in plain.items()}
    return {name: min(ROUNDING_MULTIPLE * base, ROUNDING_CEILING) for name, base in bases.items()}


def relative_l2(got: Tensor, want: Tensor, floor: float = 0.0) -> float:
    """|got - want| / |want|, where every element of want counts as at least floor."""
    assert got.shape == want.shape, f"shape {tuple(got.shape)} is not {tuple(want.shape)}"
    error, size = (got.double() - want).norm().item(), want.norm().item()
    return error / max(size, floor * want.numel() ** 0.5) if error else 0.0


def assert_close(got: Tensor, want: Tensor, tolerance: float) -> None:
    error = relative_l2(got, want.double())
    assert error <= tolerance, f"relative L2 error {error:.2e}, allowed {tolerance:.0e}"
