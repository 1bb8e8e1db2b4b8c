"""Joint softmax attention as PyTorch arithmetic: the fallback, and what the kernel must equal.

B batch, L x length, C context length, S = L + C, H heads, Dh head dim. query, key, value (B, H, S, Dh), x first.
"""

from typing import Optional

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


def joint_mask(attn_mask: Tensor, context_length: int) -> Tensor:
    """Grow a mask (B, L, L) over x by the context, to (B, S, S): its columns for every x row that sees anything, its
    rows for every x column that anyone sees, and all of it for itself.
    """
    sees = attn_mask.any(2, keepdim=True).expand(-1, -1, context_length)  # (B, L, C)
    seen = attn_mask.any(1, keepdim=True).expand(-1, context_length, -1)  # (B, C, L)
    own = torch.ones((attn_mask.shape[0], context_length, context_length), dtype=torch.bool, device=attn_mask.device)
    return torch.cat([torch.cat([attn_mask, sees], dim=2), torch.cat([seen, own], dim=2)], dim=1)
