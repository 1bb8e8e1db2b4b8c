"""Checks of a stack's forward and backward on tiles of rows: for Triton's interpreter in a process of its own (device
"cpu"), and for a GPU. Each raises or returns.

mmdit is imported inside the checks, where it is the tree under test.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests import oracle
from tests.cases import Shape
from tests.dropout import dropout_masks
from tests.kernels import seeded
from tests.numerics import Values, assert_accurate, evaluate
from tests.rows_tier import collected
from tests.tiles_tier import Case, Inputs, draw_call, draw_stack, fp32_products

# Where a key takes nearly all of a row, dP - sum(dO * O) cancels, as in any backward that starts from the output: with
# five keys, one draw in a hundred has these gradients 1e-5 off (numerics.errors counts them among all gradients).
CANCELLING = "rms_norm_"
TINY = Shape(1, 3, 2, 2, 16)
WEIGHTS = ("attention_weights_kernel", "mlp_weights_kernel")


@dataclass(frozen=True)
class Drawn:
    """A stack, one call of it, and the gradients of its outputs."""

    case: Case
    stack: nn.Module
    inputs: Inputs
    options: dict[str, Any]
    cotangents: dict[str, Tensor]

    def values(self, module: Callable[..., Any] | None = None) -> Values:
        """Outputs and the gradients of all inputs and weights."""
        leaves = {name: t.detach().clone().requires_grad_() for name, t in self.inputs.items()}
        call = partial(self.stack if module is None else module, **leaves, **self.options)
        return evaluate(call, leaves | dict(self.stack.named_parameters()), self.cotangents)


# What a call is altered by, and what explain says then.
OBSTACLES: dict[str, tuple[Callable[[Drawn], Any], str]] = {
    "dropouts-of-two-rates": (lambda d: setattr(d.stack.train().layers[1].mlp[3], "p", 0.5), "different rates"),
    "one-dropout-off": (lambda d: d.stack.train().layers[1].mlp[3].eval(), "different rates"),
    "exact-fp32": (lambda d: torch.set_float32_matmul_precision("highest"), "fp32"),
    "context-of-no-rows": (
        lambda d: [t.update(context=t["context"][:, :0]) for t in (d.inputs, d.cotangents)],
        "no rows",
    ),
    "hook": (lambda d: d.stack.layers[0].mlp[0].register_forward_hook(lambda *_: None), "hooks"),
}


def an_obstacle_sends_a_step_to_the_modules(what: str, device: str, seed: int) -> None:
    case, (alter, reason) = Case("cross", TINY, torch.float32, 64), OBSTACLES[what]
    drawn = (draw_as_it_is if what == "exact-fp32" else draw)(case, device, seed)

    def call() -> Values:
        alter(drawn)
        return drawn.values()

    got, explanation = explained(drawn, call)
    told = [(d.path, d.reason) for d in explanation.decisions if d.op == "stack"]
    assert told[0][0] == "pytorch", str(explanation)
    assert reason in told[0][1], str(explanation)
    assert all(t.isfinite().all() for t in got.gradients.values())
    if not drawn.stack.training:
        assert_accurate(got, truth_of(drawn), drawn.case.dtype, cancelling=CANCELLING)


def an_unknown_recompute_is_refused(device: str, seed: int) -> None:
    drawn = draw(Case("cross", TINY, torch.float32, 64), device, seed)
    drawn.stack.recompute = "everything"
    with pytest.raises(import_module("mmdit").ConfigError, match="recompute: expected one of"):
        drawn.values()


def draw(case: Case, device: str, seed: int) -> Drawn:
    """A case of fp32 becomes one of bf16 on a GPU, where the kernels train 16 bits only."""
    if device == "cuda" and case.dtype == torch.float32:
        case = replace(case, dtype=torch.bfloat16)
    return draw_as_it_is(case, device, seed)


def draw_as_it_is(case: Case, device: str, seed: int) -> Drawn:
    rng = seeded(seed)
    stack = draw_stack(case, rng).to(device, case.dtype)
    inputs, options = draw_call(case, device, rng)
    streams = [name for name in ("x", "context") if name in inputs]
    cotangents = {name: torch.randn(inputs[name].shape, generator=rng).to(inputs[name]) for name in streams}
    return Drawn(case, stack, inputs, options, cotangents)


def explained(drawn: Drawn, call: Callable[[], Values] | None = None) -> tuple[Values, Any]:
    got: list[Values] = []
    with fp32_products("high"):
        explanation = import_module("mmdit").explain(lambda: got.append((call or drawn.values)()))
    return got[0], explanation


def assert_trains(explanation: Any) -> None:
    assert {(d.op, d.path) for d in explanation.decisions} == {("stack", "fused")}, str(explanation)
    assert all("; training tier" in d.reason for d in explanation.decisions), str(explanation)


def truth_of(drawn: Drawn, masks: list[tuple[Tensor, ...]] | None = None) -> Callable[..., Values]:
    """The oracle on the stack's weights and the inputs, in a precision to choose; masks: by layer and stream what the
    output of the MLP is multiplied by.
    """

    def truth(precision: torch.dtype) -> Values:
        state = {name: p.detach().to(precision).requires_grad_() for name, p in drawn.stack.named_parameters()}
        leaves = {name: t.detach().to(precision).requires_grad_() for name, t in drawn.inputs.items()}
        factors = iter([t.to(precision) for layer in masks or [] for t in reversed(layer)])

        def mlp(own: oracle.State, x: Tensor, plain: Callable[..., Tensor] = oracle.mlp) -> Tensor:
            return plain(own, x) * next(factors)

        with patch.object(oracle, "mlp", mlp) if masks else nullcontext():
            call = partial(oracle.stack, state, **leaves, heads=drawn.case.shape.heads, **drawn.options)
            return evaluate(call, leaves | state, drawn.cotangents)

    return truth


def gradients_match_the_oracle(case: Case, recompute: str, as_block: bool, device: str, seed: int) -> None:
    drawn = draw(case, device, seed)
    drawn.stack.recompute = recompute
    before = {name: t.clone() for name, t in drawn.inputs.items()}
    got, explanation = explained(drawn, partial(drawn.values, drawn.stack.layers[0] if as_block else None))
    assert_trains(explanation)
    assert f"recompute {recompute}" in str(explanation)
    assert all(torch.equal(t, before[name]) for name, t in drawn.inputs.items()), "an input was written to"
    for name, parameter in drawn.stack.named_parameters():
        assert got.gradients[name].dtype == parameter.dtype, name
    assert_accurate(got, truth_of(drawn), drawn.case.dtype, cancelling=CANCELLING)


def two_runs_give_the_same_bits(case: Case, recompute: str, device: str, seed: int) -> None:
    drawn = draw(case, device, seed)
    drawn.stack.recompute = recompute
    first, second = (explained(drawn)[0] for _ in range(2))
    for name, t in {**first.outputs, **first.gradients}.items():
        assert torch.equal(t, {**second.outputs, **second.gradients}[name]), f"{name} differs between two runs"


def dropout_is_replayed(case: Case, p: float, recompute: str, checkpointed: bool, device: str, seed: int) -> None:
    """Forward and backward drop what Philox says, from a seed that torch's generator gives, which moves on."""
    drawn = draw(case, device, seed)
    drawn.stack.train().recompute = recompute
    for module in drawn.stack.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
    torch.manual_seed(seed)
    seeds = torch.randint(2**62, (case.layers, 2), device=device)
    moved = torch.random.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    torch.manual_seed(seed)

    def through_checkpoint(x: Tensor, **inputs: Any) -> Any:
        return checkpoint(drawn.stack, x, **inputs, use_reentrant=False)  # keeps the generator of a positional's device

    got, explanation = explained(drawn, partial(drawn.values, through_checkpoint if checkpointed else None))
    assert_trains(explanation)
    masks = dropout_masks(drawn.case, seeds, p)
    dropped = torch.cat([t.flatten() == 0 for layer in masks for t in layer]).double().mean().item()
    assert abs(dropped - p) < 0.1, dropped
    assert_accurate(got, truth_of(drawn, masks), drawn.case.dtype, cancelling=CANCELLING)
    torch.manual_seed(seed)
    with torch.no_grad(), fp32_products("high"):
        drawn.stack(**drawn.inputs, **drawn.options)
    now = torch.random.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    assert torch.equal(now, moved), "torch's generator did not move on by one draw"


