"""Tile sizes of the pack_heads and gated_residual kernels: a fixed table, never tuned at a user's call.

Not measured on any architecture; by what was measured of norm_adaln, and by what the compiled kernels move through
shared memory.
"""

from typing import Dict

from mmdit.ops.norm_adaln.tuning import Tiles, forward_tiles, next_power_of_2

MAX_DIM = 2048  # two rows of three tensors in registers
ROWS: Dict[str, int] = {"sm_80": 2, "sm_90": 2, "sm_100": 2}


def norm_tiles(key: str, batch: int, length: int, dim: int) -> Tiles:
    """With 8 columns to a thread the rows lie as the weights (1, D) do; with fewer, Triton moves the rows to where the
    weights are, through shared memory. key: of ROWS.
    """
    block = next_power_of_2(dim)
    if block >= 256:
        return Tiles(rows=ROWS[key], block=block, warps=block // 256)
    return forward_tiles(key, batch, length, dim)
