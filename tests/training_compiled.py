"""Checks of a training step under torch.compile: the stack is one operator, and its backward another. For Triton's
interpreter in a process of its own (device "cpu"), and for a GPU.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.utils._pytree import tree_map_only

from tests.cases import Shape
from tests.graph_models import operators
from tests.kernels import leaf, seeded
from tests.numerics import Values, evaluate
from tests.tiles_tier import Case, fp32_products
from tests.training_tier import TINY, Drawn, draw_as_it_is

HALF = Case("cross", TINY, torch.float16, 64)
PAIR = [{"stack_training": 1}, {"stack_training_backward": 1}]
OPCHECK = ("test_schema", "test_autograd_registration", "test_faketensor")  # the other compares padding, never written
WANTED = 3  # the backward's argument


class Recorded(fx.Interpreter):
    """Runs a graph and keeps what the package's operators were given."""

    calls: list[tuple[Any, tuple[Any, ...]]]

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if str(target).startswith("mmdit."):
            self.calls.append((target, args))
        return super().call_function(target, args, kwargs)


def recorder() -> tuple[Callable[..., Any], list[Recorded]]:
    """A backend that runs graphs as they are, and the graphs that it was given, forwards and backwards."""
    seen: list[Recorded] = []

    def keep(graph_module: fx.GraphModule, _inputs: Any) -> Any:
        run = Recorded(graph_module)
        run.calls = []
        seen.append(run)
        return make_boxed_func(run.run)

    return aot_autograd(fw_compiler=keep), seen


def compiled(stack: nn.Module, **options: Any) -> tuple[Callable[..., Any], list[Recorded]]:
    backend, seen = recorder()
    torch._dynamo.reset()
    return torch.compile(stack, backend=backend, fullgraph=True, **options), seen


def operators_of(seen: list[Recorded]) -> list[dict[str, int]]:
    return [operators(each.module) for each in seen]


def both(drawn: Drawn, seed: int, run: Callable[[Callable[..., Any]], Values]) -> list[Recorded]:
    """The graphs of a compiled step, whose bits are those of an eager one."""
    call, seen = compiled(drawn.stack)
    with fp32_products("high"):
        torch.manual_seed(seed)
        want = run(drawn.stack)
        torch.manual_seed(seed)
        got = run(call)
    for name, wanted in {**want.outputs, **want.gradients}.items():
        assert torch.equal({**got.outputs, **got.gradients}[name], wanted), name
    return seen


def a_compiled_step_has_the_bits_of_an_eager_one(case: Case, recompute: str, p: float, device: str, seed: int) -> None:
    drawn = draw_as_it_is(case, device, seed)
    drawn.stack.recompute = recompute
    for part in drawn.stack.train(p > 0).modules():
        if isinstance(part, nn.Dropout):
            part.p = p
    assert operators_of(both(drawn, seed, drawn.values)) == PAIR


def a_compiled_step_computes_what_is_wanted(device: str, seed: int) -> None:
    drawn = draw_as_it_is(HALF, device, seed)
    for name, parameter in drawn.stack.named_parameters():
        parameter.requires_grad_(name.startswith("layers.1.mlp."))
    trained = {name: p for name, p in drawn.stack.named_parameters() if p.requires_grad}
    _, backward = both(drawn, seed, lambda c: evaluate(partial(c, **drawn.inputs), trained, drawn.cotangents))
    ((_, arguments),) = backward.calls
    assert sum(arguments[WANTED]) == len(trained) == 4


def lengths_share_a_compiled_step(device: str, seed: int) -> None:
    drawn = draw_as_it_is(HALF, device, seed)
    call, seen = compiled(drawn.stack, dynamic=True)
    rng = seeded(seed)
    for length, context in ((5, 3), (9, 70)):
        sizes = {"x": (2, length, 32), "y": (2, 32), "context": (2, context, 32)}
        inputs = {name: torch.randn(size, generator=rng) for name, size in sizes.items()}
        inputs = {name: t.to(device, torch.float16).requires_grad_() for name, t in inputs.items()}
        found = []
        for run in (drawn.stack, call):
            with fp32_products("high"):
                loss = sum(out.float().square().mean() for out in run(**inputs))
                found.append(torch.autograd.grad(loss, [*inputs.values(), *drawn.stack.parameters()]))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert operators_of(seen) == PAIR


def a_first_call_may_be_compiled(device: str, seed: int) -> None:
    """What is found out once is not known before it, and its ops find it out while they are traced."""
    drawn = draw_as_it_is(Case("cross", TINY, torch.float32, 64), device, seed)
    import_module("mmdit.runtime.dispatch")._platform_problems.clear()
    call, seen = compiled(drawn.stack)
    with fp32_products("high"):
        drawn.values(call)
    assert any("norm_adaln" in each for each in operators_of(seen))


def what_the_operator_does_not_take_keeps_its_modules(device: str, seed: int) -> None:
    in_fp32 = draw_as_it_is(Case("cross", TINY, torch.float32, 64), device, seed)
    two_rates = draw_as_it_is(HALF, device, seed)
    assert hasattr(torch.ops.mmdit, "stack_training")
    for layer in two_rates.stack.train().layers:
        layer.mlp[3].p = 0.5
    for drawn in (in_fp32, two_rates):
        call, seen = compiled(drawn.stack)
        with fp32_products("high"):
            drawn.values(call)
        found = operators_of(seen)
        assert len(found) == 2, found
        assert not any("training" in name for each in found for name in each), found
    exported = torch.export.export(draw_as_it_is(HALF, device, seed).stack, (), two_rates.inputs, strict=False)
    assert "stack_training" not in operators(exported.graph_module)


def the_operators_pass_opcheck(device: str, seed: int) -> None:
    drawn = draw_as_it_is(HALF, device, seed)
    call, seen = compiled(drawn.stack)
    with fp32_products("high"):
        drawn.values(call)
    for each in seen:
        ((operator, arguments),) = each.calls
        first = operator is torch.ops.mmdit.stack_training.default
        arguments = tree_map_only(Tensor, lambda t, first=first: leaf(t, first and t.is_floating_point()), arguments)
        torch.library.opcheck(operator, arguments, test_utils=OPCHECK)


CASES = (
    (HALF, "none", 0.0),
    (Case("cross", Shape(2, 7, 5, 2, 16), torch.float16, 64, "random", "tensor"), "selective", 0.4),
    (Case("plain", Shape(1, 7, 0, 2, 16), torch.float16, 64), "full", 0.0),
    (Case("conditioned", TINY, torch.float16, 64, variant="transposed"), "none", 0.4),
)
