"""Tile sizes of the backward's row kernels: a fixed table, never tuned at a user's call. Not measured yet."""

from typing import NamedTuple

import torch
from torch import Tensor


class BackwardTiles(NamedTuple):
    """`tile` rows to a program, block_f features of the MLP at a time, `span` tiles to a split of the weights' sums."""

    tile: int
    block_f: int
    stages: int
    block_warps: int
    heads_warps: int
    span: int
    weights_block_f: int
    weights_stages: int
    weights_warps: int
    sum_block: int


def backward_tiles(x: Tensor, rows: int) -> BackwardTiles:
    """`rows` is all rows of the call, x any tensor of it."""
    tile = 32 if x.dtype == torch.float32 else 64
    span = max(2, rows // tile // 16)  # 16 splits and 8 blocks of 64 features fill 132 multiprocessors
    return BackwardTiles(tile, 64, 2, 8, 8, span, 64, 3, 8, 1024)
