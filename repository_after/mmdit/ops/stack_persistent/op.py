"""A whole stack in one launch for as many samples as the GPU holds at once. Its reference is inference/rows.py.

B batch, L x length, C context length, D model dim, F feed-forward, N layers, M streams.
"""

from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from mmdit.attention import RMS_EPS
from mmdit.inference.weights import NORM_EPS, LayerWeights, StreamWeights
from mmdit.ops.joint_attention.op import LARGEST_SUM, LOG2_E, pack_mask
from mmdit.ops.stack_persistent.tuning import ROWS, TILES, registers, samples_at_once
from mmdit.ops.stack_rows.tuning import PADDING
from mmdit.runtime.addresses import addresses
from mmdit.runtime.launch import Block, can_chain, launch


def run_persistent(
    layers: Sequence[LayerWeights],
    modulation: Tensor,
    x: Tensor,
    context: Optional[Tensor],
    attn_mask: Optional[Tensor],
    start_pos: Optional[Union[int, Tensor]],
    heads: int,
    cos: Tensor,
    sin: Tensor,
) -> Tuple[Tensor, Optional[Tensor]]:
    """x (B, L, D) and context (B, C, D), or None, after all layers, in their dtype; the arguments are run_rows'."""
    batch, length, dim = x.shape
    context_length = 0 if context is None else context.shape[1]
    x_rows = -(-length // PADDING) * PADDING
    weights = pack_weights([stream for layer in layers for stream in layer if stream is not None])
    x_out = x.new_empty(batch, length, dim)
    context_out = x_out if context is None else context.new_empty(batch, context_length, dim)
    bits = None if attn_mask is None else pack_mask(attn_mask, context_length, x_rows, ROWS)
    start, starts = (0, start_pos) if isinstance(start_pos, Tensor) else (start_pos or 0, None)
    by_sample = (x, x if context is None else context, bits, starts, x_out, context_out)

    size = samples_at_once(x)
    size = -(-batch // -(-batch // size))  # of launches of one size
    keys = x.new_empty(2, size, heads, ROWS, dim // heads)
    residual = torch.empty(size, ROWS, dim, device=x.device)
    counts = torch.zeros(batch, 32, dtype=torch.int32, device=x.device)  # a line of memory to each sample
    for first in range(0, batch, size):
        part = slice(first, min(first + size, batch))
        _launch(
            weights,
            (residual, keys),
            modulation[part] if modulation.shape[0] > 1 else modulation,
            [None if t is None else t[part] for t in by_sample],
            counts[part],
            (cos, sin),
            (len(layers), start, length, context_length, x_rows // PADDING),
        )
    return x_out, None if context is None else context_out


def pack_weights(streams: Sequence[StreamWeights]) -> Tuple[Tensor, Tensor, Tensor]:
    """The weights of each layer's streams, contiguous: Wo, W1 and Wqkv one under the other (N M (4 D + F), D), W2
    (N M D, F), and all vectors (N M, 8 D + F). Copied at every call, as they may have changed since the last.
    """
    like = streams[0].up_weight
    forward, dim = like.shape
    square = like.new_empty(len(streams) * (4 * dim + forward), dim)
    down, vectors = like.new_empty(len(streams) * dim, forward), like.new_empty(len(streams), 8 * dim + forward)
    tensors = [t for stream in streams for t in stream]
    chained = can_chain(like)
    launch(
        "stack_persistent.kernel_pack:pack_kernel",
        len(streams) * (5 + 2 * forward // dim),
        tensors=(addresses(tensors), square, down, vectors),
        strides=(),
        lengths=(),
        constants=(forward, not [1 for t in tensors if t.data_ptr() % 16], chained),
        warps=8,
        **({"launch_pdl": True} if chained else {}),
    )
    return square, down, vectors


def _launch(
    weights: Tuple[Tensor, Tensor, Tensor],
    scratch: Tuple[Tensor, Tensor],
    modulation: Tensor,
    by_sample: Sequence[Optional[Tensor]],
    counts: Tensor,
    tables: Tuple[Tensor, Tensor],
    lengths: Tuple[int, ...],
) -> None:
    square, down, vectors = weights
    residual, keys = scratch
    x, context, bits, starts, x_out, context_out = by_sample
    heads, dim_head = keys.shape[2], keys.shape[4]
    layers = lengths[0]
    launch(
        "stack_persistent.kernel:stack_kernel",
        len(x) * TILES,
        descriptors=(
            *(Block.of(keys.flatten(1, 3), 2, ROWS, dim_head), Block.of(keys.flatten(0, 2), heads, 64, dim_head)),
            Block.of(square.view(-1, heads, dim_head).transpose(0, 1), heads // 2, 128, dim_head),
            Block.of(square.view(-1, 2, 64).transpose(0, 1), 2, 64, 64),
            *(Block.of(square, 128, 64), Block.of(down, 128, 64)),
        ),
        tensors=(residual, modulation, vectors, x, context, bits, *tables, starts, counts, x_out, context_out),
        strides=(*x.stride()[:2], *context.stride()[:2], modulation.stride(0) if modulation.shape[0] > 1 else 0),
        lengths=(*lengths, keys.shape[1]),
        constants=(
            *(len(vectors) // layers, down.shape[1], LOG2_E / dim_head**0.5),
            *(LARGEST_SUM[x.dtype], NORM_EPS, RMS_EPS),
        ),
        warps=4,
        maxnreg=registers(len(x), x),
        launch_cooperative_grid=True,
    )
