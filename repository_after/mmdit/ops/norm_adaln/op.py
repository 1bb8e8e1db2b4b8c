"""LayerNorm and RMSNorm with AdaLN modulation: registration, dispatch, launches.

B batch, L length, D model dim.
"""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from mmdit.ops.norm_adaln.reference import norm_adaln_backward_reference, norm_adaln_reference
from mmdit.ops.norm_adaln.tuning import MAX_DIM, backward_tiles, forward_tiles, reduce_tiles
from mmdit.runtime.architecture import table_key
from mmdit.runtime.custom_op import register_op
from mmdit.runtime.dispatch import takes_fused, why_not
from mmdit.runtime.launch import launch, unit_stride
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
            return _call_forward(x, scale, shift, None, eps, True)
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
            return _call_forward(x, scale, shift, weight, eps, False)
    return norm_adaln_reference(x, scale, shift, weight, eps, False)


def _unsupported(x: Tensor) -> Optional[str]:
    return None if x.shape[2] <= MAX_DIM else f"a row of more than {MAX_DIM}"


def _forward(x: Tensor, scale: Tensor, shift: Tensor, weight: Optional[Tensor], eps: float, center: bool) -> Tensor:
    batch, length, dim = x.shape
    x, scale, shift, weight = map(unit_stride, (x, scale, shift, weight))
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    tiles = forward_tiles(table_key(x), batch, length, dim)
    launch(
        "norm_adaln.kernel:norm_adaln_forward_kernel",
        batch * -(-length // tiles.rows),
        tensors=(x, scale, shift, weight, out),
        strides=(x.stride(0), x.stride(1), scale.stride(0), shift.stride(0)),
        lengths=(length,),
        constants=(dim, eps, center, weight is not None, tiles.rows, tiles.block),
        warps=tiles.warps,
    )
    return out


def _backward(
    grad: Tensor, x: Tensor, scale: Tensor, weight: Optional[Tensor], eps: float, center: bool
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, dim = x.shape
    grad, x, scale, weight = map(unit_stride, (grad, x, scale, weight))
    d_x, d_scale, d_shift, d_weight = gradients = _empty_gradients(grad, x, scale, weight, eps, center)
    tiles = backward_tiles(table_key(x), batch, length, dim)
    direct = tiles.chunks == 1 and weight is None
    moment, total, gap = d_scale, d_shift, 0
    if not direct:  # one buffer for both partial sums
        gap = batch * tiles.chunks * dim
        moment = total = x.new_empty(2 * gap, dtype=torch.float32)
    launch(
        "norm_adaln.kernel:norm_adaln_backward_kernel",
        batch * tiles.chunks,
        tensors=(grad, x, scale, weight, d_x, moment, total),
        strides=(grad.stride(0), grad.stride(1), x.stride(0), x.stride(1), scale.stride(0), gap),
        lengths=(length,),
        constants=(dim, eps, center, weight is not None, tiles.chunks, tiles.rows, tiles.block, tiles.stages),
        warps=tiles.warps,
    )
    if not direct:
        reduce = reduce_tiles(table_key(x), dim)
        launch(
            "norm_adaln.kernel:norm_adaln_reduce_kernel",
            -(-dim // reduce.block) * (batch + (weight is not None)),
            tensors=(moment, scale, weight, d_scale, d_shift, d_weight),
            strides=(scale.stride(0), gap),
            lengths=(batch,),
            constants=(dim, weight is not None, tiles.chunks, reduce.rows, reduce.block),
            warps=reduce.warps,
        )
    return gradients


def _backward_reference(*arguments: Any) -> Tuple[Tensor, ...]:
    """As the op's schema has it: contiguous, and an empty tensor for no weight."""
    d_x, d_scale, d_shift, d_weight = norm_adaln_backward_reference(*arguments)
    return d_x.contiguous(), d_scale, d_shift, d_x.new_empty(0) if d_weight is None else d_weight


def _empty_gradients(
    grad: Tensor, x: Tensor, scale: Tensor, weight: Optional[Tensor], eps: float, center: bool
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unwritten gradients of x, scale, shift (as scale's) and weight (none: (0,)), all contiguous."""
    like = (x, scale, scale, x.new_empty(0) if weight is None else weight)
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in like)


def _setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    x, scale, shift, weight, ctx.eps, ctx.center = inputs
    ctx.shift_shape = shift.shape
    ctx.save_for_backward(x, scale, weight)


def _autograd(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    x, scale, weight = ctx.saved_tensors
    # under create_graph=True the gradient must be differentiable again, which only PyTorch's arithmetic is
    plain = torch.is_grad_enabled() or _unsupported(x) or why_not(x)
    run = norm_adaln_backward_reference if plain else _call_backward
    d_x, d_scale, d_shift, d_weight = run(grad, x, scale, weight, ctx.eps, ctx.center)
    return d_x, d_scale, d_shift.view(ctx.shift_shape), None if weight is None else d_weight, None, None


_call_forward = register_op(
    "norm_adaln(Tensor x, Tensor scale, Tensor shift, Tensor? weight, float eps, bool center) -> Tensor",
    kernel=_forward,
    reference=lambda *arguments: norm_adaln_reference(*arguments).contiguous(),
    fake=lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
    unsupported=_unsupported,
    setup_context=_setup_context,
    backward=_autograd,
)
_call_backward = register_op(
    "norm_adaln_backward(Tensor grad, Tensor x, Tensor scale, Tensor? weight, float eps, bool center)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    kernel=_backward,
    reference=_backward_reference,
    fake=_empty_gradients,
    unsupported=_unsupported,
)
