"""Joint attention of several layers under one mask, of which what they all need is made once."""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdit.ops.joint_attention.op import attend_rows, joint_attention, obstacle, pack_mask
from mmdit.ops.joint_attention.reference import joint_mask
from mmdit.runtime.dispatch import takes_fused

ALIGNMENT = 8  # of a bias's strides, in elements: SDPA copies any other


class OneMaskAttention:
    """joint_attention(query, key, value, attn_mask, context_length) for one attn_mask and context_length."""

    def __init__(self, attn_mask: Optional[Tensor], context_length: int) -> None:
        self.attn_mask, self.context_length = attn_mask, context_length
        self._bits: Optional[Tensor] = None
        self._bias: Optional[Tuple[Tensor, Tensor]] = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        recorded = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
        traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
        if self.attn_mask is None or recorded or traced:
            return joint_attention(query, key, value, self.attn_mask, self.context_length)
        if takes_fused("joint_attention", query, obstacle(query, recorded)):
            if self._bits is None:
                self._bits = pack_mask(self.attn_mask, self.context_length, self.attn_mask.shape[1], query.shape[2])
            return attend_rows(query, key, value, self._bits)
        if self._bias is None:
            self._bias = _bias(self.attn_mask, self.context_length, query.dtype)
        bias, nothing = self._bias
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).masked_fill_(nothing, 0.0)
        return out.transpose(1, 2).flatten(2)


def _bias(attn_mask: Tensor, context_length: int, dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
    """(B, 1, S, S), 0 where a query sees a key, else -inf; and which queries see none, whose result is undefined."""
    mask = joint_mask(attn_mask, context_length).unsqueeze(1)
    nothing = ~mask.any(-1, keepdim=True)
    rows = mask.shape[2]
    wide = torch.zeros((len(mask), 1, rows, -(-rows // ALIGNMENT) * ALIGNMENT), dtype=dtype, device=mask.device)
    return wide[..., :rows].masked_fill_(~mask, -torch.inf), nothing
