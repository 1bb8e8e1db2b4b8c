"""Blocks with gradients: one autograd function over all of them.

B batch, L x length, C context length, D model dim.
"""

from typing import Any, List, NamedTuple, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmdit.inference.tiers import tiles_obstacle
from mmdit.inference.weights import BlockWeights, LayerWeights, StreamWeights, blocks_of, stack_modulation, tensors_of
from mmdit.ops.joint_attention.op import pack_mask
from mmdit.ops.stack_backward.op import stream_weights
from mmdit.ops.stack_rows.op import padded_layout
from mmdit.training.modulation import modulation_backward
from mmdit.training.passes import Call, Passes, Saved

STREAM_SIZE, UP_WEIGHT = len(StreamWeights._fields), StreamWeights._fields.index("up_weight")
SEEDS = 2**62  # of the dropout are below
Gradients = Tuple[Optional[Tensor], ...]


class Tape(NamedTuple):
    """What a forward leaves for its backward, beside what it was given."""

    modulation: Tensor  # (B or 1, N, M, 6, D) fp32
    bits: Optional[Tensor]  # the mask as pack_mask makes it
    saved: Saved


def training_obstacle(
    x: Tensor, context: Optional[Tensor], layer: LayerWeights, heads: int, rates: Set[float]
) -> Optional[str]:
    """What keeps the training tier from a call, or None."""
    problem = tiles_obstacle(x, context, layer, heads)
    if problem is None and len(rates) > 1:
        problem = "dropouts of different rates"
    if problem is None and context is not None and context.shape[1] == 0:
        problem = "a context of no rows"
    return problem and f"gradients are recorded or a dropout is on, and no kernel for: {problem}"


def records(*tensors: Optional[Tensor]) -> bool:
    """Whether gradients are recorded."""
    return torch.is_grad_enabled() and bool([1 for t in tensors if t is not None and t.requires_grad])


def train_stack(
    call: Call, weights: Sequence[BlockWeights], x: Tensor, context: Optional[Tensor], y: Optional[Tensor]
) -> Tuple[Tensor, Optional[Tensor]]:
    """x (B, L, D) and context (B, C, D), or None, after all blocks, in their dtype, with gradients for x, context, y
    and all weights. A second derivative raises RuntimeError.
    """
    return _StackFunction.apply(call, x, context, y, *tensors_of(weights))


def forward_pass(
    call: Call,
    weights: Sequence[BlockWeights],
    x: Tensor,
    context: Optional[Tensor],
    y: Optional[Tensor],
    seeds: Optional[Tensor],
) -> Tuple[Tensor, Optional[Tensor], Tape]:
    """x and context after all blocks, and what their gradients need; seeds (N, 2) int64 of the dropout, or None."""
    modulation = stack_modulation(call.conditioned, weights, call.streams, y)
    layout = padded_layout(x.shape[1], 0 if context is None else context.shape[1])
    bits = None if call.mask is None else pack_mask(call.mask, *layout[1:])
    passes = Passes(call, [w.layer for w in weights], modulation, x, x.shape[0], layout, bits, seeds)
    x_out, context_out, saved = passes.forward(x, context)
    return x_out, context_out, Tape(modulation, bits, saved)


def buffers_wanted(wanted: Sequence[bool], layers: int, streams: int, conditioned: bool) -> Tuple[int, List[bool]]:
    """The first layer that a backward goes down to, and which of what backward_pass gives it has to."""
    wants, size, own = wanted[3:], (len(wanted) - 3) // layers, streams * STREAM_SIZE
    starts = range(0, len(wants), size)
    used = [any(wants[i : i + size]) for i in starts]
    first = 0 if any(wanted[:3]) else used.index(True)
    conditions = any(any(wants[i + own : i + size]) for i in starts)
    return first, [*wanted[:3], conditions, conditions and conditioned, *(any(wants[i : i + own]) for i in starts)]


