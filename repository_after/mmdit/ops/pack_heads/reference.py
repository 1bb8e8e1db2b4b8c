"""Queries, keys and values of two streams as joint heads, as PyTorch arithmetic: the fallback, and what the kernel
must equal.

B batch, L x length, C context length, S = L + C, D model dim, H heads, Dh head dim.
"""

from typing import List, Optional, Tuple

import torch
from torch import Tensor

from mmdit.norm import rms_normalize


def pack_heads_reference(
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
    """As pack_heads; the position of row l of x is start_pos + start + l, no start_pos being 0."""
    position = torch.arange(qkv.shape[1], device=qkv.device) + start  # (L,)
    if start_pos is not None:
        position = start_pos.view(-1, 1, 1) + position  # (B, 1, L)
    position = position.clamp(0, cos.shape[0] - 1)
    query, key, value = _split(qkv, query_norm, key_norm, heads, eps)
    streams = [(_rotate(query, cos[position], sin[position]), _rotate(key, cos[position], sin[position]), value)]
    if qkv_context is not None:
        streams.append(_split(qkv_context, context_query_norm, context_key_norm, heads, eps))
    query, key, value = (torch.cat(parts, dim=2).to(qkv.dtype).contiguous() for parts in zip(*streams, strict=True))
    return query, key, value


def _split(qkv: Tensor, query_norm: Tensor, key_norm: Tensor, heads: int, eps: float) -> List[Tensor]:
    """Normalised queries and keys in fp32 or wider, and values, each (B, H, rows, Dh)."""
    query, key, value = qkv.chunk(3, dim=-1)  # (B, rows, D)
    query, key = rms_normalize(query, [2], eps, None) * query_norm, rms_normalize(key, [2], eps, None) * key_norm
    return [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value)]


def _rotate(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (2i, 2i + 1) of t (B, H, L, Dh) turned; cos and sin (L, Dh / 2) or (B, 1, L, Dh / 2)."""
    even, odd = t.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