def dropout_without_gradients_is_the_same(case: Case, device: str, seed: int) -> None:
    drawn = draw(case, device, seed)
    drawn.stack.train()
    torch.manual_seed(seed)
    with_gradients, _ = explained(drawn)
    torch.manual_seed(seed)
    with torch.no_grad(), fp32_products("high"):
        without = drawn.stack(**drawn.inputs, **drawn.options)
    assert torch.equal(with_gradients.outputs["x"], without.x_out)
    assert without.x_out.requires_grad is False


def frozen_weights_cost_nothing(which: str, device: str, seed: int) -> None:
    """which: what stays to be trained. Its gradients are those of the whole, the others are not computed."""
    case = Case("cross", TINY, torch.float32, 64, layers=3)
    drawn = draw(case, device, seed)
    whole, _ = explained(drawn)
    keep = {"last-layer": "layers.2.", "a-bias": "layers.1.mlp.0.bias", "modulation": "layers.1.adaLN_", "x": "none"}
    for name, parameter in drawn.stack.named_parameters():
        parameter.requires_grad_(name.startswith(keep[which]))
    leaves = {name: t.detach().clone().requires_grad_(name == which) for name, t in drawn.inputs.items()}
    trained = {name: p for name, p in (leaves | dict(drawn.stack.named_parameters())).items() if p.requires_grad}
    call = partial(drawn.stack, **leaves, **drawn.options)
    got, explanation = explained(drawn, lambda: evaluate(call, trained, drawn.cotangents))
    assert_trains(explanation)
    for name, gradient in got.gradients.items():
        assert torch.equal(gradient, whole.gradients[name]), name
    layers = {"last-layer": (1, 1), "a-bias": (2, 1), "modulation": (2, 0), "x": (3, 0)}[which]
    counts = [explanation.launches.count(name) for name in ("block_backward_kernel", WEIGHTS[0])]
    assert tuple(counts) == layers, str(explanation)


