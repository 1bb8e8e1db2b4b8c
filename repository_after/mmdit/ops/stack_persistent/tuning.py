"""Where the persistent kernel is taken, and its registers: fixed, never tuned at a user's call.

Measured on one H200 (torch 2.11, Triton 3.6), bf16, 12 layers, x 186, context 64, us, with 128, 168 and 255 registers,
and the row kernels beside it: batch 33 381, 371, 343 and 303; 48 479, 476, 450 and 488; 66 491, 484, 458 and 557; 99
623, 622, - and 817; 128 775, -, - and 978.
"""

from typing import Optional

import torch
from torch import Tensor

from mmdit.ops.stack_rows.tuning import PADDING, hopper_obstacle
from mmdit.runtime.architecture import multiprocessors

TILES = 4  # of a sample
ROWS = TILES * PADDING
HEADS = 8
# Of a thread, by how many programs share a multiprocessor. With four's for two, a launch may put four on half of the
# multiprocessors and none on the others: 755 us once, where else 487 were measured.
REGISTERS = (255, 255, 168, 128)


def samples_at_once(x: Tensor) -> int:
    """How many samples the GPU holds: four programs to a multiprocessor, by registers and by shared memory."""
    return len(REGISTERS) * multiprocessors(x) // TILES


def registers(samples: int, x: Tensor) -> int:
    """Of a thread, at most, for a launch of so many samples."""
    return REGISTERS[(samples * TILES - 1) // multiprocessors(x)]


def persistent_obstacle(x: Tensor, context_length: int, heads: int, forward: int) -> Optional[str]:
    """What keeps the persistent kernel from x (B, L, D), in a size that the tiles tier takes, or None."""
    batch, length, dim = x.shape
    if x.dtype == torch.float32 or hopper_obstacle(dim, forward, x) is not None:
        return "fp32, or what keeps the Hopper kernels"
    if heads != HEADS or -(-length // PADDING) - (-context_length // PADDING) != TILES:
        return f"other than {HEADS} heads, or rows other than {ROWS} in tiles of {PADDING}"
    if batch * TILES <= multiprocessors(x):
        return "a batch whose tiles each have a multiprocessor to themselves in the row kernels"
    return None
