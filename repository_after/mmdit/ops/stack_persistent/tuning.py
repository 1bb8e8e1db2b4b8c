"""Where the persistent kernel is taken: fixed, never tuned at a user's call.

Measured on one H200 (torch 2.11, Triton 3.6), bf16, 12 layers, x 186, context 64, us, beside the row kernels: batch 32
388 against 283, 48 493 and 490, 64 498 and 541, 96 634 and 806, 128 790 and 985.
"""

from typing import Optional

import torch
from torch import Tensor

from mmdit.ops.stack_rows.tuning import PADDING, hopper_obstacle

TILES = 4  # of a sample
ROWS = TILES * PADDING
HEADS = 8
LEAST_SHARE = 0.45  # of samples_at_once


def samples_at_once(x: Tensor) -> int:
    """How many samples the GPU holds: four programs to a multiprocessor, by registers and by shared memory."""
    return 4 * torch.cuda.get_device_properties(x.device).multi_processor_count // TILES


def persistent_obstacle(x: Tensor, context_length: int, heads: int, forward: int) -> Optional[str]:
    """What keeps the persistent kernel from x (B, L, D), in a size that the tiles tier takes, or None."""
    batch, length, dim = x.shape
    if x.dtype == torch.float32 or hopper_obstacle(dim, forward, x) is not None:
        return "fp32, or what keeps the Hopper kernels"
    if heads != HEADS or -(-length // PADDING) - (-context_length // PADDING) != TILES:
        return f"other than {HEADS} heads, or rows other than {ROWS} in tiles of {PADDING}"
    if batch < LEAST_SHARE * samples_at_once(x):
        return "a batch too small to share the GPU by"
    return None
