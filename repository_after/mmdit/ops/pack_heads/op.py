"""Queries, keys and values of two streams as joint heads: registration, dispatch, launch.

B batch, L x length, C context length, S = L + C, D model dim, H heads, Dh head dim.
"""

from typing import Any, Optional, Tuple, Union

import torch
from torch import Tensor

from mmdit.ops.pack_heads.reference import pack_heads_reference
from mmdit.ops.pack_heads.tuning import MAX_DIM, norm_tiles
from mmdit.runtime.architecture import table_key
from mmdit.runtime.custom_op import register_op
from mmdit.runtime.dispatch import takes_fused
from mmdit.runtime.launch import launch, unit_stride


def pack_heads(
    qkv: Tensor,
    qkv_context: Optional[Tensor],
    query_norm: Tensor,
    key_norm: Tensor,
    context_query_norm: Optional[Tensor],
    context_key_norm: Optional[Tensor],
    cos: Tensor,
    sin: Tensor,
    start_pos: Optional[Union[int, Tensor]],
    heads: int,
    eps: float,
) -> Tuple[Tensor, Tensor, Tensor]:
    """query, key, value (B, H, S, Dh), contiguous, x first: RMSNorm over D of queries and keys, then RoPE of x's.

    Args:
        qkv, qkv_context: (B, L, 3 D) and (B, C, 3 D), or no context: queries, keys, values side by side, any strides.
        query_norm, key_norm, context_query_norm, context_key_norm: (D,), the norms' weights; context's with a context.
        cos, sin: (positions, Dh / 2), as rotary_tables makes them.
        start_pos: None (0), an int or (B,) ints: position of x's first row. Positions past the tables are kept in them.
        heads: H; D / H is even.
        eps: added to the mean square.
    """
    start, start_pos = (0, start_pos) if start_pos is None or isinstance(start_pos, Tensor) else (start_pos, None)
    tensors = (qkv, qkv_context, query_norm, key_norm, context_query_norm, context_key_norm, cos, sin, start_pos)
    run = _call if takes_fused("pack_heads", qkv, _obstacle(*tensors)) else pack_heads_reference
    return run(*tensors, start, heads, eps)


def _obstacle(*tensors: Optional[Tensor]) -> Optional[str]:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return "gradients are recorded, and the kernel has no backward"
    return _unsupported(tensors[0])


def _unsupported(qkv: Tensor) -> Optional[str]:
    return None if qkv.shape[2] <= 3 * MAX_DIM else f"a row of more than {MAX_DIM}"


def _forward(
    qkv: Tensor,
    qkv_context: Optional[Tensor],
    query_norm: Tensor,
    key_norm: Tensor,
    context_query_norm: Optional[Tensor],
    context_key_norm: Optional[Tensor],
    cos: Tensor,
    sin: Tensor,
    start_pos: Optional[Tensor],
    start: int,
    heads: int,
    eps: float,
) -> Tuple[Tensor, Tensor, Tensor]:
    batch, length, width = qkv.shape
    context_length = 0 if qkv_context is None else qkv_context.shape[1]
    outputs = _empty(qkv, qkv_context, heads)
    qkv, qkv_context = unit_stride(qkv), unit_stride(qkv_context)
    norms = map(unit_stride, (query_norm, key_norm, context_query_norm, context_key_norm))
    tiles = norm_tiles(table_key(qkv), batch, length + context_length, width // 3)
    launch(
        "pack_heads.kernel:pack_heads_kernel",
        batch * (-(-length // tiles.rows) + -(-context_length // tiles.rows)),
        tensors=(qkv, qkv_context, *norms, cos.contiguous(), sin.contiguous(), unit_stride(start_pos), *outputs),
        strides=(*qkv.stride()[:2], *((0, 0) if qkv_context is None else qkv_context.stride()[:2])),
        lengths=(length, context_length, cos.shape[0], start),
        constants=(heads, width // 3 // heads, eps, tiles.rows, tiles.block),
        warps=tiles.warps,
    )
    return outputs


def _empty(qkv: Tensor, qkv_context: Optional[Tensor], heads: int) -> Tuple[Tensor, Tensor, Tensor]:
    joint_length = qkv.shape[1] + (0 if qkv_context is None else qkv_context.shape[1])
    shape = (qkv.shape[0], heads, joint_length, qkv.shape[2] // 3 // heads)
    return qkv.new_empty(shape), qkv.new_empty(shape), qkv.new_empty(shape)


def _fake(qkv: Tensor, qkv_context: Optional[Tensor], *rest: Any) -> Tuple[Tensor, Tensor, Tensor]:
    return _empty(qkv, qkv_context, rest[-2])


_call = register_op(
    "pack_heads(Tensor qkv, Tensor? qkv_context, Tensor query_norm, Tensor key_norm, Tensor? context_query_norm,"
    " Tensor? context_key_norm, Tensor cos, Tensor sin, Tensor? start_pos, SymInt start, int heads, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    kernel=_forward,
    reference=pack_heads_reference,
    fake=_fake,
    unsupported=_unsupported,
    by_reference=True,
)
