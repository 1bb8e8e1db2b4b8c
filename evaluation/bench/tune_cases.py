"""What `tune` runs, and checks: an op, or the whole model, on fresh random values and sizes of a model.

B batch, L x length, C context length, D model dim.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evaluation.bench.case import Case, Outputs, worst_error
from evaluation.bench.joint_attention import AttentionCase
from evaluation.bench.norm_adaln import EPS, NormCase
from evaluation.bench.record import Direction
from evaluation.bench.stack_case import DTYPES, StackSetup
from evaluation.bench.stack_record import MAX_LENGTH, StackCase
from evaluation.bench.trees import LoadedTree

OP_CALLS = 10  # of an op in a CUDA graph: one alone would take less than the graph's own start


class Subject(NamedTuple):
    """run: a call that gives outputs; error: theirs, against fp64; calls: how many of them a CUDA graph is to hold."""

    run: Callable[[], Outputs]
    error: Callable[[Outputs], float]
    calls: int = OP_CALLS


Draw = Callable[[StackCase, LoadedTree, LoadedTree, str], Subject]


def draw_stack(case: StackCase, before: LoadedTree, after: LoadedTree, device: str) -> Subject:
    setup = StackSetup.draw(case, before.mmdit, after.mmdit, device)

    @torch.no_grad()
    def run() -> Outputs:
        return setup.call(setup.fused)

    return Subject(run, setup.error, calls=1)


def draw_attention(case: StackCase, before: LoadedTree, after: LoadedTree, device: str) -> Subject:
    shape = (case.batch, case.heads, case.length, case.context, case.dim // case.heads)
    return subject_of(AttentionCase.draw(shape, DTYPES[case.dtype], case.masked, device), "forward", before, after)


def draw_norm(case: StackCase, before: LoadedTree, after: LoadedTree, device: str) -> Subject:
    return subject_of(norm_case(case, device), "forward", before, after)


def draw_norm_backward(case: StackCase, before: LoadedTree, after: LoadedTree, device: str) -> Subject:
    """With the forward, which the tiles of the backward leave alone."""
    return subject_of(norm_case(case, device), "forward+backward", before, after)


def norm_case(case: StackCase, device: str) -> NormCase:
    return NormCase.draw("layernorm_adaln", (case.batch, case.length, case.dim), DTYPES[case.dtype], device)


def subject_of(case: Case, direction: Direction, before: LoadedTree, after: LoadedTree) -> Subject:
    """The fused op of a case of `ops`."""
    function = case.functions(before.mmdit, after.mmdit)["fused"]
    return Subject(case.call(function, direction), case.error)


def draw_pack_heads(case: StackCase, before: LoadedTree, after: LoadedTree, device: str) -> Subject:
    batch, dim, draw = case.batch, case.dim, drawing(case, device)
    qkv = draw(batch, case.length, 3 * dim)
    context = draw(batch, case.context, 3 * dim) if case.context else None
    norms = [draw(dim) for _ in range(2)] + ([draw(dim) for _ in range(2)] if case.context else [None, None])
    angles = torch.rand(MAX_LENGTH, dim // case.heads // 2, device=device) * 2 * torch.pi
    start = torch.randint(MAX_LENGTH - case.length + 1, (batch,), device=device) if case.masked else None
    tensors = (qkv, context, *norms, angles.cos(), angles.sin(), start)
    return against_reference(after, "pack_heads", (*tensors, case.heads, EPS), (*tensors, 0, case.heads, EPS))


def draw_gated_residual(case: StackCase, before: LoadedTree, after: LoadedTree, device: str) -> Subject:
    """As after attention: with a bias, a gate, an RMSNorm, and the norm of what follows."""
    batch, dim, draw = case.batch, case.dim, drawing(case, device)
    branch, residual = draw(batch, case.length, dim), draw(batch, case.length, dim).float()
    bias, rms_weight = draw(dim), draw(dim)
    gate, scale, shift = torch.randn(3, batch, dim, device=device)
    rest = (bias, gate, rms_weight, scale, shift, EPS, EPS)
    return against_reference(after, "gated_residual", (residual, branch, *rest), (branch, residual, *rest))


def drawing(case: StackCase, device: str) -> Callable[..., Tensor]:
    """Draws tensors of the case's dtype."""
    return lambda *shape: torch.randn(shape, device=device).to(DTYPES[case.dtype])


def against_reference(after: LoadedTree, op: str, given: tuple, of_reference: tuple) -> Subject:
    """An op of the fused tree that vanilla PyTorch has no like of, against its own reference on the same in fp64."""
    function, reference = (
        getattr(after.modules[f"mmdit.ops.{op}.{module}"], name)
        for module, name in (("op", op), ("reference", f"{op}_reference"))
    )
    return Subject(
        partial(function, *given), lambda outputs: worst_error(outputs, reference(*map(in_fp64, of_reference)))
    )


def in_fp64(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
