"""Blocks in a program that is compiled or exported: as one operator, mmdit::stack, where no gradients are recorded."""

from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from mmdit.inference.op import stack
from mmdit.inference.weights import PLAIN_TENSORS, attention_of, kind_of, tensors_of, traced_weights
from mmdit.runtime.dispatch import takes_fused

TRACED = (*PLAIN_TENSORS, FakeTensor, FunctionalTensor)  # as torch.export has weights


def run_whole(
    blocks: Sequence[nn.Module],
    x: Tensor,
    y: Optional[Tensor],
    context: Optional[Tensor],
    attn_mask: Optional[Tensor],
    start_pos: Optional[Union[int, Tensor]],
) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
    """x (B, L, D) and context (B, C, D), or None, after the blocks; None where their parts are to be called."""
    if not takes_fused("stack", x) or torch.is_autocast_enabled(x.device.type):
        return None
    found = [traced_weights(block) for block in blocks]
    weights = [each for each in found if each is not None]
    if len(weights) != len(found) or any(kind_of(block) != kind_of(blocks[0]) for block in blocks):
        return None
    flat = tensors_of(weights)
    if any(type(t) not in TRACED for t in flat):
        return None
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, y, context, *flat)):
        return None
    attention = attention_of(blocks[0])
    mask = None if attn_mask is None else attn_mask != 0
    tensor = isinstance(start_pos, Tensor)
    starts, start = (start_pos, 0) if tensor else (None, 0 if start_pos is None else start_pos)
    tables = attention.rotary.cos, attention.rotary.sin
    outputs = stack(x, context, y, mask, *tables, starts, start, flat, attention.num_head)
    return outputs[0], None if context is None else outputs[1]
