"""Blocks as one operator, mmdit::stack, for what sees operators and not modules: graphs. Where gradients are recorded,
it is mmdit::stack_training if that can, else the gradients are those of its reference.

B batch, L x length, C context length, D model dim, H heads, Dh head dim.
"""

from typing import Any, Optional, Sequence, Tuple

import torch
from torch import Tensor

from mmdit.inference.rows import run_rows
from mmdit.inference.tiers import ROWS_MAX_DIM, infer
from mmdit.inference.weights import blocks_of, layers_of, same_kind, stack_modulation
from mmdit.ops.modulation.reference import modulation_reference
from mmdit.runtime.custom_op import register_op
from mmdit.runtime.dispatch import why_not
from mmdit.training.op import operator_obstacle
from mmdit.training.stack import records

Outputs = Tuple[Tensor, Tensor]


def stack_reference(
    x: Tensor,
    context: Optional[Tensor],
    y: Optional[Tensor],
    attn_mask: Optional[Tensor],
    cos: Tensor,
    sin: Tensor,
    start_pos: Optional[Tensor],
    start: int,
    weights: Sequence[Tensor],
    heads: int,
) -> Outputs:
    """x (B, L, D) and context (B, C, D), or an empty tensor for none, after the blocks, by PyTorch and with gradients.

    Args:
        y: (B, D) or (B, 1, D), or None where norms are affine and nothing is gated.
        attn_mask: (B, L, L) bool, or None.
        cos, sin: (positions, Dh / 2), of all blocks; row l of x is at start_pos + start + l, start_pos (B,) or 0.
        weights: as tensors_of(blocks) gives them, blocks of one kind.
    """
    streams = 1 if context is None else 2
    blocks = blocks_of(weights, streams, layers_of(weights, streams, y is not None))
    modulation = stack_modulation(y is not None, blocks, streams, y, modulation_reference)
    start_pos = start if start_pos is None else start_pos + start
    layers = [block.layer for block in blocks]
    outputs = run_rows(layers, modulation, x, context, attn_mask, start_pos, heads, cos, sin, inplace=False)
    return _both(outputs, x, context)


def _run(
    x: Tensor,
    context: Optional[Tensor],
    y: Optional[Tensor],
    attn_mask: Optional[Tensor],
    cos: Tensor,
    sin: Tensor,
    start_pos: Optional[Tensor],
    start: int,
    weights: Sequence[Tensor],
    heads: int,
) -> Outputs:
    streams = 1 if context is None else 2
    blocks = blocks_of(weights, streams, layers_of(weights, streams, y is not None))
    if x.shape[2] > ROWS_MAX_DIM or not same_kind(x, blocks):
        return stack_reference(x, context, y, attn_mask, cos, sin, start_pos, start, weights, heads)
    if start_pos is not None:
        start_pos = (start_pos + start if start else start_pos).contiguous()
    where = start if start_pos is None else start_pos
    tables = cos.contiguous(), sin.contiguous()
    return _both(infer(y is not None, blocks, x, y, context, attn_mask, where, heads, *tables), x, context)


def _recorded(
    x: Tensor, context: Optional[Tensor], y: Optional[Tensor], attn_mask: Optional[Tensor], *rest: Any
) -> Optional[Outputs]:
    *where, weights, heads = rest
    if not records(x, context, y, *weights) or why_not(x):
        return None
    streams = 1 if context is None else 2
    blocks = blocks_of(weights, streams, layers_of(weights, streams, y is not None))
    if operator_obstacle(x, context, blocks, heads, {0.0}):
        return None
    return torch.ops.mmdit.stack_training(x, context, y, attn_mask, *where, None, 0.0, "none", weights, heads)[:2]


def _both(outputs: Tuple[Tensor, Optional[Tensor]], x: Tensor, context: Optional[Tensor]) -> Outputs:
    """Tensors of their own: an operator's outputs are none of its inputs."""
    x_out, context_out = outputs
    if context is None:
        return x_out, x.new_empty(0)
    return x_out, context_out.clone() if context_out is context else context_out


def _fake(x: Tensor, context: Optional[Tensor], *rest: Any) -> Outputs:
    empty = x.new_empty(0) if context is None else torch.empty_like(context, memory_format=torch.contiguous_format)
    return torch.empty_like(x, memory_format=torch.contiguous_format), empty


stack = register_op(
    "stack(Tensor x, Tensor? context, Tensor? y, Tensor? attn_mask, Tensor cos, Tensor sin, Tensor? start_pos,"
    " SymInt start, Tensor[] weights, int heads) -> (Tensor, Tensor)",
    kernel=_run,
    reference=stack_reference,
    fake=_fake,
    unsupported=lambda x: None,
    by_reference=True,
    recorded=_recorded,
)
