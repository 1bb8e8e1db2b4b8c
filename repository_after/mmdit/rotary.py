"""Rotary position embedding over interleaved pairs (Su et al., 2021), with real cosine and sine tables."""

from typing import Callable, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

THETA = 10000.0


def rotary_tables(dim_head: int, max_seq_len: int, like: Tensor) -> Tuple[Tensor, Tensor]:
    """cos and sin (positions, Dh / 2) of position * THETA^(-2 pair / dim_head), in fp32, or fp64 where like is.

    The angles are taken in fp64 and rounded once: in fp32 they would be off by 2e-4 at position 4096.
    """
    frequency = THETA ** (-torch.arange(0, dim_head, 2, dtype=torch.float64, device=like.device) / dim_head)
    angle = torch.outer(torch.arange(max_seq_len, dtype=torch.float64, device=like.device), frequency)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return angle.cos().to(dtype), angle.sin().to(dtype)


class RotaryEmbedding(nn.Module):
    """Rotates each pair (2i, 2i + 1) of a head by position * THETA^(-2i / Dh).

    Args:
        dim_head: head size Dh, even.
        max_seq_len: number of positions in the table.

    Input and output: (B, H, L, Dh); the position of row l is start_pos + l, start_pos None (0), an int or (B,).
    """

    def __init__(self, dim_head: int, max_seq_len: int) -> None:
        super().__init__()
        self.dim_head = dim_head
        self.max_seq_len = max_seq_len
        cos, sin = rotary_tables(dim_head, max_seq_len, torch.empty(0))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Make the tables anew where fn takes the module, as a cast to bf16 would spoil them."""
        like = fn(torch.empty(0, device=self.cos.device, dtype=self.cos.dtype))
        self.cos, self.sin = rotary_tables(self.dim_head, self.max_seq_len, like)
        return self

    def forward(self, t: Tensor, start_pos: Optional[Union[int, Tensor]] = None) -> Tensor:
        position = torch.arange(t.shape[2], device=t.device)  # (L,)
        if isinstance(start_pos, Tensor):
            position = start_pos.view(-1, 1, 1) + position  # (B, 1, L)
        elif isinstance(start_pos, int):
            position = position + start_pos
        cos, sin = F.embedding(position, self.cos), F.embedding(position, self.sin)  # (L, Dh / 2) or (B, 1, L, Dh / 2)
        wide = t if t.dtype == torch.float64 else t.float()
        even, odd = wide.unflatten(-1, (-1, 2)).unbind(-1)  # (B, H, L, Dh / 2)
        rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
        return rotated.flatten(-2).to(t.dtype)
