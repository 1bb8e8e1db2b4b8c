"""Small models of a user's own for the graph optimiser, and what makes wrong passes of right graphs.

mmdit.graph is imported inside the tests, where it is the tree under test's.
"""

from collections import Counter
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

aten = torch.ops.aten


def graph_package() -> ModuleType:
    return import_module("mmdit.graph")


class Everything(nn.Module):
    """What passes go wrong on: batch norm, dropout, an eps that matters, a sum of two branches, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.norm, self.batch_norm, self.dropout = nn.LayerNorm(6), nn.BatchNorm1d(8), nn.Dropout(0.25)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.silu(self.batch_norm(self.up(self.norm(x))))
        h = self.dropout(self.down(h))
        return x + h, (h * 2).sum(1)


def in_mode(model: nn.Module, training: bool, dropout: float = 0.0) -> nn.Module:
    """The model in that mode, its dropouts of that probability."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = dropout
    return model.train(training)


def operators(graph_module: fx.GraphModule) -> dict[str, int]:
    """How many fused operators stand in a graph, by name; attention with and without what backward needs is one."""
    names = [str(node.target) for node in graph_module.graph.nodes if str(node.target).startswith("mmdit.")]
    return dict(Counter(name.split(".")[1].removesuffix("_forward") for name in names))


def calls(graph_module: fx.GraphModule, *targets: Any) -> list[fx.Node]:
    found = [node for node in graph_module.graph.nodes if node.target in targets]
    assert found, f"no {targets} in the graph"
    return found


def first(graph_module: fx.GraphModule, *targets: Any) -> fx.Node:
    return calls(graph_module, *targets)[0]


def call_after(node: fx.Node, target: Any, *args: Any) -> None:
    """Give all users of node target(node, *args) instead."""
    with node.graph.inserting_after(node):
        made = node.graph.call_function(target, (node, *args))
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


def set_arguments(node: fx.Node, *args: Any) -> None:
    node.args = args


def swap_outputs(gm: fx.GraphModule) -> None:
    output = gm.graph.output_node()
    output.args = (tuple(reversed(output.args[0])),)


def drop_node(gm: fx.GraphModule, target: Any) -> None:
    node = first(gm, target)
    node.replace_all_uses_with(node.args[0])
    gm.graph.erase_node(node)


def double_weights(gm: fx.GraphModule) -> None:
    next(iter(gm.parameters())).data.mul_(2)


def copy_weight(gm: fx.GraphModule) -> None:
    gm.up.weight = nn.Parameter(gm.up.weight.detach().clone())


def hard_code_the_batch(gm: fx.GraphModule) -> None:
    call_after(first(gm, aten.silu.default), aten.view.default, [4, 8])


def write_to_the_input(gm: fx.GraphModule) -> None:
    output = gm.graph.output_node()
    with gm.graph.inserting_before(output):
        x = next(node for node in gm.graph.nodes if node.op == "placeholder")
        gm.graph.call_function(aten.mul_.Scalar, (gm.graph.call_function(aten.detach.default, (x,)), 2.0))


def fail(gm: fx.GraphModule) -> None:
    raise ZeroDivisionError("a pass with a bug")


def use_before_it_is_made(gm: fx.GraphModule) -> None:
    first(gm, aten.linear.default).append(first(gm, aten.layer_norm.default))


def one_element_off(t: Tensor) -> Tensor:
    mask = torch.ones(t.shape[-1], dtype=torch.bool)
    mask[-1] = False
    return torch.where(mask, t, t * 1.001)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return t.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 1.001 * grad


def scaled_gradient(t: Tensor) -> Tensor:
    return _Scaled.apply(t)


# Each gives a graph that is not the model any more: in its numbers, its gradients, its state, or in one mode alone.
PLANTED: dict[str, Callable[[fx.GraphModule], None]] = {
    "sub-for-add": lambda gm: setattr(calls(gm, aten.add.Tensor)[-1], "target", aten.sub.Tensor),
    "eps-times-ten": lambda gm: set_arguments(n := first(gm, aten.layer_norm.default), *n.args[:4], 1e-4),
    "gelu-for-silu": lambda gm: setattr(first(gm, aten.silu.default), "target", aten.gelu.default),
    "detached-branch": lambda gm: call_after(first(gm, aten.silu.default), aten.detach.default),
    "dropout-left-out-in-train": lambda gm: drop_node(gm, aten.dropout.default),
    "other-dropout-rate": lambda gm: set_arguments(n := first(gm, aten.dropout.default), n.args[0], 0.5, n.args[2]),
    "always-train": lambda gm: set_arguments(n := first(gm, aten.dropout.default), *n.args[:2], True),
    "batch-norm-always-eval": lambda gm: set_arguments(
        n := first(gm, aten.batch_norm.default), *n.args[:5], False, *n.args[6:]
    ),
    "batch-norm-momentum": lambda gm: set_arguments(
        n := first(gm, aten.batch_norm.default), *n.args[:6], 0.5, *n.args[7:]
    ),
    "swapped-outputs": swap_outputs,
    "outputs-in-double": lambda gm: call_after(calls(gm, aten.add.Tensor)[-1], aten.to.dtype, torch.float64),
    "rounded-to-half": lambda gm: (
        call_after(n := first(gm, aten.silu.default), aten.to.dtype, torch.float16),
        call_after(n.next, aten.to.dtype, torch.float32),
    ),
    "fixed-batch": hard_code_the_batch,
    "input-written": write_to_the_input,
    "weights-doubled": double_weights,
    "weight-copied": copy_weight,
    "clamped-where-large": lambda gm: call_after(calls(gm, aten.add.Tensor)[-1], aten.clamp.default, -25.0, 25.0),
    "bias-forgotten": lambda gm: set_arguments(n := calls(gm, aten.linear.default)[-1], *n.args[:2]),
    "not-a-number": lambda gm: call_after(first(gm, aten.silu.default), aten.log.default),
    "one-element-off": lambda gm: call_after(first(gm, aten.silu.default), one_element_off),
    "raises": fail,
    "used-before-it-is-made": use_before_it_is_made,
    "another-axis": lambda gm: set_arguments(n := first(gm, aten.sum.dim_IntList), n.args[0], [0]),
    "gradient-scaled": lambda gm: call_after(first(gm, aten.silu.default), scaled_gradient),
}
