"""Root-mean-square norm, and the two norms modulated by a condition (AdaLN)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmdit.errors import ShapeError
from mmdit.validation import check_adaln, check_eps, check_positive_int, check_tensor


def rms_normalize(
    x: Float[Tensor, "... D"], eps: float, weight: Float[Tensor, "D"] | None = None
) -> Float[Tensor, "... D"]:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in fp32 or wider (Zhang & Sennrich, 2019)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        normed = normed * weight
    return normed.to(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis.

    Args:
        normalized_shape: size D of the last axis.
        eps: added to the mean square.

    Input and output: (..., D), any floating dtype. Raises ShapeError where the last axis is not D.
    """

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        check_positive_int("normalized_shape", normalized_shape)
        check_eps(eps)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(normalized_shape))

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        check_tensor("x", x)
        if x.shape[-1:] != self.weight.shape:
            raise ShapeError("x", f"a last axis of {self.weight.numel()}", str(tuple(x.shape)))
        return rms_normalize(x, self.eps, self.weight)


def layernorm_adaln(
    x: Float[Tensor, "B L D"],
    scale: Float[Tensor, "B 1 D"] | Float[Tensor, "B D"],
    shift: Float[Tensor, "B 1 D"] | Float[Tensor, "B D"],
    eps: float = 1e-6,
) -> Float[Tensor, "B L D"]:
    """LayerNorm(x) * (1 + scale) + shift, in x's dtype (adaptive LayerNorm: Peebles & Xie, 2023).

    Raises ShapeError, DTypeError or DeviceError where the inputs do not fit each other, ConfigError for eps.
    """
    check_adaln(x, scale, shift, eps)
    return modulate(F.layer_norm(x, x.shape[-1:], eps=eps), scale, shift).to(x.dtype)


def rmsnorm_adaln(
    x: Float[Tensor, "B L D"],
    scale: Float[Tensor, "B 1 D"] | Float[Tensor, "B D"],
    shift: Float[Tensor, "B 1 D"] | Float[Tensor, "B D"],
    eps: float = 1e-6,
    weight: Float[Tensor, "D"] | None = None,
) -> Float[Tensor, "B L D"]:
    """RMSNorm(x) * weight * (1 + scale) + shift, in x's dtype; no weight is a weight of ones.

    Raises ShapeError, DTypeError or DeviceError where the inputs do not fit each other, ConfigError for eps.
    """
    check_adaln(x, scale, shift, eps, weight)
    return modulate(rms_normalize(x, eps, weight), scale, shift).to(x.dtype)


def modulate(
    h: Float[Tensor, "B L D"],
    scale: Float[Tensor, "B 1 D"] | Float[Tensor, "B D"],
    shift: Float[Tensor, "B 1 D"] | Float[Tensor, "B D"],
) -> Float[Tensor, "B L D"]:
    """h * (1 + scale) + shift, the same for all of a sample's positions."""
    batch, _, dim = h.shape
    return h * (1 + scale.view(batch, 1, dim)) + shift.view(batch, 1, dim)
