"""Vanilla spellings of what is fused. Their exported graphs are the patterns: nobody types a graph by hand.

B batch, L x length, C context length, S = L + C, P positions, D model dim, H heads, Dh head dim, F feed-forward. Sizes
are all different, so that a number in an exported graph tells which size it is. EPS, RMS_EPS and DROPOUT stand for any.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

B, L, C, H, DH = 17, 11, 13, 6, 10
P, FORWARD = 29, 19
D, S = H * DH, L + C
EPS, RMS_EPS, DROPOUT = 0.0123, 0.0321, 0.0456


@dataclass(frozen=True, eq=False)
class Spelling:
    """A function to export, the shapes of its arguments, and which of those are complex."""

    name: str
    function: Callable[..., Tensor]
    shapes: dict[str, tuple[int, ...]]
    complex: tuple[str, ...] = ()


ROW, PER_SAMPLE, VECTOR = (B, L, D), (B, 1, D), (D,)
MODULATED = {"x": ROW, "scale": PER_SAMPLE, "shift": PER_SAMPLE}


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + RMS_EPS) * weight


def rms_norm_weight_first(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + RMS_EPS))


def rms_norm_by_division(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + RMS_EPS) * weight


def rms_norm_without_weight(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + RMS_EPS)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) * DH**-0.5, -1) @ v


def softmax_of_scaled_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax((q * DH**-0.5) @ k.transpose(-2, -1), -1) @ v


def modulated_layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, (D,), eps=EPS) * (1 + scale) + shift


def modulated_layer_norm_spread(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    h = F.layer_norm(x, (D,), eps=EPS)
    return h + h * scale + shift


def modulated_layer_norm_addcmul(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, (D,), eps=EPS), 1 + scale)


def modulated_affine_layer_norm(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (D,), weight, bias, EPS) * (1 + scale) + shift


def modulated_rms_norm_without_weight(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.rms_norm(x, (D,), None, RMS_EPS) * (1 + scale) + shift


def modulated_rms_norm(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (D,), weight, RMS_EPS) * (1 + scale) + shift


def split_heads(t: Tensor) -> Tensor:
    return t.unflatten(-1, (H, DH)).transpose(1, 2)  # (B, H, rows, Dh)


def join_heads(t: Tensor) -> Tensor:
    return t.transpose(1, 2).flatten(2)


def rotate_complex(t: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(t.unflatten(-1, (DH // 2, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2)


def rotate_real(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = t.unflatten(-1, (DH // 2, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def normed(t: Tensor, weight: Tensor) -> Tensor:
    return split_heads(F.rms_norm(t, (D,), weight, RMS_EPS))


def heads_complex(q: Tensor, k: Tensor, q_norm: Tensor, k_norm: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    return rotate_complex(normed(q, q_norm), turns), rotate_complex(normed(k, k_norm), turns)


def heads_real(q: Tensor, k: Tensor, q_norm: Tensor, k_norm: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return rotate_real(normed(q, q_norm), cos, sin), rotate_real(normed(k, k_norm), cos, sin)


def turned_complex(t: Tensor, norm: Tensor, turns: Tensor) -> Tensor:
    return rotate_complex(normed(t, norm), turns)


def turned_real(t: Tensor, norm: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotate_real(normed(t, norm), cos, sin)


def joined_turned_complex(t: Tensor, norm: Tensor, turns: Tensor, c_t: Tensor, c_norm: Tensor) -> Tensor:
    return torch.cat([turned_complex(t, norm, turns), normed(c_t, c_norm)], 2)


def joined_turned_real(t: Tensor, norm: Tensor, cos: Tensor, sin: Tensor, c_t: Tensor, c_norm: Tensor) -> Tensor:
    return torch.cat([turned_real(t, norm, cos, sin), normed(c_t, c_norm)], 2)


def joined_split(t: Tensor, c_t: Tensor) -> Tensor:
    return torch.cat([split_heads(t), split_heads(c_t)], 2)


def joint_mask(attn_mask: Tensor) -> Tensor:
    """(B, S, S) of (B, L, L): the context's columns for rows that see anything, its rows for columns that are seen."""
    sees = attn_mask.any(2, keepdim=True).expand(-1, -1, C)
    seen = attn_mask.any(1, keepdim=True).expand(-1, C, -1)
    own = attn_mask.new_ones(attn_mask.shape[0], C, C)
    return torch.cat([torch.cat([attn_mask, sees], dim=2), torch.cat([seen, own], dim=2)], dim=1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    if mask is None:
        return join_heads(F.scaled_dot_product_attention(q, k, v))
    mask = (mask != 0).unsqueeze(1)
    some = mask.any(-1, keepdim=True)
    return join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask | ~some).masked_fill(~some, 0.0))


