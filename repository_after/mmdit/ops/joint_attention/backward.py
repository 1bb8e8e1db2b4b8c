"""The backward of joint attention: launches."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from mmdit.ops.joint_attention.tuning import attention_backward_tiles, attention_precision, hopper_backward
from mmdit.runtime.architecture import table_key
from mmdit.runtime.launch import launch


def attend_backward(
    d_joined: Tensor,
    joined: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    bits: Optional[Tensor],
    d_heads: Tensor,
    layout: Tuple[int, int, int, int],
    chained: bool = False,
    scale: float = 1.0,
) -> None:
    """Write the gradients of query, key and value, as attend took them, to d_heads (3, B, R, H Dh), 0 in padding.

    The same bits each time. What any other argument holds in padding is not read.

    Args:
        d_joined, joined: the gradient of attend's out, and out (B, R, H Dh), each with a last stride of 1.
        query, key, value, bits, layout, chained, scale: as attend's.
        lse: (B, H, R) fp32, contiguous, as attend wrote it.
        d_heads: contiguous.
    """
    batch, heads, rows, dim_head = query.shape
    strides = (
        *(*d_joined.stride()[:2], *joined.stride()[:2], *query.stride()[:3], *key.stride()[:3], *value.stride()[:3]),
        d_heads.stride(0),
    )
    options = {"launch_pdl": True} if chained else {}
    if hopper_backward(table_key(query), batch * heads, rows, dim_head, query.dtype, bits is not None):
        return launch(
            "joint_attention.kernel_backward_hopper:attention_backward_hopper_kernel",
            batch * heads,
            tensors=(d_joined, joined, query, key, value, lse, d_heads),
            strides=strides,
            lengths=layout,
            constants=(heads, scale, 128 if rows <= 128 else 256, chained),
            warps=4,
            maxnreg=168,  # three programs to a multiprocessor
            **options,
        )
    by_keys, by_queries = attention_backward_tiles(table_key(query), rows, dim_head, query.dtype, bits is not None)
    runs = [("attention_backward_kernel", by_keys, by_keys.keys, (by_queries is None,))]
    if by_queries is not None:  # writes delta for the other
        runs.insert(0, ("attention_query_backward_kernel", by_queries, by_queries.queries, ()))
    delta = torch.empty_like(lse)
    for kernel, tiles, block, whole in runs:
        launch(
            f"joint_attention.kernel_backward:{kernel}",
            batch * heads * -(-rows // block),
            tensors=(d_joined, joined, query, key, value, lse, delta, bits, d_heads),
            strides=strides,
            lengths=layout,
            constants=(
                *(heads, dim_head, scale, attention_precision(), *whole),
                *(tiles.queries, tiles.keys, tiles.block, tiles.stages, chained),
            ),
            warps=tiles.warps,
            **options,
        )
