"""A stack's layers without gradients: matrix products by PyTorch, and a kernel for all that lies between two of them.

B batch, L x length, C context length, S = L + C, D model dim, H heads, Dh head dim, F feed-forward.
"""

from itertools import islice
from typing import List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdit.attention import RMS_EPS
from mmdit.inference.weights import NORM_EPS, LayerWeights
from mmdit.ops.gated_residual.op import gated_residual
from mmdit.ops.joint_attention.one_mask import OneMaskAttention
from mmdit.ops.norm_adaln.op import layernorm_adaln
from mmdit.ops.pack_heads.op import pack_heads


def run_rows(
    layers: Sequence[LayerWeights],
    modulation: Tensor,
    x: Tensor,
    context: Optional[Tensor],
    attn_mask: Optional[Tensor],
    start_pos: Optional[Union[int, Tensor]],
    heads: int,
    cos: Tensor,
    sin: Tensor,
    inplace: bool = True,
) -> Tuple[Tensor, Optional[Tensor]]:
    """x (B, L, D) and context (B, C, D), or None, after all layers, in their dtype.

    Args:
        layers: their weights, of x's dtype.
        modulation: (B or 1, layers, streams, 6, D) fp32, the six being scale, shift and gate of the attention, then of
            the MLP, and the streams x and context.
        x, context: (B, L, D) and (B, C, D), or no context.
        attn_mask, start_pos: as joint_attention and pack_heads take them.
        heads: H.
        cos, sin: (positions, Dh / 2).
        inplace: whether memory of its own is written twice, which a graph's operators may not.

    Between the layers both streams are kept in fp32, whatever their dtype.
    """
    rows = [x] if context is None or context.shape[1] == 0 else [x, context]
    lengths = [t.shape[1] for t in rows]
    rows = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in rows]
    modulations = _split(modulation)
    hidden: List[Optional[Tensor]] = []
    for t, (scale, shift, *_) in zip(rows, modulations[0], strict=False):
        scale, shift = scale.expand(t.shape[0], -1), shift.expand(t.shape[0], -1)
        hidden.append(layernorm_adaln(t, scale, shift, NORM_EPS).to(x.dtype))

    attention = OneMaskAttention(attn_mask, sum(lengths[1:]))
    following = [*modulations[1:], [(None, None)] * 2]
    for layer, now, then in zip(layers, modulations, following, strict=True):
        weights = layer[: len(rows)]
        qkv = [F.linear(h, w.qkv_weight, w.qkv_bias) for h, w in zip(hidden, weights, strict=True)]  # (B, rows, 3 D)
        norms = [norm for w in weights for norm in (w.query_norm, w.key_norm)]
        if len(rows) == 1:
            qkv, norms = [*qkv, None], [*norms, None, None]
        query, key, value = pack_heads(*qkv, *norms, cos, sin, start_pos, heads, RMS_EPS)  # (B, H, S, Dh)
        mixed = attention(query, key, value).split(lengths, dim=1)  # (B, rows, D)
        for s, w in enumerate(weights):
            _, _, gate_attn, scale_mlp, shift_mlp, gate_mlp = now[s]
            branch = _product(mixed[s], w.out_weight)  # its bias is the next kernel's
            rows[s], hidden[s] = gated_residual(
                rows[s], branch, w.out_bias, gate_attn, w.out_norm, scale_mlp, shift_mlp, RMS_EPS, NORM_EPS
            )
            up = F.silu(F.linear(hidden[s], w.up_weight, w.up_bias), inplace)  # (B, rows, F)
            branch = _product(up, w.down_weight)
            scale, shift = then[s][:2]
            rows[s], hidden[s] = gated_residual(
                rows[s], branch, w.down_bias, gate_mlp, None, scale, shift, RMS_EPS, NORM_EPS
            )
    outputs = [t.to(x.dtype) for t in rows]
    return outputs[0], context if len(rows) == 1 else outputs[1]


def _product(t: Tensor, weight: Tensor) -> Tensor:
    """t weight^T, without the copy that linear would make of one stream's rows (B, rows, D) of a joint sequence."""
    return F.linear(t, weight) if t.is_contiguous() else torch.bmm(t, weight.t().expand(t.shape[0], -1, -1))


def _split(modulation: Tensor) -> List[List[Tuple[Tensor, ...]]]:
    """The chunks (B or 1, D) of modulation (B or 1, layers, streams, 6, D), by layer and stream, in one call."""
    chunks = iter(modulation.flatten(1, 3).unbind(1))
    return [[tuple(islice(chunks, 6)) for _ in range(modulation.shape[2])] for _ in range(modulation.shape[1])]
