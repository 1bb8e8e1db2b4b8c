"""Gradients for the fused operators whose kernels have none: their PyTorch arithmetic, computed again in backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmdit.ops.gated_residual import op as gated_residual  # noqa: F401  registers the operator
from mmdit.ops.gated_residual.reference import gated_residual_reference
from mmdit.ops.joint_attention import op as joint_attention  # noqa: F401
from mmdit.ops.joint_attention.reference import joint_attention_reference
from mmdit.ops.pack_heads import op as pack_heads  # noqa: F401
from mmdit.ops.pack_heads.reference import pack_heads_reference


def _register(name: str, reference: Callable[..., Any]) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.rest = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.places = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.save_for_backward(*(inputs[i] for i in ctx.places))

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = list(ctx.rest)
        wanted = [i for i in ctx.places if ctx.needs_input_grad[i]]
        for i, saved in zip(ctx.places, ctx.saved_tensors, strict=True):
            inputs[i] = saved.detach().requires_grad_(i in wanted)
        with torch.enable_grad():
            outputs = reference(*inputs)
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            outputs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
        found = torch.autograd.grad(
            [out for out, _ in outputs],
            [inputs[i] for i in wanted],
            [grad for _, grad in outputs],
            allow_unused=True,
        )
        by_place = dict(zip(wanted, found, strict=True))
        return tuple(by_place.get(i) for i in range(len(inputs)))

    torch.library.register_autograd(f"mmdit::{name}", backward, setup_context=setup_context)


_register("gated_residual", gated_residual_reference)
_register("pack_heads", pack_heads_reference)
_register("joint_attention", joint_attention_reference)  # without what backward needs: for evaluation
