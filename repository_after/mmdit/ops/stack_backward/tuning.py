"""Tile sizes of the backward's row kernels: a fixed table, never tuned at a user's call.

For sm_90 in 16 bits measured at D 128 and F 512, for 8,192 and 32,768 rows (see ops/README.md); others by what fits and
spills least.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmdit.runtime.architecture import table_key

MULTIPROCESSORS = 132  # of an H100 or H200


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
    hopper = table_key(x) == "sm_90" and x.dtype != torch.float32
    few = hopper and rows <= 64 * MULTIPROCESSORS  # tiles of 64 would leave some idle
    wide = hopper and forward % 128 == 0 and not few  # others spill, or lack memory
    tiles = rows // weights_tile
    splits = 16 if few else 32  # of 8 and 4 blocks of features, which fill the multiprocessors
    span = max(1 if few else 8, tiles // splits)
    return BackwardTiles(
        tile=32 if few else weights_tile,
        rows=32,
        block_f=64,
        stages=3 if few else 2,
        block_warps=4,
        heads_warps=4,
        weights_tile=weights_tile,
        span=span,
        weights_block_f=128 if wide else 64,
        weights_stages=3 if hopper else 2,
        attention_weights_warps=4,
        mlp_weights_warps=8 if wide else 4,
        sum_block=512,
    )
