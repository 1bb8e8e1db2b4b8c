"""Softmax or linear attention with RMS-normalised queries and keys, over one stream or two jointly.

B batch, L x length, C context length, S = L + C, D model dim, H heads, Dh head dim.
"""

from typing import NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdit.norm import RMSNorm
from mmdit.ops.joint_attention.op import joint_attention
from mmdit.ops.joint_attention.reference import joint_mask
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
    context_out: Optional[Tensor] = None


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
        self, x: Tensor, attn_mask: Optional[Tensor] = None, start_pos: Optional[Union[int, Tensor]] = None
    ) -> AttentionOutput:
        """x (B, L, D); attn_mask (B, L, L), nonzero = attend; start_pos None, an int or (B,): position of x[:, 0]."""
        return self.attend_alone(x, attn_mask, start_pos)

    def attend_alone(
        self, x: Tensor, attn_mask: Optional[Tensor], start_pos: Optional[Union[int, Tensor]]
    ) -> AttentionOutput:
        """Attention of x (B, L, D) over itself."""
        if not torch.jit.is_scripting():
            check_sequence("x", x, self.dim, self.to_qkv.weight)
            check_mask(attn_mask, x)
            check_start_pos(start_pos, x, self.max_seq_len)
        q, k, v = self.project(x, start_pos)
        return AttentionOutput(self.to_out(self.attend(q, k, v, attn_mask, 0)))

    def project(self, x: Tensor, start_pos: Optional[Union[int, Tensor]]) -> Tuple[Tensor, Tensor, Tensor]:
        """Query, key and value (B, H, L, Dh) of x (B, L, D)."""
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)  # (B, L, D)
        q, k = self.split_heads(self.rms_norm_q(q)), self.split_heads(self.rms_norm_k(k))  # (B, H, L, Dh)
        return self.rotary(q, start_pos), self.rotary(k, start_pos), self.split_heads(v)

    def split_heads(self, t: Tensor) -> Tensor:
        return t.unflatten(-1, (self.num_head, -1)).transpose(1, 2)  # (B, H, L, Dh)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Optional[Tensor], context_length: int) -> Tensor:
        """Joint attention (B, S, D) of q, k and v (B, H, S, Dh) under attn_mask (B, L, L) over x, heads joined."""
        mask = attn_mask != 0 if attn_mask is not None else None
        if self.linear:
            return linear_attention(q, k, v, mask, context_length)
        return joint_attention(q, k, v, mask, context_length)


class RMSNormSelfCrossAttention(RMSNormSelfAttention):
    """Joint attention of x and a context: each has its own projections and norms, and sees x and context together.

    Args:
        use_context: make the context's weights; without them this is self-attention.
        dim, num_head, max_seq_len, linear: as in RMSNormSelfAttention.

    The context gets no rotary embedding. Raises as RMSNormSelfAttention does, and UnexpectedInputError for a
    context that there are no weights for.
    """

    use_context: torch.jit.Final[bool]

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
        x: Tensor,
        context: Optional[Tensor] = None,
        attn_mask: Optional[Tensor] = None,
        start_pos: Optional[Union[int, Tensor]] = None,
    ) -> AttentionOutput:
        """As RMSNormSelfAttention, with context (B, C, D) joined on where it is given; attn_mask is over x alone."""
        if not self.use_context or context is None:
            if not torch.jit.is_scripting() and not self.use_context:
                check_present("context", context, False, "use_context=False")
            return self.attend_alone(x, attn_mask, start_pos)
        if not torch.jit.is_scripting():
            check_sequence("x", x, self.dim, self.to_qkv.weight)
            check_sequence("context", context, self.dim, self.c_to_qkv.weight, batch=x.shape[0])
            check_mask(attn_mask, x)
            check_start_pos(start_pos, x, self.max_seq_len)

        q, k, v = self.project(x, start_pos)  # (B, H, L, Dh)
        c_q, c_k, c_v = self.project_context(context)  # (B, H, C, Dh)
        q, k, v = torch.cat([q, c_q], dim=2), torch.cat([k, c_k], dim=2), torch.cat([v, c_v], dim=2)
        out = self.attend(q, k, v, attn_mask, context.shape[1])  # (B, S, D)
        x_out, context_out = out.split([x.shape[1], context.shape[1]], dim=1)
        return AttentionOutput(self.to_out(x_out), self.c_to_out(context_out))

    def project_context(self, context: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Query, key and value (B, H, C, Dh) of context (B, C, D)."""
        q, k, v = self.c_to_qkv(context).chunk(3, dim=-1)  # (B, C, D)
        q, k = self.c_rms_norm_q(q), self.c_rms_norm_k(k)
        return self.split_heads(q), self.split_heads(k), self.split_heads(v)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Optional[Tensor], context_length: int) -> Tensor:
    """Weights relu(q) . relu(k) instead of the softmax (Katharopoulos et al., 2020), summed in fp32 or wider."""
    mask = joint_mask(attn_mask, context_length).unsqueeze(1) if attn_mask is not None else None  # (B, 1, S, S)
    if torch.jit.is_scripting():  # where autocast takes no device that is a variable
        return linear_sums(q, k, v, mask).transpose(1, 2).flatten(2)
    with torch.autocast(v.device.type, enabled=False):
        return linear_sums(q, k, v, mask).transpose(1, 2).flatten(2)


def linear_sums(q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], eps: float = 1e-6) -> Tensor:
    """A column of ones beside v collects the normaliser. A mask costs the full (S, S) weights."""
    dtype, wide = v.dtype, torch.promote_types(v.dtype, torch.float32)
    q, k, v = F.relu(q).to(wide), F.relu(k).to(wide), F.pad(v, (0, 1), value=1.0).to(wide)
    if mask is None:
        out = q @ (k.transpose(-2, -1) @ v)  # (B, H, S, Dh + 1)
    else:
        out = ((q @ k.transpose(-2, -1)) * mask) @ v
    return (out[..., :-1] / (out[..., -1:] + eps)).to(dtype)
