"""Softmax or linear attention with RMS-normalised queries and keys, over one stream or two jointly.

B batch, L x length, C context length, S = L + C, D model dim, H heads, Dh head dim.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from mmdit.norm import RMSNorm
from mmdit.rotary import RotaryEmbedding
from mmdit.validation import (
    check_heads,
    check_mask,
    check_positive_int,
    check_present,
    check_sequence,
    check_start_pos,
)

RMS_EPS = 2.0**-23  # the fp32 epsilon, whatever the dtype


class AttentionOutput(NamedTuple):
    """x_out (B, L, D), and context_out (B, C, D) where there is a context stream."""

    x_out: Tensor
    context_out: Tensor | None = None


class RMSNormSelfAttention(nn.Module):
    """Multi-head self-attention: RMSNorm over the full width of q and k, RoPE, and RMSNorm of the output.

    Args:
        dim: model dimension D.
        num_head: heads H; D / H is even.
        max_seq_len: positions in the rotary table.
        linear: attention weights relu(q) . relu(k), normalised, in the place of the softmax.

    Raises ConfigError where these do not fit; forward raises the package's errors for inputs that do not.
    """

    def __init__(self, dim: int, num_head: int = 4, max_seq_len: int = 4096, linear: bool = False) -> None:
        super().__init__()
        check_heads(dim, num_head, ("dim", "num_head"))
        check_positive_int("max_seq_len", max_seq_len)
        self.dim = dim
        self.num_head = num_head
        self.max_seq_len = max_seq_len
        self.linear = linear
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.rms_norm_q = RMSNorm(dim, RMS_EPS)
        self.rms_norm_k = RMSNorm(dim, RMS_EPS)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), RMSNorm(dim, RMS_EPS))
        self.rotary = RotaryEmbedding(dim // num_head, max_seq_len)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        attn_mask: Shaped[Tensor, "B L L"] | None = None,
        start_pos: Int[Tensor, "B"] | int | None = None,
    ) -> AttentionOutput:
        """x (B, L, D); attn_mask (B, L, L), nonzero = attend; start_pos None, an int or (B,): position of x[:, 0]."""
        check_sequence("x", x, self.dim, self.to_qkv.weight)
        check_mask(attn_mask, x)
        check_start_pos(start_pos, x, self.max_seq_len)
        return AttentionOutput(self.to_out(self.attend(*self.project(x, start_pos), attn_mask)))

    def project(self, x: Tensor, start_pos: Tensor | int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value (B, H, L, Dh) of x (B, L, D)."""
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)  # (B, L, D)
        q, k = self.split_heads(self.rms_norm_q(q)), self.split_heads(self.rms_norm_k(k))  # (B, H, L, Dh)
        return self.rotary(q, start_pos), self.rotary(k, start_pos), self.split_heads(v)

    def split_heads(self, t: Float[Tensor, "B L D"]) -> Float[Tensor, "B H L Dh"]:
        return rearrange(t, "B L (H Dh) -> B H L Dh", H=self.num_head)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Float[Tensor, "B S D"]:
        """Attention of q, k and v (B, H, S, Dh) under attn_mask (B, S, S), heads joined."""
        attention = linear_attention if self.linear else softmax_attention
        mask = None if attn_mask is None else rearrange(attn_mask != 0, "B Q K -> B 1 Q K")
        return rearrange(attention(q, k, v, mask), "B H S Dh -> B S (H Dh)")


