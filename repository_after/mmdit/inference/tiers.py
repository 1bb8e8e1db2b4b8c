"""Blocks without gradients, by the first of the fused tiers that can.

"tiles": ops/stack_rows, everything but attention on tiles of rows, two or three launches a layer, or, where it can and
pays, ops/stack_persistent, all layers in one launch.
"rows": inference/rows, products by PyTorch, a kernel for all that lies between two of them.
"""

from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from mmdit.inference.rows import run_rows
from mmdit.inference.weights import BlockWeights, LayerWeights, stack_modulation
from mmdit.ops.stack_persistent.op import run_persistent
from mmdit.ops.stack_persistent.tuning import persistent_obstacle
from mmdit.ops.stack_rows.op import run_tiles
from mmdit.runtime.architecture import on_gpu
from mmdit.runtime.dispatch import takes_fused
from mmdit.runtime.launch import product_precision, unit_stride

TILES_MAX_DIM = 128
TILES_HEAD_DIMS = (16, 32, 64)
ROWS_MAX_DIM = 2048


def infer(
    conditioned: bool,
    weights: Sequence[BlockWeights],
    x: Tensor,
    y: Optional[Tensor],
    context: Optional[Tensor],
    mask: Optional[Tensor],
    start: Optional[Union[int, Tensor]],
    heads: int,
    cos: Tensor,
    sin: Tensor,
) -> Tuple[Tensor, Optional[Tensor]]:
    """x (B, L, D) and context (B, C, D), or None, after blocks whose weights the kernels take.

    Args:
        conditioned: whether scale, shift and gate come from y (B, D) or (B, 1, D).
        mask: (B, L, L) bool, or None; start: None, an int or contiguous (B,) ints.
        heads: H. cos, sin: (positions, Dh / 2), contiguous.
    """
    without = context is not None and context.shape[1] == 0
    layers = [w.layer._replace(context=None) if without else w.layer for w in weights]
    problem = tiles_obstacle(x, context, layers[0], heads)
    streams = 1 if context is None or without else 2
    inputs = unit_stride(x), None if without else unit_stride(context)
    length = 0 if context is None else context.shape[1]
    forward = layers[0].x.up_weight.shape[0]
    persists = not problem and persistent_obstacle(x, length, heads, forward) is None
    tier = f"rows tier, not tiles: {problem}" if problem else "tiles tier, persistent" if persists else "tiles tier"
    takes_fused("stack", x, how=f"; {tier}")
    # after the inputs, which the next kernel reads before its wait: see ops/stack_rows/kernel.py
    modulations = stack_modulation(conditioned, weights, streams, y)
    run = run_rows if problem else run_persistent if persists else run_tiles
    x_out, context_out = run(layers, modulations, *inputs, mask, start, heads, cos, sin)
    return x_out, context if without else context_out


def tiles_obstacle(x: Tensor, context: Optional[Tensor], layer: LayerWeights, heads: int) -> Optional[str]:
    """What keeps the first tier from these sizes, or None."""
    batch, length, dim = x.shape
    forward = layer.x.up_weight.shape[0]
    if x.dtype == torch.float32 and (on_gpu(x) or product_precision() == "ieee"):
        return "fp32 products are PyTorch's: faster, and to TF32 it rounds where Triton cuts off"
    if dim > TILES_MAX_DIM or dim // heads not in TILES_HEAD_DIMS:
        return f"D above {TILES_MAX_DIM}, or a head dim not in {TILES_HEAD_DIMS}"
    if forward % 64:
        return "F not a multiple of 64"
    rows = length + 128 + (0 if context is None else context.shape[1])
    if 6 * batch * rows * dim >= 1 << 31:
        return "more than 2^31 elements in a buffer"
    return None
