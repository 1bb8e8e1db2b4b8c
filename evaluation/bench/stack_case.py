"""What a case runs on: both trees' models with the same random weights, inputs, and the fp64 oracle's outputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from evaluation.bench.case import Outputs, worst_error
from evaluation.bench.stack_backward import differentiate, in_pieces, present, worst_gradient_error
from evaluation.bench.stack_record import MAX_LENGTH, Precision, StackCase

DTYPES: dict[Precision, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "tf32": torch.float32,
    "float32": torch.float32,
}
NORM_SPREAD = 0.2  # standard deviation of a norm's weights about 1, so that a norm that ignores them is found out
ORACLE_BYTES = 1 << 32  # of the logits of the oracle's attention, 8 S^2 a head and sample, at a time

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class StackSetup:
    """Models in eval mode; inputs x (B, L, D), y (B, D), context (B, C, D), attn_mask (B, L, L) bool and start_pos (B,)
    int64, the last two None unless masked; expected x_out (B, L, D) and context_out (B, C, D), fp64. A model without
    context takes None for it, and gives none. cotangents: of the outputs, where the case has a backward; expected then
    goes on with the gradients, as differentiate gives them.
    """

    vanilla: nn.Module
    fused: nn.Module
    inputs: Inputs
    expected: Outputs
    cotangents: Outputs | None = None

    @classmethod
    def draw(cls, case: StackCase, before: ModuleType, after: ModuleType, device: str) -> "StackSetup":
        """Fresh random weights and inputs."""
        vanilla = build_model(before, case)
        with torch.no_grad():
            for name, parameter in vanilla.named_parameters():
                if name.endswith("weight") and parameter.dim() == 1:  # a norm's; nn.Linear's own start is spread enough
                    parameter.normal_(1.0, NORM_SPREAD)
        vanilla = vanilla.to(device, DTYPES[case.dtype])
        fused = build_model(after, case).to(device, DTYPES[case.dtype])
        truth = build_model(before, case).to(device).double()
        for model in (fused, truth):
            model.load_state_dict(vanilla.state_dict())
        if case.recompute != "none":
            fused.recompute = case.recompute
        inputs = draw_inputs(case, device)
        if not case.backward:
            return cls(vanilla, fused, inputs, oracle(truth, inputs, case.heads))
        cotangents = tuple(torch.randn_like(t) for t in present((inputs[0], inputs[2])))
        expected = in_pieces(
            truth, inputs, cotangents, max(1, samples_at_once(inputs, case.heads) // (4 * case.layers))
        )
        return cls(vanilla, fused, inputs, expected, cotangents)

    def call(self, model: nn.Module) -> Outputs:
        """What a contender's model gives."""
        if self.cotangents is None:
            return present(model(*self.inputs))
        return differentiate(model, self.inputs, self.cotangents)

    def error(self, outputs: Outputs) -> float:
        """The worst relative L2 error of what call gave."""
        if self.cotangents is None:
            return worst_error(outputs, self.expected)
        return worst_gradient_error(outputs, self.expected, len(self.cotangents))


def build_model(mmdit: ModuleType, case: StackCase) -> nn.Module:
    config = mmdit.MMDiTConfig(
        dim_base=case.dim,
        num_layers=case.layers,
        num_attn_head=case.heads,
        dim_feedforward=case.feed_forward,
        use_cross_attn=case.context > 0,
    )
    return mmdit.MMDiT(config).eval()


def draw_inputs(case: StackCase, device: str) -> Inputs:
    batch, length, dim = case.batch, case.length, case.dim
    shapes = ((batch, length, dim), (batch, dim), (batch, case.context, dim))
    x, y, context = (torch.randn(shape, device=device).to(DTYPES[case.dtype]) for shape in shapes)
    context = context if case.context else None
    if not case.masked:
        return x, y, context, None, None
    attn_mask = torch.rand(batch, length, length, device=device) < 0.5
    return x, y, context, attn_mask, torch.randint(MAX_LENGTH - length + 1, (batch,), device=device)


@torch.no_grad()
def oracle(truth: nn.Module, inputs: Inputs, heads: int) -> Outputs:
    """x_out (B, L, D) and, with a context, context_out (B, C, D) of an fp64 model, a few samples at a time."""
    chunk = samples_at_once(inputs, heads)
    outs = []
    for first in range(0, len(inputs[0]), chunk):
        given = (None if t is None else t[first : first + chunk] for t in inputs)
        given = (t.double() if t is not None and t.is_floating_point() else t for t in given)
        outs.append(present(truth(*given)))
    return tuple(torch.cat(chunks) for chunks in zip(*outs, strict=True))


def samples_at_once(inputs: Inputs, heads: int) -> int:
    """How many the oracle takes."""
    joint = inputs[0].shape[1] + (0 if inputs[2] is None else inputs[2].shape[1])
    return max(1, ORACLE_BYTES // (8 * heads * joint**2))


@contextmanager
def matmul_precision(dtype: Precision) -> Iterator[None]:
    """Within, float32 matrix products may use TF32 where dtype says so, and nowhere else."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