class RMSNormSelfCrossAttention(RMSNormSelfAttention):
    """Joint attention of x and a context: each has its own projections and norms, and sees x and context together.

    Args:
        use_context: make the context's weights; without them this is self-attention.
        dim, num_head, max_seq_len, linear: as in RMSNormSelfAttention.

    The context gets no rotary embedding. Raises as RMSNormSelfAttention does, and UnexpectedInputError for a
    context that there are no weights for.
    """

    def __init__(
        self,
        dim: int,
        num_head: int = 4,
        use_context: bool = False,
        max_seq_len: int = 4096,
        linear: bool = False,
    ) -> None:
        super().__init__(dim, num_head, max_seq_len, linear)
        self.use_context = use_context
        if use_context:
            self.c_to_qkv = nn.Linear(dim, 3 * dim)
            self.c_rms_norm_q = RMSNorm(dim, RMS_EPS)
            self.c_rms_norm_k = RMSNorm(dim, RMS_EPS)
            self.c_to_out = nn.Sequential(nn.Linear(dim, dim), RMSNorm(dim, RMS_EPS))

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        context: Float[Tensor, "B C D"] | None = None,
        attn_mask: Shaped[Tensor, "B L L"] | None = None,
        start_pos: Int[Tensor, "B"] | int | None = None,
    ) -> AttentionOutput:
        """As RMSNormSelfAttention, with context (B, C, D) joined on where it is given; attn_mask is over x alone."""
        if context is None:
            return super().forward(x, attn_mask, start_pos)
        check_present("context", context, self.use_context, "use_context=False")
        check_sequence("x", x, self.dim, self.to_qkv.weight)
        check_sequence("context", context, self.dim, self.c_to_qkv.weight, batch=x.shape[0])
        check_mask(attn_mask, x)
        check_start_pos(start_pos, x, self.max_seq_len)

        streams = zip(self.project(x, start_pos), self.project_context(context), strict=True)
        q, k, v = (torch.cat(stream, dim=2) for stream in streams)  # (B, H, S, Dh)
        if attn_mask is not None:
            attn_mask = joint_mask(attn_mask != 0, context.shape[1])  # (B, S, S)
        x_out, context_out = self.attend(q, k, v, attn_mask).split([x.shape[1], context.shape[1]], dim=1)
        return AttentionOutput(self.to_out(x_out), self.c_to_out(context_out))

    def project_context(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value (B, H, C, Dh) of context (B, C, D)."""
        q, k, v = self.c_to_qkv(context).chunk(3, dim=-1)  # (B, C, D)
        q, k = self.c_rms_norm_q(q), self.c_rms_norm_k(k)
        return self.split_heads(q), self.split_heads(k), self.split_heads(v)


def joint_mask(attn_mask: Bool[Tensor, "B L L"], context_length: int) -> Bool[Tensor, "B S S"]:
    """Grow a mask over x by the context: its columns for every x row that sees anything, its rows for every
    x column that anyone sees, and all of it for itself.
    """
    sees = attn_mask.any(2, keepdim=True).expand(-1, -1, context_length)  # (B, L, C)
    seen = attn_mask.any(1, keepdim=True).expand(-1, context_length, -1)  # (B, C, L)
    own = attn_mask.new_ones(attn_mask.shape[0], context_length, context_length)
    return torch.cat([torch.cat([attn_mask, sees], dim=2), torch.cat([seen, own], dim=2)], dim=1)


def softmax_attention(
    q: Float[Tensor, "B H S Dh"],
    k: Float[Tensor, "B H S Dh"],
    v: Float[Tensor, "B H S Dh"],
    mask: Bool[Tensor, "B 1 S S"] | None,
) -> Float[Tensor, "B H S Dh"]:
    """softmax(q k^T / sqrt(Dh)) v over the keys that mask allows; 0 for a row that it allows none."""
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v)
    some = mask.any(-1, keepdim=True)  # an empty row attends to all, and is zeroed: never NaN, in backward neither
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask | ~some).masked_fill(~some, 0.0)


def linear_attention(
    q: Float[Tensor, "B H S Dh"],
    k: Float[Tensor, "B H S Dh"],
    v: Float[Tensor, "B H S Dh"],
    mask: Bool[Tensor, "B 1 S S"] | None,
    eps: float = 1e-6,
) -> Float[Tensor, "B H S Dh"]:
    """Weights relu(q) . relu(k) instead of the softmax (Katharopoulos et al., 2020), summed in fp32 or wider.

    A column of ones beside v collects the normaliser. A mask costs the full (S, S) weights.
    """
    dtype, wide = v.dtype, torch.promote_types(v.dtype, torch.float32)
    with torch.autocast(v.device.type, enabled=False):
        q, k, v = F.relu(q).to(wide), F.relu(k).to(wide), F.pad(v, (0, 1), value=1.0).to(wide)
        if mask is None:
            out = einsum(q, einsum(k, v, "B H K d, B H K e -> B H d e"), "B H Q d, B H d e -> B H Q e")
        else:
            weights = einsum(q, k, "B H Q d, B H K d -> B H Q K") * mask
            out = einsum(weights, v, "B H Q K, B H K e -> B H Q e")
        out = out[..., :-1] / (out[..., -1:] + eps)
    return out.to(dtype)