def _joined(
    x: tuple[Tensor, Tensor], v: Tensor, c_q: Tensor, c_k: Tensor, c_v: Tensor, norms: tuple, mask: Tensor | None = None
) -> Tensor:
    """Both streams' heads one after the other, attended to."""
    context = normed(c_q, norms[0]), normed(c_k, norms[1]), split_heads(c_v)
    return _attend(*(torch.cat(pair, 2) for pair in zip((*x, split_heads(v)), context, strict=True)), mask)


def self_attention_complex(q: Tensor, k: Tensor, v: Tensor, q_norm: Tensor, k_norm: Tensor, turns: Tensor) -> Tensor:
    return _attend(*heads_complex(q, k, q_norm, k_norm, turns), split_heads(v))


def self_attention_real(
    q: Tensor, k: Tensor, v: Tensor, q_norm: Tensor, k_norm: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    return _attend(*heads_real(q, k, q_norm, k_norm, cos, sin), split_heads(v))


def joint_attention_complex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    c_q: Tensor,
    c_k: Tensor,
    c_v: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    c_q_norm: Tensor,
    c_k_norm: Tensor,
    turns: Tensor,
) -> Tensor:
    return _joined(heads_complex(q, k, q_norm, k_norm, turns), v, c_q, c_k, c_v, (c_q_norm, c_k_norm))


def masked_self_attention(
    q: Tensor, k: Tensor, v: Tensor, q_norm: Tensor, k_norm: Tensor, turns: Tensor, attn_mask: Tensor
) -> Tensor:
    return _attend(*heads_complex(q, k, q_norm, k_norm, turns), split_heads(v), attn_mask)


def masked_joint_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    c_q: Tensor,
    c_k: Tensor,
    c_v: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    c_q_norm: Tensor,
    c_k_norm: Tensor,
    turns: Tensor,
    attn_mask: Tensor,
) -> Tensor:
    heads = heads_complex(q, k, q_norm, k_norm, turns)
    return _joined(heads, v, c_q, c_k, c_v, (c_q_norm, c_k_norm), joint_mask(attn_mask != 0))


