"""The cases of joint attention without gradients, with a random mask over x and without."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluation.bench.case import Outputs, worst_error
from evaluation.bench.record import Contender, Direction

SHAPES = ((1, 8, 186, 64, 16), (32, 8, 186, 64, 16), (128, 8, 186, 64, 16))  # B, H, L, C, Dh


@dataclass(frozen=True)
class AttentionCase:
    """query, key, value (B, H, L + C, Dh); attn_mask None or (B, L, L) bool."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    context_length: int
    directions: tuple[Direction, ...] = ("forward",)

    @classmethod
    def draw(
        cls, shape: tuple[int, int, int, int, int], dtype: torch.dtype, masked: bool, device: str = "cuda"
    ) -> "AttentionCase":
        """Fresh random values; half of a mask is False."""
        batch, heads, length, context_length, dim_head = shape
        streams = torch.randn(3, batch, heads, length + context_length, dim_head, device=device, dtype=dtype)
        attn_mask = torch.rand(batch, length, length, device=device) < 0.5 if masked else None
        return cls(*streams, attn_mask, context_length)

    @property
    def op(self) -> str:
        return "joint_attention" if self.attn_mask is None else "joint_attention, masked"

    @property
    def shape(self) -> tuple[int, ...]:
        batch, heads, joint_length, dim_head = self.query.shape
        return batch, heads, joint_length - self.context_length, self.context_length, dim_head

    @property
    def dtype(self) -> torch.dtype:
        return self.query.dtype

    def functions(self, vanilla: ModuleType, fused: ModuleType) -> dict[Contender, Callable[..., Tensor]]:
        """Vanilla: torch's scaled_dot_product_attention, heads joined, on the joint mask that it needs."""
        eager, op = vanilla_attention, torch.ops.mmdit.joint_attention
        return {"eager": eager, "compiled": torch.compile(eager, dynamic=False), "fused": op}

    def call(self, function: Callable[..., Tensor], direction: Direction) -> Callable[[], Outputs]:
        def forward() -> Outputs:
            with torch.no_grad():
                return (function(self.query, self.key, self.value, self.attn_mask, self.context_length),)

        return forward

    def floor_bytes(self, direction: Direction) -> int:
        mask = 0 if self.attn_mask is None else self.attn_mask.numel()
        return 4 * self.query.numel() * self.query.element_size() + mask

    def error(self, outputs: Outputs) -> float:
        query, key, value = (t.double() for t in (self.query, self.key, self.value))
        logits = query @ key.mT / query.shape[-1] ** 0.5
        if self.attn_mask is not None:
            logits = logits.masked_fill(~joint_mask(self.attn_mask, self.context_length)[:, None], -torch.inf)
        return worst_error(outputs, ((logits.softmax(-1) @ value).transpose(1, 2).flatten(2),))


def joint_mask(attn_mask: Tensor, context_length: int) -> Tensor:
    """(B, L, L) over x -> (B, S, S): context sees what anyone sees, and is seen by who sees anything."""
    grown = F.pad(attn_mask, (0, context_length, 0, context_length), value=True)
    length = attn_mask.shape[1]
    grown[:, :length, length:] = attn_mask.any(2, keepdim=True)
    grown[:, length:, :length] = attn_mask.any(1, keepdim=True)
    return grown


def vanilla_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, context_length: int
) -> Tensor:
    mask = None if attn_mask is None else joint_mask(attn_mask, context_length)[:, None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


def attention_cases(dtype: torch.dtype) -> Iterator[AttentionCase]:
    return (AttentionCase.draw(shape, dtype, masked) for masked, shape in product((False, True), SHAPES))
