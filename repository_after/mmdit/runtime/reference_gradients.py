"""Gradients of an op by autograd through its PyTorch arithmetic, computed again in backward."""

from typing import Any, Callable, Tuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


def reference_gradients(reference: Callable[..., Any]) -> Tuple[Callable[..., None], Callable[..., Any]]:
    """setup_context and backward, as torch.library.register_autograd takes them, of what computes as reference does."""

    def setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Any) -> None:
        values, ctx.structure = tree_flatten(list(inputs))
        ctx.rest = [None if isinstance(value, Tensor) else value for value in values]
        ctx.places = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
        ctx.save_for_backward(*(values[i] for i in ctx.places))

    def backward(ctx: Any, *grads: Tensor) -> Tuple[Any, ...]:
        values, needed = list(ctx.rest), tree_flatten(list(ctx.needs_input_grad))[0]
        wanted = [i for i in ctx.places if needed[i]]
        for i, saved in zip(ctx.places, ctx.saved_tensors, strict=True):
            values[i] = saved.detach().requires_grad_(i in wanted)
        with torch.enable_grad():
            outputs = reference(*tree_unflatten(values, ctx.structure))
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            outputs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
        found = torch.autograd.grad(
            [out for out, _ in outputs],
            [values[i] for i in wanted],
            [grad for _, grad in outputs],
            allow_unused=True,
        )
        by_place = dict(zip(wanted, found, strict=True))
        return tuple(tree_unflatten([by_place.get(i) for i in range(len(values))], ctx.structure))

    return setup_context, backward
