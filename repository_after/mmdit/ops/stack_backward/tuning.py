"""Tile sizes of the backward's row kernels: a fixed table, never tuned at a user's call. Not measured yet."""

from typing import NamedTuple

import torch
from torch import Tensor


class BackwardTiles(NamedTuple):
    """`tile` rows of the MLP to a program, block_f of its features at a time, `rows` rows of all else. For the weights'
    gradients weights_tile rows at a time, and `span` such tiles to a split of their sums.
    """

    tile: int
    rows: int
    block_f: int
    stages: int
    block_warps: int
    heads_warps: int
    weights_tile: int
    span: int
    weights_block_f: int
    weights_stages: int
    attention_weights_warps: int
    mlp_weights_warps: int
    sum_block: int


def backward_tiles(x: Tensor, rows: int, forward: int) -> BackwardTiles:
    """`rows` is all rows of the call, x any tensor of it, forward F."""
    weights_tile = 32 if x.dtype == torch.float32 else 64
    wide = x.dtype != torch.float32 and forward % 128 == 0
    span = max(8, rows // weights_tile // 32)  # 32 splits and 4 blocks of 128 features fill 132 multiprocessors
    return BackwardTiles(
        tile=weights_tile,
        rows=32,
        block_f=64,
        stages=2,
        block_warps=4,
        heads_warps=4,
        weights_tile=weights_tile,
        span=span,
        weights_block_f=128 if wide else 64,
        weights_stages=3,
        attention_weights_warps=4,
        mlp_weights_warps=8 if wide else 4,
        sum_block=1024,
    )
