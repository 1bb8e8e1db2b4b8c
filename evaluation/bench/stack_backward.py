"""A model forwards and backwards: outputs, then the gradients of its inputs and of all its weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from evaluation.bench.case import Outputs

Inputs = tuple[Tensor | None, ...]
LEAST_SHARE = 0.1  # of all gradients' root mean square: a smaller gradient all but cancels out, and is held to this


def present(outputs: Sequence[Tensor | None]) -> Outputs:
    """Without the context that a model without context has not."""
    return tuple(out for out in outputs if out is not None)


def differentiate(model: nn.Module, inputs: Inputs, cotangents: Outputs) -> Outputs:
    """model(*inputs) and, for the sum of the outputs times their cotangents, the gradients of all floating-point inputs
    and of all parameters, each in its own order.
    """
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() if t is not None and t.is_floating_point() else t for t in inputs]
        outputs = present(model(*leaves))
        wanted = [t for t in leaves if t is not None and t.requires_grad]
        gradients = torch.autograd.grad(outputs, [*wanted, *model.parameters()], cotangents)
    return *(out.detach() for out in outputs), *gradients


def in_pieces(model: nn.Module, inputs: Inputs, cotangents: Outputs, chunk: int) -> Outputs:
    """What differentiate gives, in fp64 and so many samples at a time: by samples joined, for the weights summed."""
    pieces = []
    for first in range(0, len(inputs[0]), chunk):
        given = [None if t is None else t[first : first + chunk] for t in (*inputs, *cotangents)]
        given = [t.double() if t is not None and t.is_floating_point() else t for t in given]
        pieces.append(differentiate(model, given[: len(inputs)], given[len(inputs) :]))
    weights = len(list(model.parameters()))
    columns = list(zip(*pieces, strict=True))
    return *map(torch.cat, columns[:-weights]), *(torch.stack(c).sum(0) for c in columns[-weights:])


def worst_gradient_error(found: Outputs, expected: Outputs, outputs: int) -> float:
    """The worst relative L2 error, of which the first `outputs` are no gradients; NaN if any is."""
    if len(found) != len(expected):
        raise RuntimeError(f"expected {len(expected)} outputs and gradients, got {len(found)}")
    gradients = expected[outputs:]
    mean = sum(e.square().sum() for e in gradients) / sum(e.numel() for e in gradients)
    errors = []
    for index, (out, e) in enumerate(zip(found, expected, strict=True)):
        least = LEAST_SHARE * (mean * e.numel()).sqrt() if index >= outputs else 0.0
        errors.append((out.double() - e).norm() / e.norm().clamp(min=least))
    return torch.stack(errors).max().item()
