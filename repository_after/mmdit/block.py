"""One MMDiT block: joint attention and an MLP per stream, each behind a norm and a gated residual."""

from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor, nn

from mmdit.attention import AttentionOutput, RMSNormSelfAttention, RMSNormSelfCrossAttention
from mmdit.errors import ConfigError
from mmdit.inference.stack import run_fused
from mmdit.ops.norm_adaln.op import layernorm_adaln
from mmdit.validation import (
    check_condition,
    check_heads,
    check_mask,
    check_positive_int,
    check_present,
    check_probability,
    check_sequence,
    check_start_pos,
    required,
)


class Modulation(NamedTuple):
    """What a condition does to one stream of one block; each (B, 1, D)."""

    scale_attn: Tensor
    shift_attn: Tensor
    gate_attn: Tensor
    scale_mlp: Tensor
    shift_mlp: Tensor
    gate_mlp: Tensor


def feed_forward(dim: int, dim_feedforward: int, dropout: float) -> nn.Sequential:
    """Linear, SiLU, Linear, Dropout: (..., dim) -> (..., dim)."""
    return nn.Sequential(
        nn.Linear(dim, dim_feedforward), nn.SiLU(), nn.Linear(dim_feedforward, dim), nn.Dropout(dropout)
    )


def adaln_modulation(dim: int) -> nn.Sequential:
    """SiLU, Linear: condition (B, 1, dim) -> the six chunks of a Modulation, joined (B, 1, 6 dim)."""
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))


def split_modulation(m: Tensor) -> Modulation:
    """The six chunks of m (B, 1, 6 D)."""
    scale_attn, shift_attn, gate_attn, scale_mlp, shift_mlp, gate_mlp = m.chunk(6, dim=-1)
    return Modulation(scale_attn, shift_attn, gate_attn, scale_mlp, shift_mlp, gate_mlp)


class MMDiTBlock(nn.Module):
    """x + gate * attention(modulated norm), then x + gate * MLP(modulated norm) (Esser et al., 2024).

    Args:
        dim_base: model dimension D.
        num_attn_head: heads H.
        dim_head: D / H, or None for just that.
        dim_feedforward: hidden size F of the MLPs.
        dropout: probability of a zero after the MLP, while training.
        conditioning: scale, shift and gate come from y; otherwise the norms are affine and nothing is gated.
        use_cross_attn: a context stream with its own weights; needs conditioning.

    Raises ConfigError where these do not fit; forward raises the package's errors for inputs that do not.
    """

    conditioning: torch.jit.Final[bool]
    use_cross_attn: torch.jit.Final[bool]

    def __init__(
        self,
        dim_base: int,
        num_attn_head: int = 4,
        dim_head: Optional[int] = None,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        conditioning: bool = False,
        use_cross_attn: bool = False,
    ) -> None:
        super().__init__()
        check_heads(dim_base, num_attn_head, ("dim_base", "num_attn_head"))
        if dim_head not in (None, dim_base // num_attn_head):
            expected = f"None or dim_base / num_attn_head = {dim_base // num_attn_head}"
            raise ConfigError("dim_head", expected, repr(dim_head))
        check_positive_int("dim_feedforward", dim_feedforward)
        check_probability("dropout", dropout)
        if use_cross_attn and not conditioning:
            raise ConfigError("use_cross_attn", "False where conditioning is False", "True")
        self.dim_base = dim_base
        self.conditioning = conditioning
        self.use_cross_attn = use_cross_attn

        if use_cross_attn:
            self.cross_attn = RMSNormSelfCrossAttention(dim_base, num_attn_head, use_context=True)
            self.context_layers = nn.ModuleDict(
                {
                    "mlp": feed_forward(dim_base, dim_feedforward, dropout),
                    "adaLN_modulation": adaln_modulation(dim_base),
                }
            )
        else:
            self.attn = RMSNormSelfAttention(dim_base, num_attn_head)
        self.mlp = feed_forward(dim_base, dim_feedforward, dropout)
        if conditioning:
            self.adaLN_modulation = adaln_modulation(dim_base)
        else:
            self.ln_1 = nn.LayerNorm(dim_base, eps=1e-6)
            self.ln_2 = nn.LayerNorm(dim_base, eps=1e-6)

    def forward(
        self,
        x: Tensor,
        y: Optional[Tensor] = None,
        attn_mask: Optional[Tensor] = None,
        context: Optional[Tensor] = None,
        start_pos: Optional[Union[int, Tensor]] = None,
    ) -> AttentionOutput:
        """x (B, L, D), condition y (B, D) or (B, 1, D), context (B, C, D); attn_mask and start_pos as in attention."""
        if not torch.jit.is_scripting():
            self.check_inputs(x, y, attn_mask, context, start_pos)
            outputs = run_fused([self], x, y, context, attn_mask, start_pos)
            if outputs is not None:
                return AttentionOutput(*outputs)
        if not self.conditioning:
            x = x + self.attn(self.ln_1(x), attn_mask, start_pos).x_out
            return AttentionOutput(x + self.mlp(self.ln_2(x)))

        y = required(y, "y")
        y = y.view(x.shape[0], 1, self.dim_base)
        m = split_modulation(self.adaLN_modulation(y))
        h = layernorm_adaln(x, m.scale_attn, m.shift_attn)
        if self.use_cross_attn:
            context = required(context, "context")
            c = split_modulation(self.context_layers["adaLN_modulation"](y))
            h_context = layernorm_adaln(context, c.scale_attn, c.shift_attn)
            joint = self.cross_attn(h, h_context, attn_mask, start_pos)
            h = joint.x_out
            context = context + c.gate_attn * required(joint.context_out, "context_out")
            h_context = layernorm_adaln(context, c.scale_mlp, c.shift_mlp)
            context = context + c.gate_mlp * self.context_layers["mlp"](h_context)
        else:
            h = self.attn(h, attn_mask, start_pos).x_out
        x = x + m.gate_attn * h
        h = layernorm_adaln(x, m.scale_mlp, m.shift_mlp)
        return AttentionOutput(x + m.gate_mlp * self.mlp(h), context)

    @torch.jit.unused
    def check_inputs(
        self,
        x: Tensor,
        y: Optional[Tensor],
        attn_mask: Optional[Tensor],
        context: Optional[Tensor],
        start_pos: Optional[Union[int, Tensor]],
    ) -> None:
        """Raise the package's errors for what forward cannot take."""
        check_sequence("x", x, self.dim_base, self.mlp[0].weight)
        check_present("y", y, self.conditioning, f"conditioning={self.conditioning}")
        check_present("context", context, self.use_cross_attn, f"use_cross_attn={self.use_cross_attn}")
        if y is not None:
            check_condition("y", y, x)
        if context is not None:
            check_sequence("context", context, self.dim_base, self.mlp[0].weight, batch=x.shape[0])
        check_mask(attn_mask, x)
        attention = self.cross_attn if self.use_cross_attn else self.attn
        check_start_pos(start_pos, x, attention.max_seq_len)


GPT2Block = MMDiTBlock  # the name that checkpoints' own code knows it by
