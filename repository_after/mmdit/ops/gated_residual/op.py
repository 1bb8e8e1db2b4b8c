"""A gated residual and the modulated norm after it: registration, dispatch, launch.

B batch, L length, D model dim.
"""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from mmdit.ops.gated_residual.reference import gated_residual_reference
from mmdit.ops.pack_heads.tuning import MAX_DIM, norm_tiles
from mmdit.runtime.architecture import table_key
from mmdit.runtime.custom_op import register_op
from mmdit.runtime.dispatch import takes_fused
from mmdit.runtime.launch import launch, unit_stride


def gated_residual(
    residual: Tensor,
    branch: Tensor,
    bias: Optional[Tensor],
    gate: Optional[Tensor],
    rms_weight: Optional[Tensor],
    scale: Optional[Tensor],
    shift: Optional[Tensor],
    rms_eps: float,
    norm_eps: float,
) -> Tuple[Tensor, Optional[Tensor]]:
    """out = residual + gate * b, and LayerNorm(out) * (1 + scale) + shift, or None without scale and shift.

    b is branch + bias, or its RMSNorm with rms_weight where that is given.

    Args:
        residual: (B, L, D), fp32 or branch's dtype, any strides; out is of its dtype.
        branch: (B, L, D), any strides; the normed output is of its dtype.
        bias: (D,), what the linear layer that made branch left out, or None.
        gate: (B, D) or (1, D), any dtype, or None for a gate of ones.
        rms_weight: (D,), or None for no RMSNorm.
        scale, shift: (B, D) or (1, D), any dtype, or neither.
        rms_eps, norm_eps: added to the mean square and to the variance.
    """
    tensors = (branch, residual, bias, gate, rms_weight, scale, shift)
    run = _call if takes_fused("gated_residual", branch, _obstacle(*tensors)) else gated_residual_reference
    out, normed = run(*tensors, rms_eps, norm_eps)
    return out, None if scale is None else normed


def _obstacle(*tensors: Optional[Tensor]) -> Optional[str]:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return "gradients are recorded, and the kernel has no backward"
    return _unsupported(tensors[0])


def _unsupported(branch: Tensor) -> Optional[str]:
    return None if branch.shape[2] <= MAX_DIM else f"a row of more than {MAX_DIM}"


def _forward(
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
    batch, length, dim = branch.shape
    branch, residual, bias, rms_weight = map(unit_stride, (branch, residual, bias, rms_weight))
    gate, scale, shift = modulation = tuple(map(unit_stride, (gate, scale, shift)))
    outputs = _empty(branch, residual, bias, gate, rms_weight, scale)
    tiles = norm_tiles(table_key(branch), batch, length, dim)
    launch(
        "gated_residual.kernel:gated_residual_kernel",
        batch * -(-length // tiles.rows),
        tensors=(branch, residual, bias, gate, rms_weight, scale, shift, *outputs),
        strides=(*branch.stride()[:2], *residual.stride()[:2], *map(_batch_stride, modulation)),
        lengths=(length,),
        constants=(dim, rms_eps, norm_eps, tiles.rows, tiles.block),
        warps=tiles.warps,
    )
    return outputs


def _batch_stride(modulation: Optional[Tensor]) -> int:
    """What lies between two samples: nothing, where all share one."""
    return 0 if modulation is None or modulation.shape[0] == 1 else modulation.stride(0)


def _empty(branch: Tensor, residual: Tensor, *rest: Any) -> Tuple[Tensor, Tensor]:
    out = torch.empty_like(residual, memory_format=torch.contiguous_format)
    scale = rest[3]
    return out, branch.new_empty(0 if scale is None else branch.shape)


_call = register_op(
    "gated_residual(Tensor branch, Tensor residual, Tensor? bias, Tensor? gate, Tensor? rms_weight, Tensor? scale,"
    " Tensor? shift, float rms_eps, float norm_eps) -> (Tensor, Tensor)",
    kernel=_forward,
    reference=gated_residual_reference,
    fake=_empty,
    unsupported=_unsupported,
    by_reference=True,
)
