"""Checks that say what a learner needs to know when they fail."""

import torch
from torch import Tensor


class Mismatch(AssertionError):
    """A value that is not what it should be; the message says where, what was expected and got, and a hint."""


def check(name: str, got: Tensor, expected: Tensor, *, tolerance: float = 1e-5, hint: str) -> None:
    """Compare got with expected (same shape and dtype) by relative L2 error, and print it.

    Args:
        name: what is compared.
        expected: the truth, computed in fp64 and cast to the dtype that got should have.
        tolerance: largest ||got - expected|| / ||expected|| (absolute, where expected is all zero).
        hint: the mistake that this most often is.

    Raises Mismatch for another type, shape, dtype or device, for NaN or Inf, and for an error above tolerance.
    """
    if not isinstance(got, Tensor):
        raise Mismatch(f"{name}: expected a tensor, got {type(got).__name__}\n  hint: {hint}")
    for what in ("shape", "dtype", "device"):
        mine, wanted = getattr(got, what), getattr(expected, what)
        if mine != wanted:
            mine, wanted = (tuple(v) if what == "shape" else v for v in (mine, wanted))
            raise Mismatch(f"{name}: expected {what} {wanted}, got {mine}\n  hint: {hint}")
    got64, expected64 = got.detach().double(), expected.detach().double()
    if not expected64.isfinite().all():
        raise ValueError(f"{name}: expected finite values to compare with, got NaN or Inf in `expected`")
    if not got64.isfinite().all():
        raise Mismatch(describe(f"{name}: NaN or Inf", ~got64.isfinite(), got, expected, hint))
    norm = expected64.norm().item() or 1.0
    error = (got64 - expected64).norm().item() / norm
    if error > tolerance:
        wrong = (got64 - expected64).abs() > tolerance * norm / max(1, expected.numel()) ** 0.5
        headline = f"{name}: relative error {error:.1e}, more than {tolerance:.1e}"
        raise Mismatch(describe(headline, wrong, got, expected, hint))
    print(f"ok  {name}  error {error:.1e}")


def describe(headline: str, wrong: Tensor, got: Tensor, expected: Tensor, hint: str) -> str:
    """The message about got, of which the elements in `wrong` (bool, of its shape) are not as expected."""
    first = tuple(torch.nonzero(wrong)[0].tolist())
    lines = (
        headline,
        f"  shape {tuple(got.shape)}, {got.dtype}; {int(wrong.sum())} of {wrong.numel()} values are wrong",
        f"  first wrong at {list(first)}: expected {expected[first].item():.7g}, got {got[first].item():.7g}",
        f"  hint: {hint}",
    )
    return "\n".join(lines)


def expect(condition: bool, message: str) -> None:
    """For facts that are no tensors: message says what was expected and got. Raises Mismatch unless condition."""
    if not condition:
        raise Mismatch(message)
    print(f"ok  {message}")


def poisoned(tensor: Tensor, pad: int) -> Tensor:
    """A strided view with tensor's values, in a buffer that is `pad` longer along each axis and NaN there (True, for
    bool): a load without its mask reads what shows.

    Raises ValueError for a dtype that has no NaN.
    """
    if not tensor.is_floating_point() and tensor.dtype != torch.bool:
        raise ValueError(f"tensor: expected floating point or bool, got {tensor.dtype}")
    fill = True if tensor.dtype == torch.bool else float("nan")
    buffer = tensor.new_full([size + pad for size in tensor.shape], fill)
    view = buffer[tuple(slice(size) for size in tensor.shape)]
    return view.copy_(tensor)
