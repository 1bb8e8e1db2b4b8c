"""Checks of joint attention with gradients as an op: its dispatch, its autograd, its registration; on device "cpu", in
Triton's interpreter or not, or "cuda". Each raises or returns.

mmdit is imported inside the checks, where it is the tree under test.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from tests.attention_gradients import Call, Case
from tests.kernels import OpCalls, compiles_whole, leaf
from tests.numerics import assert_accurate, evaluate

KERNELS = ("joint_attention_kernel", "attention_backward_kernel")


class OpCall:
    """A case by the op itself, on leaves of a dtype (its own: None)."""

    def __init__(self, case: Case, device: str, seed: int, dtype: torch.dtype | None = None) -> None:
        self.op = import_module("mmdit.ops.joint_attention.op").joint_attention
        self.inputs = Call(case, device, seed, folded=False)
        self.leaves = {name: leaf(t, True, dtype) for name, t in self.inputs.streams.items()}
        if case.strided:
            self.leaves = {name: leaf(t.mT.contiguous().mT, True) for name, t in self.leaves.items()}

    def __call__(self) -> tuple[Tensor]:
        return (self.op(*self.leaves.values(), self.inputs.attn_mask, self.inputs.case.shape.context),)


def gradients_match_the_oracle(case: Case, path: str, device: str, seed: int) -> None:
    """path: what explain is to say of it."""
    call, got = OpCall(case, device, seed), []
    explanation = import_module("mmdit").explain(
        lambda: got.append(evaluate(call, call.leaves, {"out": call.inputs.cotangent}))
    )
    assert explanation.path == path, str(explanation)
    if path == "fused":
        assert tuple(n for n in explanation.launches if n != "pack_mask_kernel") == KERNELS, str(explanation)
    assert_accurate(got[0], call.inputs.truth, case.dtype, negligible=0.0)


def ops_pass_opcheck(case: Case, device: str, seed: int) -> None:
    call = OpCall(case, device, seed)
    with OpCalls() as forward:
        (out,) = call()
    with OpCalls() as backward:
        torch.autograd.grad(out, list(call.leaves.values()), call.inputs.cotangent)
    for recorded, requires_grad in ((forward, True), (backward, False)):
        (found,) = recorded.calls
        torch.library.opcheck(
            found[0], tuple(leaf(a, requires_grad and a is not call.inputs.attn_mask) for a in found[1])
        )


def gradients_with_a_graph_are_plain_pytorch_s(case: Case, device: str, seed: int) -> None:
    """create_graph=True gives gradients that can be differentiated as far as those of PyTorch's own attention."""
    call, found = OpCall(case, device, seed), []
    reference = import_module("mmdit.ops.joint_attention.reference").joint_attention_reference
    leaves = list(call.leaves.values())
    for out in (call()[0], reference(*leaves, call.inputs.attn_mask, case.shape.context)):
        found.append(torch.autograd.grad(out, leaves, call.inputs.cotangent, create_graph=True))
    for mine, wanted in zip(*found, strict=True):
        assert mine.requires_grad
        torch.testing.assert_close(mine, wanted)


def compiled_whole(case: Case, device: str, seed: int) -> None:
    call = OpCall(case, device, seed)
    compiles_whole(lambda: call()[0], list(call.leaves.values()))


def forward_op() -> Any:
    import_module("mmdit")
    return torch.ops.mmdit.joint_attention_forward


def references_pass_gradcheck(case: Case, seed: int) -> None:
    call = OpCall(case, "cpu", seed, torch.float64)
    arguments = (call.inputs.attn_mask, case.shape.context)
    assert torch.autograd.gradcheck(lambda *streams: forward_op()(*streams, *arguments)[0], tuple(call.leaves.values()))


def references_match_the_oracle(case: Case, seed: int) -> None:
    call = OpCall(case, "cpu", seed)
    out, lse = forward_op()(*call.leaves.values(), call.inputs.attn_mask, case.shape.context)
    got = evaluate(lambda: (out,), call.leaves, {"out": call.inputs.cotangent})
    assert_accurate(got, call.inputs.truth, case.dtype, negligible=0.0)
    assert (lse.dtype, lse.requires_grad) == (torch.float32, False)
    torch.testing.assert_close(lse.double(), call.inputs.true_lse(), rtol=1e-5, atol=1e-5)
