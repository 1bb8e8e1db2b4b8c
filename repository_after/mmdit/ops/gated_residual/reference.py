"""A gated residual and the modulated norm after it as PyTorch arithmetic: the fallback, and what the kernel must equal.

B batch, L length, D model dim.
"""

from typing import Optional, Tuple

import torch
from torch import Tensor

from mmdit.norm import rms_normalize
from mmdit.ops.norm_adaln.reference import normalize


def gated_residual_reference(
    branch: Tensor,
    residual: Tensor,
    bias: Optional[Tensor],
    gate: Optional[Tensor],
    rms_weight: Optional[Tensor],
    scale: Optional[Tensor],
    shift: Optional[Tensor],
    rms_eps: float,
    norm_eps: float,
) -> Tuple[Tensor, Tensor]:
    """As gated_residual, with an empty tensor for no norm."""
    wide = torch.promote_types(branch.dtype, torch.float32)
    out = branch.to(wide) if bias is None else branch.to(wide) + bias
    if rms_weight is not None:
        out = rms_normalize(out, [2], rms_eps, None) * rms_weight
    if gate is not None:
        out = out * _per_row(gate)
    out = residual + out
    if scale is None or shift is None:
        return out.to(residual.dtype).contiguous(), branch.new_empty(0)
    normed = normalize(out, norm_eps, True)[0] * (1 + _per_row(scale)) + _per_row(shift)
    return out.to(residual.dtype).contiguous(), normed.to(branch.dtype).contiguous()


def _per_row(modulation: Tensor) -> Tensor:
    """(B, 1, D), or (1, 1, D), of (B, D) or (B, 1, D)."""
    return modulation.reshape(modulation.shape[0], 1, modulation.shape[-1])
