"""Blocks without gradients: which of the fused tiers takes them, if any.

"tiles": ops/stack_rows, everything but attention on tiles of rows, two or three launches a layer, or, where it can and
pays, ops/stack_persistent, all layers in one launch.
"rows": inference/rows, products by PyTorch, a kernel for all that lies between two of them.
"""

from typing import Iterable, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from mmdit.inference.rows import run_rows
from mmdit.inference.weights import BlockWeights, LayerWeights, attention_of, block_weights, drops, is_hooked, same_kind
from mmdit.ops.modulation.op import modulation
from mmdit.ops.stack_persistent.op import run_persistent
from mmdit.ops.stack_persistent.tuning import persistent_obstacle
from mmdit.ops.stack_rows.op import run_tiles
from mmdit.runtime.dispatch import takes_fused, why_not
from mmdit.runtime.launch import product_precision, unit_stride

TILES_MAX_DIM = 128
TILES_HEAD_DIMS = (16, 32, 64)
ROWS_MAX_DIM = 2048


def run_fused(
    blocks: Sequence[nn.Module],
    x: Tensor,
    y: Optional[Tensor],
    context: Optional[Tensor],
    attn_mask: Optional[Tensor],
    start_pos: Optional[Union[int, Tensor]],
    unsupported: Optional[str] = None,
) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
    """x (B, L, D) and context (B, C, D), or None, after the blocks; None where they must be called one by one.

    The arguments are those of an MMDiTBlock, checked; `unsupported` is the caller's own reason for None, if any.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return None
    obstacle, weights = (unsupported, []) if unsupported else _obstacle(blocks, x, y, context)
    if obstacle:
        takes_fused("stack", x, obstacle)
        return None
    without = context is not None and context.shape[1] == 0
    attention = attention_of(blocks[0])
    layers = [w.layer._replace(context=None) if without else w.layer for w in weights]
    problem = tiles_obstacle(x, context, layers[0], attention.num_head)
    length = 0 if context is None else context.shape[1]
    forward = layers[0].x.up_weight.shape[0]
    persists = not problem and persistent_obstacle(x, length, attention.num_head, forward) is None
    tier = f"rows tier, not tiles: {problem}" if problem else "tiles tier, persistent" if persists else "tiles tier"
    takes_fused("stack", x, how=f"; {tier}")
    mask = None if attn_mask is None else attn_mask if attn_mask.dtype == torch.bool else attn_mask != 0
    start = start_pos.contiguous() if isinstance(start_pos, Tensor) else start_pos
    inputs = unit_stride(x), None if without else unit_stride(context), mask, start
    streams = 1 if context is None or without else 2
    modulations = _modulation(blocks[0].conditioning, weights, streams, y)  # last: see PDL in ops/stack_rows/kernel.py
    tables = attention.num_head, attention.rotary.cos, attention.rotary.sin
    run = run_rows if problem else run_persistent if persists else run_tiles
    x_out, context_out = run(layers, modulations, *inputs, *tables)
    return x_out, context if without else context_out


def layers_problem(layers: Iterable[nn.Module], kind: type) -> Optional[str]:
    """What keeps a stack's layers from being run together, though each may be fused alone; None if nothing does."""
    own = [layer for layer in layers if type(layer) is not kind or is_hooked(layer)]
    return "a layer of another class, or hooked" if own else None


def tiles_obstacle(x: Tensor, context: Optional[Tensor], layer: LayerWeights, heads: int) -> Optional[str]:
    """What keeps the first tier from these sizes, or None."""
    batch, length, dim = x.shape
    forward = layer.x.up_weight.shape[0]
    if x.dtype == torch.float32 and (x.is_cuda or product_precision() == "ieee"):
        return "fp32 products are PyTorch's: faster, and to TF32 it rounds where Triton cuts off"
    if dim > TILES_MAX_DIM or dim // heads not in TILES_HEAD_DIMS:
        return f"D above {TILES_MAX_DIM}, or a head dim not in {TILES_HEAD_DIMS}"
    if forward % 64:
        return "F not a multiple of 64"
    rows = length + 128 + (0 if context is None else context.shape[1])
    if 6 * batch * rows * dim >= 1 << 31:
        return "more than 2^31 elements in a buffer"
    return None


def _obstacle(
    blocks: Sequence[nn.Module], x: Tensor, y: Optional[Tensor], context: Optional[Tensor]
) -> Tuple[Optional[str], List[BlockWeights]]:
    """The reason against any fused tier, and the blocks' weights where there is none."""
    problem = why_not(x)
    if problem:
        return problem, []
    if torch.is_autocast_enabled(x.device.type):
        return "autocast is on", []
    if _has_any_global_hook():
        return "a hook on all modules is set", []
    weights: List[BlockWeights] = []
    for block in blocks:
        found = block_weights(block)
        if found is None:
            return "a block with parts or hooks of its own", []
        if drops(block):
            return "dropout is on", []
        if _kind(block) != _kind(blocks[0]):
            return "blocks of different kinds", []
        weights.append(found)
    if not same_kind(x, weights):
        return "weights of another size, dtype, device or class, or not contiguous", []
    if torch.is_grad_enabled():
        tensors = [t for w in weights for part in (*w.layer, w.condition) if part is not None for t in part]
        if [1 for t in (x, y, context, *tensors) if t is not None and t.requires_grad]:
            return "gradients are recorded, and the fused stack has no backward", []
    if x.shape[2] > ROWS_MAX_DIM:
        return f"D above {ROWS_MAX_DIM}", []
    return None, weights


def _kind(block: nn.Module) -> Tuple[bool, bool, int]:
    return block.conditioning, block.use_cross_attn, attention_of(block).num_head


def _modulation(conditioned: bool, weights: List[BlockWeights], streams: int, y: Optional[Tensor]) -> Tensor:
    """Scale, shift and gate of attention and MLP: (B or 1, layers, streams, 6, D) fp32 or wider."""
    if conditioned:
        matrices = [m for w in weights for m in w.condition[: 2 * streams : 2]]
        biases = [b for w in weights for b in w.condition[1 : 2 * streams : 2]]
        chunks = modulation(y.view(len(y), -1), matrices, biases)
        return chunks.unflatten(2, (6, -1)).unflatten(1, (len(weights), streams))
    wide = torch.stack([t for w in weights for t in w.condition]).float().unflatten(0, (-1, 2, 2))  # layer, norm, pair
    scale, shift = wide[:, :, 0] - 1.0, wide[:, :, 1]
    return torch.stack((scale, shift, torch.ones_like(scale)), dim=2).flatten(1, 2)[None, :, None].contiguous()
