"""Root-mean-square norm over any axes, in any floating dtype, for eager, TorchScript and ONNX alike."""

from math import log
from typing import Any, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from mmdit.errors import ConfigError, ShapeError
from mmdit.validation import check_eps, check_positive_int, check_same_shape, check_tensor


def resolve_axes(axes: List[int], ndim: int) -> List[int]:
    """Axes counted from the front."""
    return [axis + ndim if axis < 0 else axis for axis in axes]


def along_axes(t: Tensor, axes: List[int], ndim: int) -> Tensor:
    """Lay t, whose dimensions belong to these axes in this order, out for broadcasting against ndim axes."""
    shape = [1] * ndim
    order: List[int] = []
    for axis in range(ndim):
        if axis in axes:
            order.append(axes.index(axis))
            shape[axis] = t.shape[order[-1]]
    return t.permute(order).reshape(shape)


def rms_normalize(x: Tensor, axes: List[int], eps: float, log_eps: Optional[Tensor]) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over axes, in fp32 or wider (Zhang & Sennrich, 2019); exp(log_eps) overrides eps.

    x is first divided by its largest magnitude where that is above 1, so that no square overflows. The result
    does not depend on that divisor, hence no gradient needs to flow through it.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    magnitude = wide.detach().abs().amax(axes, keepdim=True).clamp(min=1.0)
    scaled = wide / magnitude
    if log_eps is None:
        floor = eps / magnitude / magnitude
    else:
        floor = log_eps.to(wide.dtype).exp() / magnitude / magnitude
    return scaled * torch.rsqrt(scaled.square().mean(axes, keepdim=True) + floor)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight + bias, accumulated in fp32 or wider, returned in x's dtype.

    Args:
        normalized_shape: sizes of the normalised axes; an int for one axis.
        eps: added to the mean square; positive.
        elementwise_affine: learn a weight of shape normalized_shape.
        bias: learn a bias of shape normalized_shape.
        learnable_eps: learn eps, as its logarithm `log_eps`, which keeps it positive.
        normalized_axes: the axes that normalized_shape belongs to, in its order; by default the last ones.
        dtype, device: of the parameters.

    Input and output: any shape that has those sizes at those axes, any floating dtype, any strides. Zero vectors,
    empty tensors and magnitudes up to the dtype's largest give finite outputs and gradients. Raises ConfigError for
    arguments that do not fit, ShapeError and DTypeError for inputs that do not.
    """

    normalized_shape: List[int]
    axes: List[int]

    def __init__(
        self,
        normalized_shape: Union[int, Sequence[int]],
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        bias: bool = False,
        learnable_eps: bool = False,
        normalized_axes: Optional[Sequence[int]] = None,
        dtype: Optional[torch.dtype] = None,
        device: Optional[Union[torch.device, str]] = None,
    ) -> None:
        super().__init__()
        shape = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)
        axes = list(range(-len(shape), 0)) if normalized_axes is None else list(normalized_axes)
        if not shape:
            raise ConfigError("normalized_shape", "at least one size", "none")
        for size in shape:
            check_positive_int("normalized_shape", size)
        if len(axes) != len(shape) or len(set(axes)) != len(axes):
            raise ConfigError("normalized_axes", f"{len(shape)} different axes, as normalized_shape has", repr(axes))
        check_eps(eps)
        self.normalized_shape = shape
        self.axes = axes
        self.eps = eps
        factory = {"dtype": dtype, "device": device}
        self.register_parameter("weight", nn.Parameter(torch.ones(shape, **factory)) if elementwise_affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(shape, **factory)) if bias else None)
        self.register_parameter("log_eps", nn.Parameter(torch.tensor(log(eps), **factory)) if learnable_eps else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(x)

    def normalize(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            self.check_input(x)
        axes = resolve_axes(self.axes, x.dim())
        out = rms_normalize(x, axes, self.eps, self.log_eps)
        weight, bias = self.weight, self.bias
        if weight is not None:
            out = out * along_axes(weight, axes, x.dim())
        if bias is not None:
            out = out + along_axes(bias, axes, x.dim())
        return out.to(x.dtype)

    @torch.jit.unused
    def check_input(self, x: Tensor) -> None:
        check_tensor("x", x)
        fits = all(-x.ndim <= axis < x.ndim for axis in self.axes)
        fits = fits and len(set(resolve_axes(self.axes, x.ndim))) == len(self.axes)
        if not fits or [x.shape[axis] for axis in self.axes] != self.normalized_shape:
            raise ShapeError("x", f"sizes {self.normalized_shape} at axes {self.axes}", str(tuple(x.shape)))

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, axes={self.axes}, eps={self.eps}"


class RMSNormWithResidual(RMSNorm):
    """RMSNorm of x + residual_scale * residual.

    Args:
        residual_scale: factor of the residual; None is 1.
        others: as in RMSNorm.

    forward(x, residual), of one shape, returns (normed, x + residual_scale * residual), both in x's dtype. Raises as
    RMSNorm does.
    """

    residual_scale: float

    def __init__(self, *args: Any, residual_scale: Optional[float] = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.residual_scale = 1.0 if residual_scale is None else float(residual_scale)

    def forward(self, x: Tensor, residual: Tensor) -> Tuple[Tensor, Tensor]:
        if not torch.jit.is_scripting():
            self.check_input(x)
            check_same_shape("residual", residual, x)
        residual = (x + self.residual_scale * residual).to(x.dtype)
        return self.normalize(residual), residual
