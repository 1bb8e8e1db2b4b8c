"""Checks, for the interpreter's process, of a stack under torch.compile: one operator where it can be, else modules.

mmdit is imported inside the checks, where it is the tree under test.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from tests.graph_models import operators
from tests.numerics import TOLERANCE, assert_close
from tests.stack_dispatch import CASE, CHANGES, OBSTACLES, SIZES, TILED, by_pytorch, drawn, run
from tests.stack_state import Halves


def drop_half(stack: nn.Module) -> None:
    for part in stack.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
            part.train()


def subclass_weight(stack: nn.Module) -> None:
    linear = stack.layers[1].mlp[0]
    linear.weight = nn.Parameter(Halves(linear.weight.detach() / 2), requires_grad=False)


# What is altered before the stack is compiled.
ALTERED: dict[str, Callable[[nn.Module], Any]] = {
    **{f"obstacle-{name}": alter for name, alter in OBSTACLES.items()},
    **CHANGES,
    "dropout": drop_half,
    "weight-of-a-subclass": subclass_weight,
}
WEIGHTS = 8  # the operator's argument
# What of that leaves blocks that can be run as one.
WHOLE = {*CHANGES} - {"hooked", "subclassed", "layer-of-other-heads"}


def compiled(stack: nn.Module, **options: Any) -> tuple[Callable[..., Any], list[fx.GraphModule]]:
    """The stack compiled, and the graphs that were."""
    seen: list[fx.GraphModule] = []

    def keep(graph_module: fx.GraphModule, inputs: Any) -> Any:
        seen.append(graph_module)
        return graph_module.forward

    torch._dynamo.reset()
    return torch.compile(stack, backend=keep, **options), seen


def a_compiled_stack_is_one_operator_with_the_kernels_of_a_call(seed: int) -> None:
    stack, inputs = drawn(TILED, seed)
    call, seen = compiled(stack, fullgraph=True)
    with torch.no_grad():
        ran, own = run(partial(call, **inputs)), run(partial(stack, **inputs))
        want = by_pytorch(partial(stack, **inputs))
    assert ran.launches == own.launches != ()
    assert [operators(graph_module) for graph_module in seen] == [{"stack": 1}]
    for got, own_output, wanted in zip(ran.output, own.output, want, strict=True):
        assert torch.equal(got, own_output)
        assert_close(got, wanted, TOLERANCE[torch.float32])


def a_compiled_stack_that_was_altered_is_right(name: str, seed: int) -> None:
    stack, inputs = drawn(TILED if name in SIZES else CASE, seed)
    ALTERED[name](stack)
    call, seen = compiled(stack)
    with torch.no_grad():
        got, want = run(lambda: call(**inputs), "highest").output, by_pytorch(lambda: stack(**inputs))
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, TOLERANCE[torch.float32])
    calls = [n for graph_module in seen for n in graph_module.graph.nodes if n.target is torch.ops.mmdit.stack.default]
    weights = [len(node.args[WEIGHTS]) for node in calls]
    whole = weights == [len(list(stack.parameters()))]
    assert whole == (name in WHOLE), f"{name}: operators of {weights} weights"


def a_compiled_stack_under_autocast_or_with_gradients_keeps_its_modules(seed: int) -> None:
    stack, inputs = drawn(CASE, seed)
    call, seen = compiled(stack, fullgraph=True)
    with torch.no_grad():
        call(**inputs)
        with torch.autocast("cpu", torch.bfloat16):
            call(**inputs)
    inputs["x"].requires_grad_()
    call(**inputs)
    assert [operators(graph_module).get("stack", 0) for graph_module in seen] == [1, 0, 0]
