"""Tile sizes of the joint attention kernel: a fixed table, never tuned at a user's call.

Measured on one H200 (torch 2.11, Triton 3.6, bf16, CUDA graph) at batch 1, 8, 32 and 128, 8 heads of 16, 250 keys;
other sizes follow by what fits in registers.
"""

from typing import NamedTuple

import torch


class Tiles(NamedTuple):
    """`queries` rows against `keys` columns at a time, head dim padded to `block`; loads run `stages` - 1 ahead."""

    queries: int
    keys: int
    block: int
    warps: int
    stages: int


def attention_tiles(
    sequences: int, length: int, dim_head: int, dtype: torch.dtype, masked: bool, precision: str
) -> Tiles:
    """`sequences` is batch times heads, `precision` that of fp32 products. A masked kernel reads 32 keys at a time."""
    block = max(16, 1 << (dim_head - 1).bit_length())
    if dtype == torch.float32 and precision != "ieee":
        return Tiles(queries=64, keys=32, block=block, warps=4, stages=2)
    if dtype == torch.float32:
        return Tiles(queries=64, keys=32 if masked else 64, block=block, warps=2, stages=1)
    if block > 32:
        return Tiles(queries=128, keys=32 if masked else 64, block=block, warps=4, stages=3)
    if sequences * length < 1 << 13:
        return Tiles(queries=32, keys=32 if masked else 128, block=block, warps=2, stages=3)
    if sequences * length < 1 << 17 and not masked:
        return Tiles(queries=64, keys=64, block=block, warps=4, stages=3)
    return Tiles(queries=64, keys=32, block=block, warps=2, stages=4)
