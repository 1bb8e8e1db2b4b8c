"""LayerNorm and RMSNorm with AdaLN modulation: registration, dispatch, launches.

B batch, L length, D model dim.
"""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from mmdit.ops.norm_adaln.reference import norm_adaln_backward_reference, norm_adaln_reference
from mmdit.ops.norm_adaln.tuning import MAX_DIM, backward_tiles, forward_tiles, reduce_tiles
from mmdit.runtime.custom_op import register_op
from mmdit.runtime.dispatch import launched, takes_fused, why_not
from mmdit.validation import check_adaln


def layernorm_adaln(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, in x's dtype (adaptive LayerNorm: Peebles & Xie, 2023).

    Args:
        x: (B, L, D), fp16, bf16, fp32 or fp64, any strides.
        scale, shift: (B, 1, D) or (B, D), of x's dtype (any, under autocast).
        eps: added to the variance.

    Raises ShapeError, DTypeError or DeviceError where the inputs do not fit each other, ConfigError for eps.
    """
    if not torch.jit.is_scripting():
        check_adaln(x, scale, shift, eps)
        if takes_fused("layernorm_adaln", x, _unsupported(x)):
            return torch.ops.mmdit.norm_adaln(x, scale, shift, None, eps, True)
    return norm_adaln_reference(x, scale, shift, None, eps, True)


def rmsnorm_adaln(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6, weight: Optional[Tensor] = None
) -> Tensor:
    """RMSNorm(x) * weight * (1 + scale) + shift, in x's dtype; no weight is a weight of ones.

    Args and errors as layernorm_adaln's; weight: (D,).
    """
    if not torch.jit.is_scripting():
        check_adaln(x, scale, shift, eps, weight)
        if takes_fused("rmsnorm_adaln", x, _unsupported(x)):
            return torch.ops.mmdit.norm_adaln(x, scale, shift, weight, eps, False)
    return norm_adaln_reference(x, scale, shift, weight, eps, False)


def _unsupported(x: Tensor) -> Optional[str]:
    return None if x.shape[2] <= MAX_DIM else f"a row of more than {MAX_DIM}"


def _rows(t: Tensor) -> Tensor:
    """t with a last stride of 1, which the kernels rely on."""
    return t if t.stride(-1) == 1 else t.contiguous()


def _forward(x: Tensor, scale: Tensor, shift: Tensor, weight: Optional[Tensor], eps: float, center: bool) -> Tensor:
    if _unsupported(x) or why_not(x):
        return norm_adaln_reference(x, scale, shift, weight, eps, center).contiguous()
    from mmdit.ops.norm_adaln.kernel import norm_adaln_forward_kernel

    x, scale, shift = _rows(x), _rows(scale), _rows(shift)
    batch, length, dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tiles = forward_tiles(dim)
    launched("norm_adaln_forward_kernel")
    norm_adaln_forward_kernel[(batch * -(-length // tiles.rows),)](
        x,
        scale,
        shift,
        weight,
        out,
        length,
        x.stride(0),
        x.stride(1),
        scale.stride(0),
        shift.stride(0),
        D=dim,
        EPS=eps,
        CENTER=center,
        HAS_WEIGHT=weight is not None,
        ROWS=tiles.rows,
        BLOCK_D=tiles.block,
        num_warps=tiles.warps,
    )
    return out


def _backward(
    grad: Tensor, x: Tensor, scale: Tensor, weight: Optional[Tensor], eps: float, center: bool
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    if _unsupported(x) or why_not(x):
        d_x, d_scale, d_shift, d_weight = norm_adaln_backward_reference(grad, x, scale, weight, eps, center)
        return d_x.contiguous(), d_scale, d_shift, x.new_empty(0) if d_weight is None else d_weight
    from mmdit.ops.norm_adaln.kernel import norm_adaln_backward_kernel, norm_adaln_reduce_kernel

    grad, x, scale = _rows(grad), _rows(x), _rows(scale)
    batch, length, dim = x.shape
    tiles = backward_tiles(batch, length, dim)
    direct = tiles.chunks == 1 and weight is None
    d_x, d_scale, d_shift, d_weight = _empty_gradients(grad, x, scale, weight, eps, center)
    if direct:
        moment, total = d_scale, d_shift
    else:
        moment, total = torch.empty((2, batch, tiles.chunks, dim), dtype=torch.float32, device=x.device)
    launched("norm_adaln_backward_kernel")
    norm_adaln_backward_kernel[(batch * tiles.chunks,)](
        grad,
        x,
        scale,
        weight,
        d_x,
        moment,
        total,
        length,
        grad.stride(0),
        grad.stride(1),
        x.stride(0),
        x.stride(1),
        scale.stride(0),
        D=dim,
        EPS=eps,
        CENTER=center,
        HAS_WEIGHT=weight is not None,
        CHUNKS=tiles.chunks,
        ROWS=tiles.rows,
        BLOCK_D=tiles.block,
        num_warps=tiles.warps,
    )
    if direct:
        return d_x, d_scale, d_shift, d_weight
    tiles, chunks = reduce_tiles(dim), tiles.chunks
    launched("norm_adaln_reduce_kernel")
    norm_adaln_reduce_kernel[(-(-dim // tiles.block) * (batch + (weight is not None)),)](
        moment,
        total,
        scale,
        weight,
        d_scale,
        d_shift,
        d_weight,
        batch,
        scale.stride(0),
        D=dim,
        HAS_WEIGHT=weight is not None,
        CHUNKS=chunks,
        ROWS=tiles.rows,
        BLOCK_D=tiles.block,
        num_warps=tiles.warps,
    )
    return d_x, d_scale, d_shift, d_weight


def _empty_gradients(
    grad: Tensor, x: Tensor, scale: Tensor, weight: Optional[Tensor], eps: float, center: bool
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unwritten gradients of x, scale, shift and weight (none: (0,)), all contiguous."""
    d_weight = x.new_empty(0) if weight is None else x.new_empty(weight.shape, dtype=weight.dtype)
    d_scale, d_shift = (x.new_empty(scale.shape, dtype=scale.dtype) for _ in range(2))
    return x.new_empty(x.shape), d_scale, d_shift, d_weight


def _setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    x, scale, _, weight, ctx.eps, ctx.center = inputs
    ctx.save_for_backward(x, scale, weight)


def _autograd(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    x, scale, weight = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: only PyTorch's arithmetic can be differentiated again
        gradients = norm_adaln_backward_reference(grad, x, scale, weight, ctx.eps, ctx.center)
    else:
        gradients = torch.ops.mmdit.norm_adaln_backward(grad, x, scale, weight, ctx.eps, ctx.center)
    d_x, d_scale, d_shift, d_weight = gradients
    return d_x, d_scale, d_shift, None if weight is None else d_weight, None, None


def _fake_forward(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Optional[Tensor], eps: float, center: bool
) -> Tensor:
    return x.new_empty(x.shape)


register_op(
    "norm_adaln(Tensor x, Tensor scale, Tensor shift, Tensor? weight, float eps, bool center) -> Tensor",
    implementation=_forward,
    fake=_fake_forward,
    setup_context=_setup_context,
    backward=_autograd,
)
register_op(
    "norm_adaln_backward(Tensor grad, Tensor x, Tensor scale, Tensor? weight, float eps, bool center)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    implementation=_backward,
    fake=_empty_gradients,
)
