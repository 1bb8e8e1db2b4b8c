"""Attention and its gradient by PyTorch, until the kernels' own backward lands."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from mmdit.ops.joint_attention import op

Layout = Tuple[int, int, int, int]


def _scores(query: Tensor, key: Tensor, bits: Optional[Tensor], layout: Layout) -> Tensor:
    length, context_length, x_rows, rows = layout
    o = torch.arange(rows, device=query.device)
    there = (o < length) | ((o >= x_rows) & (o < x_rows + context_length))
    seen = there.expand(rows, rows)
    if bits is not None:
        seen = ((bits[:, :, o // 32] >> (o % 32)) & 1 != 0).unsqueeze(1)
    return (query.float() @ key.float().mT).masked_fill(~seen, -torch.inf)


def attend(query, key, value, bits, out, layout, scale, chained=False, lse=None):
    op.attend(query, key, value, bits, out, layout, scale, chained)
    if lse is not None:
        lse.copy_(torch.logsumexp(_scores(query, key, bits, layout) * 0.6931471805599453, -1) / 0.6931471805599453)


def attend_backward(d_out, out, query, key, value, lse, bits, d_heads, layout, chained=False):
    p = torch.exp2(_scores(query, key, bits, layout) - lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1))
    batch, heads, rows, dim_head = query.shape
    d_o = d_out.view(batch, rows, heads, dim_head).transpose(1, 2).float()
    o = out.view(batch, rows, heads, dim_head).transpose(1, 2).float()
    d_s = p * (d_o @ value.float().mT - (d_o * o).sum(-1, keepdim=True)) * 0.6931471805599453
    grads = d_heads.view(3, batch, rows, heads, dim_head).transpose(2, 3)
    grads[0].copy_(d_s @ key.float())
    grads[1].copy_(d_s.mT @ query.float())
    grads[2].copy_(p.mT @ d_o)
