"""Checks of joint attention's forward for training and its backward: for Triton's interpreter in a process of its own
(device "cpu"), and for a GPU. Each raises or returns.

mmdit is imported inside the checks, where it is the tree under test. R rows: x, padding, the context, padding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tests import oracle
from tests.cases import MASKS, Shape, random_mask
from tests.kernels import seeded
from tests.numerics import Values, assert_accurate, evaluate
from tests.tiles_tier import fp32_products

LOG2_E = 1.4426950408889634
STREAMS = ("query", "key", "value")
PADDING = 64


@dataclass(frozen=True)
class Case:
    """padded: each stream up to a multiple of 64 rows. gain, gradient_gain: factors of query and key, and of d_out.
    opposed: every query points away from every key, so that all of a row's logits are far below 0.
    """

    shape: Shape
    dtype: torch.dtype
    mask: str | None = None
    padded: bool = False
    strided: bool = False
    gain: float = 1.0
    gradient_gain: float = 1.0
    opposed: bool = False
    precision: str = "highest"

    def __str__(self) -> str:
        flags = [name for name in ("padded", "strided", "opposed") if getattr(self, name)]
        gains = [f"{name}{value:g}" for name, value in (("x", self.gain), ("g", self.gradient_gain)) if value != 1]
        names = [str(self.shape), str(self.dtype).removeprefix("torch."), self.mask or "", *flags, *gains]
        return "-".join([name for name in names if name] + ["tf32"] * (self.precision != "highest"))

    @property
    def layout(self) -> tuple[int, int, int, int]:
        """Rows of x, of the context, where the context begins, and R."""
        length, context = self.shape.length, self.shape.context
        if not self.padded:
            return length, context, length, length + context
        x_rows = -(-length // PADDING) * PADDING
        return length, context, x_rows, x_rows + -(-context // PADDING) * PADDING

    @property
    def there(self) -> Tensor:
        """(L + C,) int64: the rows that are not padding."""
        length, context, x_rows, _ = self.layout
        return torch.cat((torch.arange(length), x_rows + torch.arange(context)))


class Call:
    """The inputs of a case on the padded rows, as the kernels take them. Outputs and padding begin as NaN.

    folded: queries are stored with softmax's scale in them, in powers of 2.
    """

    def __init__(self, case: Case, device: str, seed: int, folded: bool = True) -> None:
        rng, shape, rows = seeded(seed), case.shape, case.layout[3]
        self.case, self.device = case, device
        size = (shape.batch, shape.heads, shape.length + shape.context, shape.dim_head)
        drawn = {name: torch.randn(size, generator=rng) for name in STREAMS}
        if case.opposed:
            drawn["query"], drawn["key"] = drawn["query"].abs(), -drawn["key"].abs()
        for name in ("query", "key"):
            drawn[name] *= case.gain
        self.unfold = shape.dim_head**0.5 / LOG2_E if folded else 1.0
        drawn["query"] /= self.unfold
        self.streams = {name: t.to(device, case.dtype) for name, t in drawn.items()}
        cotangent = torch.randn((shape.batch, size[2], shape.dim), generator=rng) * case.gradient_gain
        self.cotangent = cotangent.to(device, case.dtype)
        self.attn_mask = None
        if case.mask is not None:
            self.attn_mask = (MASKS[case.mask](random_mask(shape, rng)) != 0).to(device)
        self.heads = self.padded(torch.stack([t.transpose(1, 2).flatten(2) for t in self.streams.values()]), rows, 0.0)
        if case.strided:
            self.heads = torch.cat((self.heads, torch.full_like(self.heads, torch.nan)), -1)[..., : shape.dim]
        self.out, self.gradients = (self.empty(case.dtype, *n, shape.batch, rows, shape.dim) for n in ((), (3,)))
        self.lse = self.empty(torch.float32, shape.batch, shape.heads, rows)

    def empty(self, dtype: torch.dtype, *size: int) -> Tensor:
        return torch.full(size, torch.nan, dtype=dtype, device=self.device)

    def padded(self, t: Tensor, rows: int, value: float) -> Tensor:
        """(..., L + C, D) -> (..., R, D), `value` in padding."""
        full = torch.full((*t.shape[:-2], rows, t.shape[-1]), value, dtype=t.dtype, device=self.device)
        full[..., self.case.there, :] = t
        return full

    def run(self) -> None:
        """Forward, then backward, with NaN in all padding between them."""
        op, backward = (import_module(f"mmdit.ops.joint_attention.{name}") for name in ("op", "backward"))
        layout = _, context, x_rows, rows = self.case.layout
        query, key, value = self.heads.unflatten(-1, (self.case.shape.heads, -1)).transpose(2, 3)
        bits = None if self.attn_mask is None else op.pack_mask(self.attn_mask, context, x_rows, rows)
        op.attend(query, key, value, bits, self.out, layout, 1.0, lse=self.lse)
        missing = torch.ones(rows, dtype=torch.bool).index_fill(0, self.case.there, False).to(self.device)
        for t in (self.heads, self.out, self.lse.unsqueeze(-1)):
            t[..., missing, :] = torch.nan
        d_out = self.padded(self.cotangent, rows, torch.nan)
        if self.case.strided:
            d_out, self.out = (t.repeat_interleave(2, 1)[:, ::2] for t in (d_out, self.out))
        backward.attend_backward(d_out, self.out, query, key, value, self.lse, bits, self.gradients, layout)
        assert not self.gradients[..., missing, :].any(), "gradients in padding are not 0"

    def values(self) -> Values:
        split = self.gradients[..., self.case.there, :].unflatten(-1, (self.case.shape.heads, -1)).transpose(2, 3)
        return Values({"out": self.out[:, self.case.there]}, dict(zip(STREAMS, split, strict=True)))

    def truth(self, precision: torch.dtype) -> Values:
        leaves = {name: t.to(precision).requires_grad_() for name, t in self.streams.items()}
        visible = self.visible()

        def call() -> tuple[Tensor]:
            weights = oracle.softmax_weights(leaves["query"] * self.unfold, leaves["key"], visible)
            return ((weights @ leaves["value"]).transpose(1, 2).flatten(2),)

        return evaluate(call, leaves, {"out": self.cotangent})

    def visible(self) -> Tensor:
        shape, mask = self.case.shape, self.attn_mask
        if mask is None:
            mask = torch.ones(shape.batch, shape.length, shape.length, device=self.device)
        return oracle.joint_mask(mask, shape.context)[:, None]

    def true_lse(self) -> Tensor:
        """(B, H, L + C) fp64, infinite where nothing is visible."""
        logits = self.streams["query"].double() @ self.streams["key"].double().mT
        logits *= self.unfold / self.case.shape.dim_head**0.5
        lse = logits.masked_fill(~self.visible(), -torch.inf).logsumexp(-1) * LOG2_E
        return lse.masked_fill(lse == -torch.inf, torch.inf)


def gradients_match_the_oracle(case: Case, device: str, seed: int) -> None:
    call = Call(case, device, seed)
    with fp32_products(case.precision):
        explanation = import_module("mmdit").explain(call.run)
    assert any("backward" in name for name in explanation.launches), str(explanation)
    assert_accurate(call.values(), call.truth, case.dtype, negligible=0.0)
    # Columns of padding count 1 each and are taken off again: a few roundings of up to 128 in a sum of 1 and more.
    torch.testing.assert_close(call.lse[..., case.there].double(), call.true_lse(), rtol=1e-6, atol=2e-5)


def two_runs_give_the_same_bits(case: Case, device: str, seed: int) -> None:
    first, second = (Call(case, device, seed) for _ in range(2))
    for call in (first, second):
        call.run()
    assert torch.equal(first.gradients, second.gradients)
    assert torch.equal(first.lse[..., case.there], second.lse[..., case.there])


def rows_that_see_nothing_get_and_give_no_gradient(case: Case, device: str, seed: int) -> None:
    call = Call(case, device, seed)
    call.run()
    sees, seen = call.visible().any(-1), call.visible().any(-2)  # (B, 1, L + C)
    assert not sees.all()
    gradients = call.values().gradients
    assert not gradients["query"].masked_select(~sees[..., None]).any()
    assert not gradients["key"].masked_select(~seen[..., None]).any()
    assert not gradients["value"].masked_select(~seen[..., None]).any()


def any_tiles_give_the_same_gradients(case: Case, tiles: tuple[Any, ...], device: str, seed: int) -> None:
    """tiles: of both kernels, or of one kernel for all keys and None."""
    tuning = import_module("mmdit.ops.joint_attention.tuning")
    found = tuple(t and tuning.Tiles(*t) for t in tiles)
    module = import_module("mmdit.ops.joint_attention.backward")
    choice: Callable[..., Any] = lambda *_: found  # noqa: E731
    plain = patch.object(module, "hopper_backward", lambda *_: False)
    with plain, patch.object(module, "attention_backward_tiles", choice):
        gradients_match_the_oracle(case, device, seed)


def hopper_gives_the_same_gradients(case: Case, device: str, seed: int) -> None:
    """By the kernel for Hopper, whether or not the tables take it."""
    with patch.object(import_module("mmdit.ops.joint_attention.backward"), "hopper_backward", lambda *_: True):
        gradients_match_the_oracle(case, device, seed)
        two_runs_give_the_same_bits(case, device, seed)
