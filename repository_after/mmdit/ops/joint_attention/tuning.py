"""Tile sizes of the joint attention kernel: a fixed table, never tuned at a user's call.

Measured on one H200 (torch 2.11, Triton 3.6, bf16, CUDA graph) at batch 1, 8, 32 and 128, 8 heads of 16, 250 keys;
other sizes follow by what fits in registers. Of sm_80 and sm_100, which were not measured, runtime/architecture.py
tells.
"""

from functools import lru_cache
from typing import Dict, NamedTuple, Optional, Tuple

import torch

from mmdit.runtime.launch import product_precision


class Tiles(NamedTuple):
    """`queries` rows against `keys` columns at a time, head dim padded to `block`; loads run `stages` - 1 ahead."""

    queries: int
    keys: int
    warps: int
    stages: int
    block: int = 0  # of a call, not of the table


SM_90 = {
    "tf32": Tiles(queries=64, keys=32, warps=4, stages=2),
    "ieee": Tiles(queries=64, keys=64, warps=2, stages=1),
    "wide": Tiles(queries=128, keys=64, warps=4, stages=3),
    "few": Tiles(queries=32, keys=128, warps=2, stages=3),
    "some": Tiles(queries=64, keys=64, warps=4, stages=3),
    "many": Tiles(queries=64, keys=32, warps=2, stages=4),
}
NARROW = Tiles(queries=64, keys=32, warps=2, stages=1)  # 64 keys spill 650 bytes
TILES: Dict[str, Dict[str, Tiles]] = {
    "sm_80": {  # another stage spills
        **SM_90,
        "ieee": NARROW,
        "few": Tiles(queries=32, keys=128, warps=2, stages=2),
        "many": Tiles(queries=64, keys=32, warps=2, stages=3),
    },
    "sm_90": SM_90,
    # with 4 warps, Triton 3.6 and 3.7 do not compile the kernel for these
    "sm_100": {
        **SM_90,
        "ieee": NARROW,
        "tf32": Tiles(queries=64, keys=32, warps=2, stages=2),
        "wide": Tiles(queries=64, keys=64, warps=2, stages=3),
        "some": Tiles(queries=64, keys=64, warps=2, stages=3),
    },
}


def attention_precision() -> str:
    """How the kernels take fp32 products: where TF32 is allowed by three of them, as vanilla takes IEEE's there."""
    return "ieee" if product_precision() == "ieee" else "tf32x3"


@lru_cache(maxsize=1024)
def attention_tiles(
    key: str, sequences: int, length: int, dim_head: int, dtype: torch.dtype, masked: bool, precision: str
) -> Tiles:
    """key: of TILES. `sequences` is batch times heads, `precision` that of fp32 products. A masked kernel reads 32 keys
    at a time.
    """
    block = max(16, 1 << (dim_head - 1).bit_length())
    if dtype == torch.float32:
        size = "ieee" if precision == "ieee" else "tf32"
    elif block > 32:
        size = "wide"
    elif sequences * length < 1 << 13:
        size = "few"
    else:
        size = "some" if sequences * length < 1 << 17 and not masked else "many"
    tiles = TILES[key][size]
    return tiles._replace(block=block, keys=32 if masked else tiles.keys)


# Of the backward kernels: "whole" has all keys of a head in one tile, keys a power of 2 (here the most); the others are
# of pairs, the kernel for d_k and d_v and the one for d_q. Measured for sm_90 at 256 rows, batch 32 and 128, and at
# 1088 rows, batch 8.
BACKWARD = {
    "whole": Tiles(queries=32, keys=256, warps=4, stages=1),
    "whole-masked": Tiles(queries=16, keys=256, warps=8, stages=1),
    "keys": Tiles(queries=32, keys=64, warps=4, stages=2),
    "keys-wide": Tiles(queries=32, keys=64, warps=4, stages=2),
    "queries": Tiles(queries=64, keys=32, warps=4, stages=2),
    "keys-fp32": Tiles(queries=32, keys=32, warps=4, stages=1),
    "queries-fp32": Tiles(queries=32, keys=32, warps=4, stages=1),
}
BACKWARD_TILES: Dict[str, Dict[str, Tiles]] = {
    "sm_80": {**BACKWARD, "whole": BACKWARD["whole-masked"]},  # its own spills there
    "sm_90": {
        **BACKWARD,
        "whole-masked": Tiles(queries=16, keys=256, warps=4, stages=1),
        "keys": Tiles(queries=64, keys=64, warps=4, stages=1),
        "queries": Tiles(queries=64, keys=64, warps=4, stages=3),
        "keys-fp32": Tiles(queries=32, keys=64, warps=4, stages=1),
        "queries-fp32": Tiles(queries=64, keys=32, warps=4, stages=1),
    },
    "sm_100": BACKWARD,
}


@lru_cache(maxsize=1024)
def attention_backward_tiles(
    key: str, rows: int, dim_head: int, dtype: torch.dtype, masked: bool
) -> Tuple[Tiles, Optional[Tiles]]:
    """key: of BACKWARD_TILES. Tiles of the kernel for d_k and d_v, and of that for d_q; None: the first does both."""
    table, block = BACKWARD_TILES[key], max(16, 1 << (dim_head - 1).bit_length())
    whole = table["whole-masked" if masked else "whole"]._replace(block=block)
    if dtype != torch.float32 and block == 16 and rows <= whole.keys:
        return whole._replace(keys=max(32, 1 << (rows - 1).bit_length())), None
    if dtype != torch.float32:
        names = ("keys" if block == 16 else "keys-wide", "queries")
        return tuple(table[name]._replace(block=block) for name in names)
    tiles = (table[f"{name}-fp32"]._replace(block=block) for name in ("keys", "queries"))
    return tuple(t._replace(queries=16) if block > 16 else t for t in tiles)


# Against Triton's kernel Hopper's took 8.6 us more for 256 heads of 256 rows, 10.6 less for 1024 (H200; none between).
HOPPER_BACKWARD_HEADS = 768


def hopper_backward(key: str, heads: int, rows: int, dim_head: int, dtype: torch.dtype, masked: bool) -> bool:
    """Whether the backward kernel for Hopper takes a call; heads are those of all samples."""
    fits = key == "sm_90" and dim_head == 16 and 64 < rows <= 256 and dtype != torch.float32 and not masked
    return fits and heads >= HOPPER_BACKWARD_HEADS
