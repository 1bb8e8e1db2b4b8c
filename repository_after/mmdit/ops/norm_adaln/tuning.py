"""Tile sizes of the norm_adaln kernels: a fixed table, never tuned at a user's call.

Measured on one H200 (torch 2.11, Triton 3.6, bf16, CUDA graph, cold L2) at (1, 32, 128) x 186 x 128 and
8 x 4096 x 3072; other sizes follow the nearest of these. Of sm_80 and sm_100, which were not measured,
runtime/architecture.py tells.
"""

from typing import Dict, NamedTuple

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


class Entry(NamedTuple):
    """Tiles of so many elements, `rows` at least, whatever the width; more warps where one would have 1024 columns."""

    elements: int
    warps: int
    rows: int = 1

    def tiles(self, block: int, chunks: int = 1, stages: int = 1) -> Tiles:
        warps = max(self.warps, block // 1024)
        return Tiles(max(self.rows, self.elements // block), block, warps, chunks, stages)


FORWARD_90 = {"few": Entry(2048, warps=8), "many": Entry(4096, warps=8), "wide": Entry(4096, warps=4, rows=2)}
FORWARD: Dict[str, Dict[str, Entry]] = {"sm_80": FORWARD_90, "sm_90": FORWARD_90, "sm_100": FORWARD_90}
BACKWARD_90 = {"few": Entry(1024, warps=2), "many": Entry(2048, warps=2), "samples": Entry(4096, warps=8)}
BACKWARD: Dict[str, Dict[str, Entry]] = {"sm_80": BACKWARD_90, "sm_90": BACKWARD_90, "sm_100": BACKWARD_90}
REDUCE: Dict[str, Tiles] = dict.fromkeys(("sm_80", "sm_90", "sm_100"), Tiles(rows=32, block=64, warps=4))


def forward_tiles(key: str, batch: int, length: int, dim: int) -> Tiles:
    """key: of FORWARD."""
    block = next_power_of_2(dim)
    size = "wide" if block > 2048 else "few" if batch * length * dim < 1 << 21 else "many"
    return FORWARD[key][size].tiles(block)


def backward_tiles(key: str, batch: int, length: int, dim: int) -> Tiles:
    """key: of BACKWARD."""
    block = next_power_of_2(dim)
    if batch >= 100 and block <= 1024:  # a program for each sample: no second stage
        return BACKWARD[key]["samples"].tiles(block, stages=3)
    entry = BACKWARD[key]["few" if batch * length * dim < 1 << 18 else "many"]
    tiles = -(-length // entry.tiles(block).rows)
    tiles_each = -(-batch * tiles // (264 if block > 2048 else 528))  # two or four programs for each multiprocessor
    return entry.tiles(block, chunks=max(1, -(-tiles // tiles_each)), stages=min(4, tiles_each))


def reduce_tiles(key: str, dim: int) -> Tiles:
    """The second stage of the backward: partial sums of some columns at a time. key: of REDUCE."""
    tiles = REDUCE[key]
    return tiles._replace(block=min(tiles.block, next_power_of_2(dim)))


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
