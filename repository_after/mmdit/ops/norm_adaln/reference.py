"""LayerNorm or RMSNorm with AdaLN modulation as PyTorch arithmetic: the fallback, and what the kernels must equal.

B batch, L length, D model dim. x (B, L, D); scale, shift (B, 1, D) or (B, D); weight (D,).
"""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_adaln_reference(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Optional[Tensor], eps: float, center: bool
) -> Tensor:
    """norm(x) * weight * (1 + scale) + shift in x's dtype; the norm is LayerNorm if center, else RMSNorm."""
    if center:
        normed = F.layer_norm(x, [x.shape[2]], None, None, eps)
    else:
        normed = normalize(x, eps, False)[0]
    if weight is not None:
        normed = normed * weight
    scale, shift = scale.reshape(x.shape[0], 1, x.shape[2]), shift.reshape(x.shape[0], 1, x.shape[2])
    return (normed.to(x.dtype) * (1 + scale) + shift).to(x.dtype)


def normalize(x: Tensor, eps: float, center: bool) -> Tuple[Tensor, Tensor]:
    """x normalised over its last axis, and 1 / the divisor; both in fp32 or wider."""
    wide = x if x.dtype == torch.float64 else x.float()
    if center:
        wide = wide - wide.mean(-1, keepdim=True)
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide * rstd, rstd


def norm_adaln_backward_reference(
    grad: Tensor, x: Tensor, scale: Tensor, weight: Optional[Tensor], eps: float, center: bool
) -> Tuple[Tensor, Tensor, Tensor, Optional[Tensor]]:
    """Gradients of x, scale, shift and weight, each in its tensor's dtype and shape (shift's are scale's).

    With n = norm(x), w the weight, s the scale and g = grad * w * (1 + s):
        d_x = rstd * (g - n * mean(g * n) [- mean(g) if center]);  d_scale = w * sum_L(grad * n)
        d_shift = sum_L(grad);  d_weight = sum_B((1 + s) * sum_L(grad * n))
    """
    normed, rstd = normalize(x, eps, center)
    wide_grad = grad.to(normed.dtype)
    gain = 1 + scale.reshape(x.shape[0], 1, x.shape[2]).to(normed.dtype)  # (B, 1, D)
    wide_weight = torch.ones_like(gain[0, 0]) if weight is None else weight.to(normed.dtype)
    g = wide_grad * gain * wide_weight
    inner = g - normed * (g * normed).mean(-1, keepdim=True)
    if center:
        inner = inner - g.mean(-1, keepdim=True)
    moment = (wide_grad * normed).sum(1, keepdim=True)  # (B, 1, D)
    d_scale = (moment * wide_weight).to(scale.dtype).reshape(scale.shape)
    d_shift = wide_grad.sum(1).to(scale.dtype).reshape(scale.shape)
    d_weight = None if weight is None else (moment * gain).sum((0, 1)).to(weight.dtype)
    return (inner * rstd).to(x.dtype), d_scale, d_shift, d_weight
