"""Tile sizes of the row kernels: a fixed table, never tuned at a user's call.

Measured on one H200 (torch 2.11, Triton 3.6) at D 128, 8 heads, F 512, bf16; other sizes follow by what fits. Of
sm_80 and sm_100, which were not measured, runtime/architecture.py tells.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from mmdit.runtime.architecture import capability, table_key
from mmdit.runtime.prebuilt import triton_version

PADDING = 64  # each stream's rows are padded to a multiple of this, so that no tile holds rows of both
FEW_ROWS = 640  # up to so many rows, small tiles and an MLP in four slices
LATENCY_ROWS = 1024  # up to so many, in two
SPLIT_ROWS = 8192  # up to so many rows, the first layer's q, k and v by programs of their own
LITTLE_SHARED = ((8, 6), (8, 9), (12, 0), (12, 1))  # 99 KB of shared memory; slices of 128 features take 104
HOPPER_DIM = 128
HOPPER_TILES = 396  # up to so many tiles (three to a multiprocessor) each has one to itself; beyond, four share it
# Tile, stages, warps for q, k and v, and for the rest, beyond LATENCY_ROWS; on sm_80 and sm_100 others spill.
THROUGHPUT = {"sm_80": (32, 2, 4, 4), "sm_90": (64, 3, 4, 4), "sm_100": (64, 3, 8, 8)}
TRITON_WITH_GLUON = ("3.6.", "3.7.")  # whose Gluon the Hopper kernel was compiled with


class RowTiles(NamedTuple):
    """`tile` rows to a program. qkv_parts: 3 for a program each for q, k and v. slices: programs that share the MLP's
    features, block_f of them at a time, with loads `stages` - 1 ahead; 1 goes on to the next layer's q, k and v.
    """

    tile: int
    qkv_parts: int
    qkv_warps: int
    slices: int
    block_f: int
    stages: int
    rows_warps: int
    hopper: bool = False


def row_tiles(rows: int, dim: int, forward: int, x: Tensor) -> RowTiles:
    """`rows` is the batch times a sample's x and context rows, x any tensor of the call."""
    if x.dtype == torch.float32:
        return RowTiles(tile=32, qkv_parts=3, qkv_warps=4, slices=1, block_f=32, stages=1, rows_warps=4)
    if rows <= LATENCY_ROWS and forward % 512 == 0:
        little = capability(x) in LITTLE_SHARED
        slices = 8 if little else 4 if rows <= FEW_ROWS else 2
        block_f, stages = (64, 1) if little else (128, 1 if slices == 4 else 2)
        return RowTiles(16, qkv_parts=3, qkv_warps=4, slices=slices, block_f=block_f, stages=stages, rows_warps=8)
    hopper = hopper_obstacle(dim, forward, x) is None
    parts = 3 if rows <= SPLIT_ROWS else 1
    tile, stages, qkv_warps, rows_warps = THROUGHPUT[table_key(x)]
    return RowTiles(tile, parts, qkv_warps, slices=1, block_f=64, stages=stages, rows_warps=rows_warps, hopper=hopper)


def training_tiles(rows: int, dim: int, forward: int, x: Tensor) -> RowTiles:
    """row_tiles with an MLP in one piece, as its backward takes it."""
    return row_tiles(max(rows, LATENCY_ROWS + 1), dim, forward, x)


def hopper_obstacle(dim: int, forward: int, x: Tensor) -> Optional[str]:
    """What keeps the Hopper kernel from these sizes on x's device, or None."""
    if table_key(x) != "sm_90":
        return "not sm_90"
    if dim != HOPPER_DIM or forward % HOPPER_DIM or forward // HOPPER_DIM & (forward // HOPPER_DIM - 1):
        return f"D other than {HOPPER_DIM}, or F not {HOPPER_DIM} times a power of 2"
    if not triton_version().startswith(TRITON_WITH_GLUON):
        return f"Triton {triton_version()}"
    return None
