"""Blocks: whether the fused tiers take them. "training": training/stack.py, where gradients are recorded or a dropout
is on, one autograd function; all others are in inference/tiers.py.
"""

from typing import Iterable, List, Optional, Sequence, Set, Tuple, Union

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from mmdit.inference.tiers import ROWS_MAX_DIM, infer
from mmdit.inference.weights import (
    BlockWeights,
    attention_of,
    block_weights,
    drop_rates,
    is_hooked,
    kind_of,
    same_kind,
    tensors_of,
)
from mmdit.inference.whole import run_whole
from mmdit.runtime.dispatch import takes_fused, why_not
from mmdit.runtime.launch import unit_stride
from mmdit.training.passes import Call
from mmdit.training.stack import records, train_stack, training_obstacle


def run_fused(
    blocks: Sequence[nn.Module],
    x: Tensor,
    y: Optional[Tensor],
    context: Optional[Tensor],
    attn_mask: Optional[Tensor],
    start_pos: Optional[Union[int, Tensor]],
    unsupported: Optional[str] = None,
    recompute: str = "none",
) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
    """x (B, L, D) and context (B, C, D), or None, after the blocks; None where they must be called one by one.

    The arguments are those of an MMDiTBlock, checked; `unsupported` is the caller's own reason for None, if any,
    `recompute` what a backward computes again, as MMDiT has it.
    """
    if torch.compiler.is_compiling():
        return None if unsupported else run_whole(blocks, x, y, context, attn_mask, start_pos, recompute)
    if torch._C._len_torch_dispatch_stack():
        return None
    obstacle, weights = (unsupported, []) if unsupported else _obstacle(blocks, x, y, context)
    if obstacle:
        takes_fused("stack", x, obstacle)
        return None
    attention = attention_of(blocks[0])
    mask = None if attn_mask is None else attn_mask if attn_mask.dtype == torch.bool else attn_mask != 0
    start = start_pos.contiguous() if isinstance(start_pos, Tensor) else start_pos
    tables = attention.num_head, attention.rotary.cos, attention.rotary.sin
    rate = max(drop_rates(blocks[0]))
    recorded = records(x, y, context, *tensors_of(weights))
    if recorded or rate > 0:
        takes_fused("stack", x, how=f"; training tier, recompute {recompute}")
        streams = 1 if context is None else 2
        call = Call(blocks[0].conditioning, len(blocks), streams, *tables, mask, start, recompute, rate, recorded)
        return train_stack(call, weights, unit_stride(x), unit_stride(context), y)
    return infer(blocks[0].conditioning, weights, x, y, context, mask, start, *tables)


def layers_problem(layers: Iterable[nn.Module], kind: type) -> Optional[str]:
    """What keeps a stack's layers from being run together, though each may be fused alone; None if nothing does."""
    own = [layer for layer in layers if type(layer) is not kind or is_hooked(layer)]
    return "a layer of another class, or hooked" if own else None


def _obstacle(
    blocks: Sequence[nn.Module], x: Tensor, y: Optional[Tensor], context: Optional[Tensor]
) -> Tuple[Optional[str], List[BlockWeights]]:
    """The reason against any fused tier, and the blocks' weights where there is none."""
    problem = why_not(x)
    if problem:
        return problem, []
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return "autocast is on", []
    if _has_any_global_hook():
        return "a hook on all modules is set", []
    weights: List[BlockWeights] = []
    rates: Set[float] = set()
    for block in blocks:
        found = block_weights(block)
        if found is None:
            return "a block with parts or hooks of its own", []
        rates |= drop_rates(block)
        if kind_of(block) != kind_of(blocks[0]):
            return "blocks of different kinds", []
        weights.append(found)
    if not same_kind(x, weights):
        return "weights of another size, dtype, device or class, or not contiguous", []
    if max(rates) > 0 or records(x, y, context, *tensors_of(weights)):
        heads = attention_of(blocks[0]).num_head
        problem = training_obstacle(x, context, weights[0].layer, heads, rates)
        if problem:
            return problem, []
    if x.shape[2] > ROWS_MAX_DIM:
        return f"D above {ROWS_MAX_DIM}", []
    return None, weights