def backward_pass(
    call: Call,
    flat: Sequence[Tensor],
    lengths: Tuple[int, int],
    y: Optional[Tensor],
    seeds: Optional[Tensor],
    tape: Tape,
    d_x: Optional[Tensor],
    d_context: Optional[Tensor],
    wanted: Sequence[bool],
) -> List[Optional[Tensor]]:
    """The gradients of x, context, y; two more as modulation_backward gives them; and of each layer's weights as sum_up
    does. None for what `wanted` does not ask for, which is said of x, context, y and each of `flat`.

    lengths: rows of x and of the context. The others are forward_pass's, what it gave, and its outputs' gradients.
    """
    layout = padded_layout(*lengths)
    weights = blocks_of(flat, call.streams, call.layers)
    first, buffers = buffers_wanted(wanted, call.layers, call.streams, call.conditioned)
    batch, layers = tape.saved.residual.shape[1], [w.layer for w in weights]
    passes = Passes(call, layers, tape.modulation, flat[0], batch, layout, tape.bits, seeds)
    d_residual, d_modulation, found = passes.backward(tape.saved, d_x, d_context, first, buffers[5:])
    del passes  # and its buffers

    length, context_length, x_rows, _ = layout
    inputs: List[Optional[Tensor]] = []
    for wants_rows, start, count in ((wanted[0], 0, length), (wanted[1], x_rows, context_length)):
        inputs.append(d_residual[:, start : start + count].to(flat[0].dtype) if wants_rows else None)
    d_modulation = d_modulation[:, first:]
    return [
        *inputs,
        *modulation_backward(d_modulation, call.conditioned, weights[first:], y, wanted[2], buffers[3]),
        *found,
    ]


def gradients_of(
    found: Sequence[Optional[Tensor]], wanted: Sequence[bool], streams: int, dim: int, forward: int
) -> List[Optional[Tensor]]:
    """What backward_pass gave as the gradients of x, context, y and each of `flat`, where wanted; parts of it."""
    d_x, d_context, d_y, matrices, biases, *layers = found
    gradients, size = [d_x, d_context, d_y], (len(wanted) - 3) // len(layers)
    for index, rows in enumerate(layers):
        for stream in range(streams):
            gradients += [None] * STREAM_SIZE if rows is None else list(stream_weights(rows[stream], dim, forward))
        own = index - len(layers)  # from the end: those before the first layer that was gone down to are not there
        if matrices is None or len(matrices) < -own:
            gradients += [None] * (size - streams * STREAM_SIZE)
        elif biases is None:
            gradients += [matrices[own, i] for i in (0, 1, 3, 4)]
        else:
            gradients += [t[own, stream] for stream in range(streams) for t in (matrices, biases)]
    return [t if want else None for t, want in zip(gradients, wanted, strict=True)]


class _StackFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Call, x: Tensor, context: Optional[Tensor], y: Optional[Tensor], *flat: Tensor
    ) -> Tuple[Tensor, Optional[Tensor]]:
        weights, seeds = blocks_of(flat, call.streams, call.layers), draw_seeds(call.p, call.layers, x)
        x_out, context_out, tape = forward_pass(call, weights, x, context, y, seeds)
        if call.saves:
            ctx.call, ctx.lengths = call, (x.shape[1], 0 if context is None else context.shape[1])
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(y, seeds, tape.modulation, tape.bits, *tape.saved, *flat)
        return x_out, context_out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_x: Optional[Tensor], d_context: Optional[Tensor]) -> Gradients:
        y, seeds, modulation, bits, *rest = ctx.saved_tensors  # once: a checkpoint unpacks them but once
        size = len(Saved._fields)
        tape, flat, wanted = Tape(modulation, bits, Saved(*rest[:size])), rest[size:], ctx.needs_input_grad[1:]
        found = backward_pass(ctx.call, flat, ctx.lengths, y, seeds, tape, d_x, d_context, wanted)
        forward, dim = flat[UP_WEIGHT].shape
        return None, *gradients_of(found, wanted, ctx.call.streams, dim, forward)


def draw_seeds(p: float, layers: int, like: Tensor) -> Optional[Tensor]:
    """Of the dropout of a call, (N, 2) int64 by torch's generator, or None for none."""
    return torch.randint(SEEDS, (layers, 2), device=like.device) if p > 0 else None
