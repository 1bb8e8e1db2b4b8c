"""Tile sizes of the norm_adaln kernels: a fixed table, never tuned at a user's call.

Measured on one H200 (torch 2.11, Triton 3.6, bf16, CUDA graph, cold L2) at (1, 32, 128) x 186 x 128 and
8 x 4096 x 3072; other sizes follow the nearest of these.
"""

from typing import NamedTuple

MAX_DIM = 16384  # a row lies in one tile


class Tiles(NamedTuple):
    """A tile of `rows` by `block` columns and its warps.

    A backward splits a sample's rows into `chunks`, and loads `stages` - 1 tiles ahead.
    """

    rows: int
    block: int
    warps: int
    chunks: int = 1
    stages: int = 1


def forward_tiles(batch: int, length: int, dim: int) -> Tiles:
    block = next_power_of_2(dim)
    if block > 2048:
        return Tiles(rows=2, block=block, warps=block // 1024)
    tile = 2048 if batch * length * dim < 1 << 21 else 4096
    return Tiles(rows=tile // block, block=block, warps=8)


def backward_tiles(batch: int, length: int, dim: int) -> Tiles:
    block = next_power_of_2(dim)
    if batch >= 100 and block <= 1024:  # a program for each sample: no second stage
        return Tiles(rows=4096 // block, block=block, warps=8, stages=3)
    rows = max(1, (1024 if batch * length * dim < 1 << 18 else 2048) // block)
    tiles = -(-length // rows)
    tiles_each = -(-batch * tiles // (264 if block > 2048 else 528))  # two or four programs for each multiprocessor
    chunks = max(1, -(-tiles // tiles_each))
    return Tiles(rows=rows, block=block, warps=max(2, block // 1024), chunks=chunks, stages=min(4, tiles_each))


def reduce_tiles(dim: int) -> Tiles:
    """The second stage of the backward: 32 partial sums of up to 64 columns at a time."""
    return Tiles(rows=32, block=min(64, next_power_of_2(dim)), warps=4)


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
