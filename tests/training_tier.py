"""Checks of a stack's forward and backward on tiles of rows: for Triton's interpreter in a process of its own (device
"cpu"), and for a GPU. Each raises or returns.

mmdit is imported inside the checks, where it is the tree under test.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
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
from tests.kernels import seeded
from tests.numerics import Values, assert_accurate, evaluate
from tests.tiles_tier import Case, Inputs, draw_call, draw_stack, fp32_products

TINY = Shape(1, 3, 2, 2, 16)
PADDING = 64
WEIGHTS = ("attention_weights_kernel", "mlp_weights_kernel")
PHILOX = ((0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85))  # factors and key increments (Salmon et al., 2011)
WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Drawn:
    """A stack, one call of it, and the gradients of its outputs."""

    stack: nn.Module
    inputs: Inputs
    options: dict[str, Any]
    cotangents: dict[str, Tensor]

    def values(self, module: nn.Module | None = None) -> Values:
        """Outputs and the gradients of all inputs and weights."""
        leaves = {name: t.detach().clone().requires_grad_() for name, t in self.inputs.items()}
        module = module or self.stack
        call = partial(module, **leaves, **self.options)
        return evaluate(call, leaves | dict(self.stack.named_parameters()), self.cotangents)


def draw(case: Case, device: str, seed: int) -> Drawn:
    rng = seeded(seed)
    stack = draw_stack(case, rng).to(device, case.dtype)
    inputs, options = draw_call(case, device, rng)
    streams = [name for name in ("x", "context") if name in inputs]
    cotangents = {name: torch.randn(inputs[name].shape, generator=rng).to(inputs[name]) for name in streams}
    return Drawn(stack, inputs, options, cotangents)


def explained(drawn: Drawn, call: Callable[[], Values] | None = None) -> tuple[Values, Any]:
    got: list[Values] = []
    with fp32_products("high"):
        explanation = import_module("mmdit").explain(lambda: got.append((call or drawn.values)()))
    return got[0], explanation


def assert_trains(explanation: Any) -> None:
    assert {(d.op, d.path) for d in explanation.decisions} == {("stack", "fused")}, str(explanation)
    assert all("; training tier" in d.reason for d in explanation.decisions), str(explanation)


def truth_of(case: Case, drawn: Drawn, masks: list[tuple[Tensor, ...]] | None = None) -> Callable[..., Values]:
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
            call = partial(oracle.stack, state, **leaves, heads=case.shape.heads, **drawn.options)
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
    assert_accurate(got, truth_of(case, drawn), case.dtype)


def two_runs_give_the_same_bits(case: Case, recompute: str, device: str, seed: int) -> None:
    drawn = draw(case, device, seed)
    drawn.stack.recompute = recompute
    first, second = (explained(drawn)[0] for _ in range(2))
    for name, t in {**first.outputs, **first.gradients}.items():
        assert torch.equal(t, {**second.outputs, **second.gradients}[name]), f"{name} differs between two runs"


def philox(seed: int, counter: Tensor) -> list[Tensor]:
    """The four words of Philox 4x32-10 at counter, with seed as its key."""
    words, key = [counter & WORD, *[torch.zeros_like(counter)] * 3], [seed & WORD, seed >> 32]
    for _ in range(10):
        products = [(_product(words[0], PHILOX[0][0])), (_product(words[2], PHILOX[0][1]))]
        (low_0, high_0), (low_2, high_2) = products
        words = [high_2 ^ words[1] ^ key[0], low_2, high_0 ^ words[3] ^ key[1], low_0]
        key = [(k + step) & WORD for k, step in zip(key, PHILOX[1], strict=True)]
    return words


def _product(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Lower and upper word of word * factor, in int64 without overflow."""
    low = (word & 0xFFFF) * factor
    high = (word >> 16) * factor + (low >> 16)
    return ((high & 0xFFFF) << 16) | (low & 0xFFFF), high >> 16


def dropout_masks(case: Case, seeds: Tensor, p: float) -> list[tuple[Tensor, ...]]:
    """By layer and stream, what each element of the MLP's output is multiplied by."""
    shape, masks = case.shape, []
    x_rows = -(-shape.length // PADDING) * PADDING
    rows = x_rows + (-(-shape.context // PADDING) * PADDING if case.streams == 2 else 0)
    counter = torch.arange(shape.batch * rows * shape.dim // 4, device=seeds.device)
    for seed in seeds[:, 0].tolist():
        words = torch.stack(philox(seed, counter), dim=-1).view(shape.batch, rows, shape.dim)
        factor = (words >= int(p * 2**32)).double() / (1 - p)
        streams = [factor[:, : shape.length]]
        if case.streams == 2:
            streams.append(factor[:, x_rows : x_rows + shape.context])
        masks.append(tuple(streams))
    return masks


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
    masks = dropout_masks(case, seeds, p)
    dropped = torch.cat([t.flatten() == 0 for layer in masks for t in layer]).double().mean().item()
    assert abs(dropped - p) < 0.1, dropped
    assert_accurate(got, truth_of(case, drawn, masks), case.dtype)
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
