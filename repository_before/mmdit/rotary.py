"""Rotary position embedding over interleaved pairs (Su et al., 2021), as a product of complex numbers."""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

THETA = 10000.0


def rotary_table(dim_head: int, max_seq_len: int, like: Tensor) -> Complex[Tensor, "positions pairs"]:
    """exp(i * position * THETA^(-2 pair / dim_head)) on like's device; complex64, or complex128 for fp64.

    The angles are taken in fp64 and rounded once: in fp32 they would be off by 2e-4 at position 4096.
    """
    frequency = THETA ** (-torch.arange(0, dim_head, 2, dtype=torch.float64, device=like.device) / dim_head)
    angle = torch.outer(torch.arange(max_seq_len, dtype=torch.float64, device=like.device), frequency)
    table = torch.polar(torch.ones_like(angle), angle)
    return table if like.dtype == torch.float64 else table.to(torch.complex64)


class RotaryEmbedding(nn.Module):
    """Rotates each pair (2i, 2i + 1) of a head by position * THETA^(-2i / Dh).

    Args:
        dim_head: head size Dh, even.
        max_seq_len: number of positions in the table.

    Input and output: (B, H, L, Dh); the position of row l is start_pos + l, start_pos None (0), an int or (B,).
    """

    freqs_cis: Complex[Tensor, "positions pairs"]

    def __init__(self, dim_head: int, max_seq_len: int) -> None:
        super().__init__()
        self.dim_head = dim_head
        self.max_seq_len = max_seq_len
        self.register_buffer("freqs_cis", rotary_table(dim_head, max_seq_len, torch.empty(0)), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Make the table anew where fn takes the module, as a cast to bf16 would spoil it."""
        like = fn(torch.empty(0, device=self.freqs_cis.device, dtype=self.freqs_cis.real.dtype))
        self.freqs_cis = rotary_table(self.dim_head, self.max_seq_len, like)
        return self

    def forward(
        self, t: Float[Tensor, "B H L Dh"], start_pos: Int[Tensor, "B"] | int | None = None
    ) -> Float[Tensor, "B H L Dh"]:
        position = torch.arange(t.shape[2], device=t.device)  # (L,)
        if isinstance(start_pos, Tensor):
            position = rearrange(start_pos, "B -> B 1 1") + position  # (B, 1, L)
        elif start_pos is not None:
            position = position + start_pos
        pairs = rearrange(t.to(torch.promote_types(t.dtype, torch.float32)), "... (pair two) -> ... pair two", two=2)
        rotated = torch.view_as_complex(pairs.contiguous()) * self.freqs_cis[position]  # (B, H, L, Dh / 2)
        return rearrange(torch.view_as_real(rotated), "... pair two -> ... (pair two)").to(t.dtype)
