"""Sizes of the MMDiT stack."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """Arguments of every block, and how many there are. The defaults are the target configuration.

    Args:
        dim_base: model dimension D; a multiple of num_attn_head, D / num_attn_head even.
        num_layers: number of blocks.
        num_attn_head: number of heads H.
        dim_feedforward: hidden size F of the MLPs.
        dropout: probability of a zero after the MLP, while training.
        conditioning: adaptive LayerNorm (scale, shift, gate from y) instead of an affine one.
        use_cross_attn: joint attention with a context stream; needs conditioning.
    """

    dim_base: int = 128
    num_layers: int = 12
    num_attn_head: int = 8
    dim_feedforward: int = 512
    dropout: float = 0.1
    conditioning: bool = True
    use_cross_attn: bool = True
