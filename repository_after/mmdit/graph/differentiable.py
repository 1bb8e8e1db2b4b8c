"""Gradients for the fused operators whose kernels have none: their PyTorch arithmetic, computed again in backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from mmdit.inference import op as stack  # noqa: F401  registers the operator
from mmdit.inference.op import stack_reference
from mmdit.ops.gated_residual import op as gated_residual  # noqa: F401
from mmdit.ops.gated_residual.reference import gated_residual_reference
from mmdit.ops.joint_attention import op as joint_attention  # noqa: F401
from mmdit.ops.joint_attention.reference import joint_attention_reference
from mmdit.ops.pack_heads import op as pack_heads  # noqa: F401
from mmdit.ops.pack_heads.reference import pack_heads_reference


def _register(name: str, reference: Callable[..., Any]) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        values, ctx.structure = tree_flatten(list(inputs))
        ctx.rest = [None if isinstance(value, Tensor) else value for value in values]
        ctx.places = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
        ctx.save_for_backward(*(values[i] for i in ctx.places))

    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
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

    torch.library.register_autograd(f"mmdit::{name}", backward, setup_context=setup_context)


_register("gated_residual", gated_residual_reference)
_register("pack_heads", pack_heads_reference)
_register("joint_attention", joint_attention_reference)  # without what backward needs: for evaluation
_register("stack", stack_reference)
