"""Blocks in a program that is compiled or exported as one operator: mmdit::stack where no gradients are recorded, and
mmdit::stack_training where they are and the program is compiled.
"""

from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from mmdit.inference.op import stack
from mmdit.inference.weights import TRACED_TENSORS, attention_of, kind_of, tensors_of, traced_weights
from mmdit.runtime.dispatch import takes_fused
from mmdit.training.op import operator_obstacle
from mmdit.training.stack import draw_seeds, records


def run_whole(
    blocks: Sequence[nn.Module],
    x: Tensor,
    y: Optional[Tensor],
    context: Optional[Tensor],
    attn_mask: Optional[Tensor],
    start_pos: Optional[Union[int, Tensor]],
    recompute: str,
) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
    """x (B, L, D) and context (B, C, D), or None, after the blocks; None where their parts are to be called."""
    if not takes_fused("stack", x) or torch.is_autocast_enabled(x.device.type):
        return None
    found = [each for each in [traced_weights(block) for block in blocks] if each is not None]
    if len(found) != len(blocks) or any(kind_of(block) != kind_of(blocks[0]) for block in blocks):
        return None
    weights, rates = [w for w, _ in found], {rate for _, own in found for rate in own}
    flat = tensors_of(weights)
    if any(type(t) not in TRACED_TENSORS for t in flat):
        return None
    heads, rate, recorded = attention_of(blocks[0]).num_head, max(rates), records(x, y, context, *flat)
    if operator_obstacle(x, context, weights, heads, rates) if recorded else rate > 0:
        return None
    attention = attention_of(blocks[0])
    mask = None if attn_mask is None else attn_mask != 0
    tensor = isinstance(start_pos, Tensor)
    starts, start = (start_pos, 0) if tensor else (None, 0 if start_pos is None else start_pos)
    given = x, context, y, mask, attention.rotary.cos, attention.rotary.sin, starts, start
    if recorded:
        dropout = draw_seeds(rate, len(blocks), x), rate, recompute
        outputs = torch.ops.mmdit.stack_training(*given, *dropout, flat, heads)
    else:
        outputs = stack(*given, flat, heads)
    return outputs[0], None if context is None else outputs[1]
