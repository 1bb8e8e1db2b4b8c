"""Joint softmax attention as PyTorch arithmetic: the fallback, and what the kernel must equal.

B batch, L x length, C context length, S = L + C, H heads, Dh head dim. query, key, value (B, H, S, Dh), x first.
"""

import math
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


def joint_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Optional[Tensor], context_length: int
) -> Tensor:
    """softmax(q k^T / sqrt(Dh)) v (B, S, H Dh), under attn_mask (B, L, L) bool over x grown by joint_mask.

    A row that may attend to nothing gives 0.
    """
    if attn_mask is None:
        out = F.scaled_dot_product_attention(query, key, value)
    else:
        mask = joint_mask(attn_mask, context_length).unsqueeze(1)  # (B, 1, S, S)
        some = mask.any(-1, keepdim=True)  # an empty row attends to all, and is zeroed: never NaN, in backward neither
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask | ~some).masked_fill(~some, 0.0)
    return out.transpose(1, 2).flatten(2)


def attention_forward_reference(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Optional[Tensor], context_length: int
) -> Tuple[Tensor, Tensor]:
    """joint_attention_reference's output, and lse (B, H, S), at least fp32: log2(sum of exp(q k^T / sqrt(Dh))), in a
    row that may attend to nothing infinite.
    """
    logits = _logits(query, key, attn_mask, context_length)
    lse = logits.logsumexp(-1)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)
    out = torch.exp(logits - lse.unsqueeze(-1)) @ value.to(logits.dtype)
    return out.transpose(1, 2).flatten(2).to(query.dtype), lse / math.log(2.0)


def attention_backward_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    attn_mask: Optional[Tensor],
    context_length: int,
) -> Tensor:
    """The gradients of query, key and value (3, B, S, H Dh) from that of out, and from out and lse as saved."""
    logits = _logits(query, key, attn_mask, context_length)
    q, k, v = (t.to(logits.dtype) for t in (query, key, value))
    weights = torch.exp(logits - math.log(2.0) * lse.unsqueeze(-1))
    out, grad = (t.to(logits.dtype).unflatten(-1, (query.shape[1], -1)).transpose(1, 2) for t in (out, grad))
    scores = weights * (grad @ v.mT - (grad * out).sum(-1, keepdim=True)) / query.shape[3] ** 0.5
    gradients = torch.stack((scores @ k, scores.mT @ q, weights.mT @ grad))  # (3, B, H, S, Dh)
    return gradients.transpose(2, 3).flatten(3).to(query.dtype)


def _logits(query: Tensor, key: Tensor, attn_mask: Optional[Tensor], context_length: int) -> Tensor:
    """q k^T / sqrt(Dh) (B, H, S, S), at least fp32, -inf where the mask hides the key."""
    wide = torch.promote_types(query.dtype, torch.float32)
    logits = query.to(wide) @ key.to(wide).mT / query.shape[3] ** 0.5
    if attn_mask is None:
        return logits
    return logits.masked_fill(~joint_mask(attn_mask, context_length).unsqueeze(1), -torch.inf)


def joint_mask(attn_mask: Tensor, context_length: int) -> Tensor:
    """Grow a mask (B, L, L) over x by the context, to (B, S, S): its columns for every x row that sees anything, its
    rows for every x column that anyone sees, and all of it for itself.
    """
    sees = attn_mask.any(2, keepdim=True).expand(-1, -1, context_length)  # (B, L, C)
    seen = attn_mask.any(1, keepdim=True).expand(-1, context_length, -1)  # (B, C, L)
    own = torch.ones((attn_mask.shape[0], context_length, context_length), dtype=torch.bool, device=attn_mask.device)
    return torch.cat([torch.cat([attn_mask, sees], dim=2), torch.cat([seen, own], dim=2)], dim=1)
