"""All modulations of a stack as PyTorch arithmetic: the fallback, and what the kernel must equal."""

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def modulation_reference(y: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """silu(y) weight^T + bias of y (B, D) for each weight (6 D, D) and bias (6 D,): (B, len(weights), 6 D), fp32 or
    wider, by one product.
    """
    out = F.linear(F.silu(y), torch.cat(list(weights)), torch.cat(list(biases)))
    return out.to(torch.promote_types(out.dtype, torch.float32)).unflatten(1, (len(weights), -1))
