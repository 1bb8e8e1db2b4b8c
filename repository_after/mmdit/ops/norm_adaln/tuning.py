"""Tile sizes of the norm_adaln kernels: a fixed table, never tuned at a user's call."""

from typing import NamedTuple

MAX_DIM = 16384  # a row lies in one tile
PROGRAMS = 528  # programs that a backward is spread over: 4 for each of an H200's 132 multiprocessors


class Tiles(NamedTuple):
    """A tile of `rows` by `block` columns, its warps, and into how many chunks a sample's rows are split."""

    rows: int
    block: int
    warps: int
    chunks: int = 1


def forward_tiles(dim: int) -> Tiles:
    """About 2,048 elements a tile, at least one row."""
    block = next_power_of_2(dim)
    return Tiles(rows=max(1, 2048 // block), block=block, warps=warps(block))


def backward_tiles(batch: int, length: int, dim: int) -> Tiles:
    """As forward; enough chunks to fill the chip, none shorter than a tile."""
    block = next_power_of_2(dim)
    rows = max(1, 2048 // block)
    chunks = max(1, min(-(-PROGRAMS // batch), length // rows))
    return Tiles(rows=rows, block=block, warps=warps(block), chunks=chunks)


def reduce_tiles(dim: int) -> Tiles:
    """The second stage of the backward: 32 partial sums of up to 64 columns at a time."""
    return Tiles(rows=32, block=min(64, next_power_of_2(dim)), warps=4)


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def warps(block: int) -> int:
    return max(4, min(16, block // 512))
