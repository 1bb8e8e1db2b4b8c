"""Blocks with gradients: one autograd function over all of them.

B batch, L x length, C context length, D model dim.
"""

from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdit.inference.weights import BlockWeights, StreamWeights, blocks_of, stack_modulation, tensors_of
from mmdit.ops.joint_attention.op import pack_mask
from mmdit.ops.stack_rows.op import padded_layout
from mmdit.training.modulation import modulation_backward
from mmdit.training.passes import Call, Passes, Saved

STREAM_SIZE = len(StreamWeights._fields)
Gradients = Tuple[Optional[Tensor], ...]


def train_stack(
    call: Call, weights: Sequence[BlockWeights], x: Tensor, context: Optional[Tensor], y: Optional[Tensor]
) -> Tuple[Tensor, Optional[Tensor]]:
    """x (B, L, D) and context (B, C, D), or None, after all blocks, in their dtype, with gradients for x, context, y
    and all weights. A second derivative raises RuntimeError.
    """
    return _StackFunction.apply(call, x, context, y, *tensors_of(weights))


class _StackFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Call, x: Tensor, context: Optional[Tensor], y: Optional[Tensor], *flat: Tensor
    ) -> Tuple[Tensor, Optional[Tensor]]:
        weights = blocks_of(flat, call.streams, call.layers)
        modulation = stack_modulation(call.conditioned, weights, call.streams, y)
        layout = padded_layout(x.shape[1], 0 if context is None else context.shape[1])
        bits = None if call.mask is None else pack_mask(call.mask, *layout[1:])
        seeds = torch.randint(2**62, (call.layers, 2), device=x.device) if call.p > 0 else None
        passes = Passes(call, [w.layer for w in weights], modulation, x, len(x), layout, bits, seeds)
        x_out, context_out, saved = passes.forward(x, context)
        if call.saves:
            ctx.call, ctx.layout = call, layout
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(y, modulation, bits, seeds, *saved, *flat)
        return x_out, context_out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_x: Optional[Tensor], d_context: Optional[Tensor]) -> Gradients:
        call, layout = ctx.call, ctx.layout
        tensors = ctx.saved_tensors
        (y, modulation, bits, seeds), flat = tensors[:4], tensors[4 + len(Saved._fields) :]
        saved = Saved(*tensors[4 : 4 + len(Saved._fields)])
        weights = blocks_of(flat, call.streams, call.layers)
        _, wants_x, wants_context, wants_y, *wants = ctx.needs_input_grad
        size = len(flat) // call.layers
        own = call.streams * STREAM_SIZE  # before the condition's
        wanted = [any(wants[i : i + own]) for i in range(0, len(flat), size)]
        used = [any(wants[i : i + size]) for i in range(0, len(flat), size)]
        first = 0 if wants_x or wants_context or wants_y else used.index(True)
        batch = saved.residual.shape[1]
        passes = Passes(call, [w.layer for w in weights], modulation, flat[0], batch, layout, bits, seeds)
        d_residual, d_modulation, found = passes.backward(saved, d_x, d_context, first, wanted)
        del passes  # and its buffers

        length, context_length, x_rows, _ = layout
        gradients: List[Optional[Tensor]] = []
        rows = ((wants_x, 0, length), (wants_context, x_rows, context_length))
        for wants_rows, start, count in rows:
            gradients.append(d_residual[:, start : start + count].to(flat[0].dtype) if wants_rows else None)
        conditions = any(any(wants[i + own : i + size]) for i in range(0, len(flat), size))
        d_y, d_conditions = modulation_backward(
            d_modulation[:, first:], call.conditioned, weights[first:], y, wants_y, conditions
        )
        gradients.append(d_y)
        nothing = [(None,) * len(weights[0].condition)] * first
        for streams, condition in zip(found, [*nothing, *d_conditions], strict=True):
            for stream in streams:
                gradients += [None] * STREAM_SIZE if stream is None else list(stream)
            gradients += list(condition)
        kept = [t if want else None for t, want in zip(gradients[3:], wants, strict=True)]
        return None, *gradients[:3], *kept
