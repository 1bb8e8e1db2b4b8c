"""All modulations of a stack in one launch: dispatch and launch."""

from typing import Optional, Sequence

import torch
from torch import Tensor

from mmdit.ops.modulation.reference import modulation_reference
from mmdit.runtime.addresses import addresses
from mmdit.runtime.architecture import on_gpu, table_key
from mmdit.runtime.dispatch import why_not
from mmdit.runtime.launch import can_chain, launch, product_precision, unit_stride

MAX_DIM = 256
BLOCK_N = 128


def modulation(y: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """silu(y) weight^T + bias for each weight, fp32 or wider (B, len(weights), 6 D); takes no gradients.

    Args:
        y: (B, D), any strides.
        weights, biases: contiguous (6 D, D) and (6 D,), of y's dtype and device.
    """
    if why_not(y) or _unsupported(y, weights, biases):
        return modulation_reference(y, weights, biases)
    return _forward(unit_stride(y), weights, biases)


def _unsupported(y: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Optional[str]:
    if y.shape[1] > MAX_DIM:
        return f"D above {MAX_DIM}"
    if y.dtype == torch.float32 and (on_gpu(y) or product_precision() == "ieee"):
        return "fp32 products are PyTorch's"
    if any(t.data_ptr() % 16 for t in (*weights, *biases)):
        return "a weight whose address 16 does not divide"
    return None


def _forward(y: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    batch, dim = y.shape
    out = torch.empty(batch, len(weights), 6 * dim, device=y.device)
    block_b = 16 if batch <= 16 else 64
    launch(
        "modulation.kernel:modulation_kernel",
        -(-batch // block_b) * len(weights) * -(-6 * dim // BLOCK_N),
        tensors=(y, addresses(weights), addresses(biases), out),
        strides=(y.stride(0),),
        lengths=(batch,),
        constants=(
            *(len(weights), dim, block_b, BLOCK_N, max(16, 1 << (dim - 1).bit_length())),
            *(product_precision(), can_chain(y)),
        ),
        warps=8 if block_b == 64 and table_key(y) == "sm_80" else 4,  # four spill there
    )
    return out
