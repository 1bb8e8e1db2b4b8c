"""One MMDiT block: joint attention and an MLP per stream, each behind a norm and a gated residual."""

from typing import NamedTuple

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from mmdit.attention import AttentionOutput, RMSNormSelfAttention, RMSNormSelfCrossAttention
from mmdit.errors import ConfigError
from mmdit.norm import layernorm_adaln
from mmdit.validation import (
    check_condition,
    check_heads,
    check_positive_int,
    check_present,
    check_probability,
    check_sequence,
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

    def __init__(
        self,
        dim_base: int,
        num_attn_head: int = 4,
        dim_head: int | None = None,
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
        x: Float[Tensor, "B L D"],
        y: Float[Tensor, "B 1 D"] | Float[Tensor, "B D"] | None = None,
        attn_mask: Shaped[Tensor, "B L L"] | None = None,
        context: Float[Tensor, "B C D"] | None = None,
        start_pos: Int[Tensor, "B"] | int | None = None,
    ) -> AttentionOutput:
        """x (B, L, D), condition y (B, D) or (B, 1, D), context (B, C, D); attn_mask and start_pos as in attention."""
        check_sequence("x", x, self.dim_base, self.mlp[0].weight)
        check_present("y", y, self.conditioning, f"conditioning={self.conditioning}")
        check_present("context", context, self.use_cross_attn, f"use_cross_attn={self.use_cross_attn}")
        if not self.conditioning:
            x = x + self.attn(self.ln_1(x), attn_mask, start_pos).x_out
            return AttentionOutput(x + self.mlp(self.ln_2(x)))

        check_condition("y", y, x)
        y = y.view(x.shape[0], 1, self.dim_base)
        m = Modulation(*self.adaLN_modulation(y).chunk(6, dim=-1))
        h = layernorm_adaln(x, m.scale_attn, m.shift_attn)
        if self.use_cross_attn:
            check_sequence("context", context, self.dim_base, self.mlp[0].weight, batch=x.shape[0])
            c = Modulation(*self.context_layers["adaLN_modulation"](y).chunk(6, dim=-1))
            h_context = layernorm_adaln(context, c.scale_attn, c.shift_attn)
            h, h_context = self.cross_attn(h, h_context, attn_mask, start_pos)
            context = context + c.gate_attn * h_context
            h_context = layernorm_adaln(context, c.scale_mlp, c.shift_mlp)
            context = context + c.gate_mlp * self.context_layers["mlp"](h_context)
        else:
            h = self.attn(h, attn_mask, start_pos).x_out
        x = x + m.gate_attn * h
        h = layernorm_adaln(x, m.scale_mlp, m.shift_mlp)
        return AttentionOutput(x + m.gate_mlp * self.mlp(h), context)


GPT2Block = MMDiTBlock  # the name that checkpoints' own code knows it by
