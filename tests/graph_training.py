"""Checks of a vanilla stack's training step through a graph's doors: it runs what the package's own does. For Triton's
interpreter in a process of its own (device "cpu"), and for a GPU.

mmdit is imported inside the checks, where it is the tree under test.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from tests.cases import STACK, Shape, random_mask
from tests.graph_models import graph_package, in_mode, operators
from tests.kernels import seeded
from tests.numerics import Values, evaluate
from tests.training_compiled import PAIR, operators_of, recorder
from tests.vanilla import vanilla
from tests.verify import build, draw_inputs

SHAPE = Shape(3, 7, 5, 2, 16)
Inputs = dict[str, Tensor]


def draw(
    training: bool, device: str, seed: int, dropout: float = 0.0, shape: Shape = SHAPE
) -> tuple[nn.Module, Inputs]:
    """A vanilla stack of two layers, and inputs with a mask and a start for each sample."""
    rng = seeded(seed)
    model = in_mode(build(vanilla(), STACK, shape, rng).to(device, torch.float16), training, dropout)
    inputs = {name: t.half() for name, t in draw_inputs(STACK, shape, rng).items()}
    inputs |= {"attn_mask": random_mask(shape, rng), "start_pos": torch.tensor([3, 0, 1000])}
    return model, {name: t.to(device) for name, t in inputs.items()}


def step(call: Callable[..., Any], model: nn.Module, inputs: Inputs) -> tuple[Values, tuple[str, ...]]:
    """Outputs and all gradients, with the inputs for cotangents, and the kernels that were launched for them."""
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("x", "y", "context")}
    cotangents = {name: inputs[name] for name in ("x", "context")}
    found: list[Values] = []

    def run() -> None:
        wanted = leaves | dict(model.named_parameters())
        found.append(evaluate(partial(call, **inputs | leaves), wanted, cotangents))

    launches = import_module("mmdit").explain(run).launches
    return found[0], launches


def assert_the_packages_own_step(call: Callable[..., Any], model: nn.Module, inputs: Inputs) -> None:
    (got, launches), (want, own) = (step(each, model, inputs) for each in (call, graph_package().fuse(model)))
    assert launches == own
    assert "attention_weights_kernel" in launches, launches
    for name, wanted in {**want.outputs, **want.gradients}.items():
        assert torch.equal({**got.outputs, **got.gradients}[name], wanted), name


def rewrite(model: nn.Module, inputs: Inputs, **options: Any) -> tuple[nn.Module, list[str | None]]:
    """The graph after the pass, and why of its blocks those were refused that were."""
    graph_module = graph_package().trace(model, ((), inputs)).graph_module
    fuse = graph_package().find_pass("fuse_mmdit")(**options)
    return fuse(graph_module).graph_module, [o.refused for o in fuse.analyze(graph_module) if o.action == "to stack"]


def a_rewritten_step_is_the_packages_own(training: bool, dropout: float, device: str, seed: int) -> None:
    model, inputs = draw(training, device, seed, dropout)
    made, refused = rewrite(model, inputs, own_dropout=True)
    assert operators(made) == {"stack_training" if training and dropout else "stack": 1}
    assert refused == [None, None]
    assert_the_packages_own_step(made, model, inputs)


def one_output_will_do(device: str, seed: int) -> None:
    """The other's gradient is None, as those of what is kept for backward are: zeros are made for the first alone."""
    model, inputs = draw(False, device, seed)
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("x", "y", "context")}
    calls = rewrite(model, inputs)[0], graph_package().fuse(model)
    for used in (0, 1):
        found = []
        for call in calls:
            output = call(**inputs | leaves)[used]
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
                wanted = [*leaves.values(), *model.parameters()]
                grads = torch.autograd.grad(output, wanted, output.detach(), allow_unused=True)
            found.append([torch.zeros_like(t) if g is None else g for t, g in zip(wanted, grads, strict=True)])
            assert not [event for event in profiler.events() if event.name == "aten::zeros"]
        assert all(torch.equal(got, want) for got, want in zip(*found, strict=True)), used


def a_compiled_step_is_the_packages_own(training: bool, dropout: float, device: str, seed: int) -> None:
    model, inputs = draw(training, device, seed, dropout)
    graph_package()
    inner, seen = recorder()
    torch._dynamo.reset()
    call = torch.compile(model, backend="mmdit", fullgraph=True, dynamic=True, options={"inner": inner})
    assert_the_packages_own_step(call, model, inputs)
    smaller = {name: t[:2] for name, t in inputs.items()}
    assert_the_packages_own_step(call, model, smaller | {"context": smaller["context"][:, :4]})
    assert operators_of(seen) == PAIR, "compiled once, for any batch and context"


def blocks_that_drop_stay_operators_and_are_told(device: str, seed: int) -> None:
    model, inputs = draw(True, device, seed, 0.3)
    made, refused = rewrite(model, inputs)
    assert not {"stack", "stack_training"} & operators(made).keys()
    assert len(refused) == 2
    assert all("own_dropout=True" in t for t in refused), refused
    model.layers[1].mlp[3].p = 0.5
    made, refused = rewrite(model, inputs, own_dropout=True)
    assert operators(made)["stack_training"] == 1
    assert sorted("different rates" in (t or "") for t in refused) == [False, True], refused


def blocks_without_kernels_for_gradients_stay_operators_and_are_told(device: str, seed: int) -> None:
    model, inputs = draw(True, device, seed, shape=Shape(3, 7, 5, 2, 8))
    made, refused = rewrite(model, inputs)
    assert "stack" not in operators(made)
    assert len(refused) == 2
    assert all("no kernel for: " in t and "head dim" in t for t in refused), refused