def joint_attention_real(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    c_q: Tensor,
    c_k: Tensor,
    c_v: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    c_q_norm: Tensor,
    c_k_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> Tensor:
    return _joined(heads_real(q, k, q_norm, k_norm, cos, sin), v, c_q, c_k, c_v, (c_q_norm, c_k_norm))


def gated_normed_projection(
    residual: Tensor, gate: Tensor, h: Tensor, weight: Tensor, bias: Tensor, norm: Tensor
) -> Tensor:
    return residual + gate * F.rms_norm(F.linear(h, weight, bias), (D,), norm, RMS_EPS)


def normed_projection(residual: Tensor, h: Tensor, weight: Tensor, bias: Tensor, norm: Tensor) -> Tensor:
    return residual + F.rms_norm(F.linear(h, weight, bias), (D,), norm, RMS_EPS)


def gated_projection(residual: Tensor, gate: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return residual + gate * F.linear(h, weight, bias)


def gated_branch(residual: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    return residual + gate * branch


HEADS = {"q": ROW, "k": ROW, "v": ROW}
CONTEXT = dict.fromkeys(("c_q", "c_k", "c_v"), (B, C, D))
NORMS = {"q_norm": VECTOR, "k_norm": VECTOR}
CONTEXT_NORMS = {"c_q_norm": VECTOR, "c_k_norm": VECTOR}
TURNS, ANGLES = {"turns": (L, DH // 2)}, {"cos": (L, DH // 2), "sin": (L, DH // 2)}
QKV = dict.fromkeys("qkv", (B, H, S, DH))
MASK = {"attn_mask": (B, L, L)}
PROJECTION = {"h": (B, L, FORWARD), "weight": (D, FORWARD), "bias": VECTOR}
RMS = {"x": ROW, "weight": VECTOR}
HEAD, CONTEXT_HEAD = {"t": ROW, "norm": VECTOR}, {"c_t": (B, C, D), "c_norm": VECTOR}
# Other shapes that an argument may have: rotations of each sample's own.
ALSO = dict.fromkeys(("turns", "cos", "sin"), (B, 1, L, DH // 2))

# First what PyTorch has an operator of its own for, so that the rest need not spell it in all ways.
OPERATORS = (
    Spelling("RMS norm", rms_norm, RMS),
    Spelling("RMS norm", rms_norm_weight_first, RMS),
    Spelling("RMS norm", rms_norm_by_division, RMS),
    Spelling("RMS norm", rms_norm_without_weight, {"x": ROW}),
    Spelling("softmax attention", softmax_attention, QKV),
    Spelling("softmax attention", softmax_of_scaled_queries, QKV),
)
FUSED = (
    Spelling("joint attention", joint_attention_complex, HEADS | CONTEXT | NORMS | CONTEXT_NORMS | TURNS, ("turns",)),
    Spelling("joint attention", joint_attention_real, HEADS | CONTEXT | NORMS | CONTEXT_NORMS | ANGLES),
    Spelling("self attention", self_attention_complex, HEADS | NORMS | TURNS, ("turns",)),
    Spelling("self attention", self_attention_real, HEADS | NORMS | ANGLES),
    Spelling("self attention", masked_self_attention, HEADS | NORMS | TURNS | MASK, ("turns",)),
    Spelling(
        "joint attention", masked_joint_attention, HEADS | CONTEXT | NORMS | CONTEXT_NORMS | TURNS | MASK, ("turns",)
    ),
    Spelling("modulated LayerNorm", modulated_layer_norm, MODULATED),
    Spelling("modulated LayerNorm", modulated_layer_norm_spread, MODULATED),
    Spelling("modulated LayerNorm", modulated_layer_norm_addcmul, MODULATED),
    Spelling("modulated LayerNorm", modulated_affine_layer_norm, MODULATED | {"weight": VECTOR, "bias": VECTOR}),
    Spelling("modulated RMSNorm", modulated_rms_norm, MODULATED | {"weight": VECTOR}),
    Spelling("modulated RMSNorm", modulated_rms_norm_without_weight, MODULATED),
    Spelling(
        "gated residual of a normed projection",
        gated_normed_projection,
        {"residual": ROW, "gate": PER_SAMPLE, **PROJECTION, "norm": VECTOR},
    ),
    Spelling("residual of a normed projection", normed_projection, {"residual": ROW, **PROJECTION, "norm": VECTOR}),
    Spelling("gated residual of a projection", gated_projection, {"residual": ROW, "gate": PER_SAMPLE, **PROJECTION}),
    Spelling("gated residual", gated_branch, {"residual": ROW, "gate": PER_SAMPLE, "branch": ROW}),
)
# What attention begins with, for attention that is none of those above; with a context first, which holds the rest.
TURNED = (
    Spelling("heads", joined_turned_complex, HEAD | TURNS | CONTEXT_HEAD, ("turns",)),
    Spelling("heads", joined_turned_real, HEAD | ANGLES | CONTEXT_HEAD),
    Spelling("heads", turned_complex, HEAD | TURNS, ("turns",)),
    Spelling("heads", turned_real, HEAD | ANGLES),
)
SPLIT = (
    Spelling("heads", joined_split, {"t": ROW, "c_t": (B, C, D)}),
    Spelling("heads", split_heads, {"t": ROW}),
)