def second_derivatives_raise(device: str, seed: int) -> None:
    drawn = draw(Case("cross", TINY, torch.float32, 64), device, seed)
    x = drawn.inputs["x"].clone().requires_grad_()
    with fp32_products("high"):
        out = drawn.stack(**drawn.inputs | {"x": x}, **drawn.options).x_out
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        gradient.sum().backward()


def a_second_backward_gives_the_same(device: str, seed: int) -> None:
    """With retain_graph=True, adding up in .grad; what is saved is not written to."""
    drawn = draw(Case("cross", TINY, torch.float32, 64), device, seed)
    with fp32_products("high"):
        out = drawn.stack(**drawn.inputs, **drawn.options).x_out
        loss = (out * drawn.cotangents["x"]).sum()
        loss.backward(retain_graph=True)
        once = {name: p.grad.clone() for name, p in drawn.stack.named_parameters()}
        loss.backward()
    for name, parameter in drawn.stack.named_parameters():
        assert torch.equal(parameter.grad, 2 * once[name]), name


def weights_may_be_swapped(device: str, seed: int) -> None:
    """torch.func.functional_call: gradients go to the tensors that were passed."""
    drawn = draw(Case("cross", TINY, torch.float32, 64), device, seed)
    whole, _ = explained(drawn)
    own = {name: p.detach().clone().requires_grad_() for name, p in drawn.stack.named_parameters()}
    for parameter in drawn.stack.parameters():
        parameter.data.zero_()

    def call() -> Any:
        return torch.func.functional_call(drawn.stack, own, kwargs=drawn.inputs | drawn.options)

    got, explanation = explained(drawn, lambda: evaluate(call, own, drawn.cotangents))
    assert_trains(explanation)
    for name, gradient in got.gradients.items():
        assert torch.equal(gradient, whole.gradients[name]), name


def gradients_of_heads_may_come_in_either_order(device: str, seed: int) -> None:
    """Of a head's columns of queries and keys the even ones first, as Triton's kernels store them, or as they are."""
    case = Case("cross", Shape(1, 7, 5, 2, 16), torch.float16, 64, layers=1)
    drawn, op = draw(case, device, seed), import_module("mmdit.ops.stack_backward.op")
    layers, modulation = collected(drawn.stack, drawn.inputs["y"])
    tables = drawn.stack.layers[0].cross_attn.rotary
    layout = import_module("mmdit.ops.stack_rows.op").padded_layout(case.shape.length, case.shape.context)
    d_heads = torch.randn(3, case.shape.batch, layout[3], case.shape.dim, generator=seeded(seed)).to(device, case.dtype)
    residual = torch.randn(d_heads.shape[1:], generator=seeded(seed)).to(device, case.dtype)
    got: list[dict[str, Tensor]] = []
    for halves in (True, False):
        run = op.RowBackward(
            *(residual, case.shape.batch, modulation, layout, case.shape.heads, case.forward, tables.cos, tables.sin),
            *(None, False, None, 0.0),
        )
        run.gradients.heads.copy_(d_heads)
        if not halves:
            pairs = d_heads[:2].unflatten(-1, (case.shape.heads, 2, -1)).transpose(-1, -2)
            run.gradients.heads[:2].copy_(pairs.flatten(-3))
        run.gradients.residual.zero_()
        run.heads_backward(0, layers[0], residual, halves, torch.empty_like(d_heads))
        got.append({"residual": run.gradients.residual, "projected": run.gradients.heads})
    assert got[0]["residual"].any()
    for name, t in got[0].items():
        assert torch.equal(t.nan_to_num(), got[1][name].nan_to_num()), name
