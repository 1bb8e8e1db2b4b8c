"""SPEC G3: what is computed twice is computed once, and what only looks so is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from tests.graph_models import graph_package

pytestmark = pytest.mark.upgrade

METHODS = ("export", "fx")


class Counter(nn.Module):
    """Gives another value at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x * self.count.clone()


class Normalise(nn.BatchNorm1d):
    """BatchNorm by another name."""


class Of(nn.Module):
    """A module of a function and its parts."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def in_place_between(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 2
    b = torch.exp(a)
    a.add_(1)
    return b + torch.exp(a)


def in_place_on_a_copy(m: nn.Module, x: Tensor) -> Tensor:
    a, b = x * 2, x * 2
    a.add_(1)
    return a * b


def in_place_on_a_later_copy(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 2
    b = x * 2
    b.mul_(3)
    return a - b


def aliasing_views(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 2
    b = torch.exp(a)
    a.view(-1)[1:3].zero_()
    return b + torch.exp(a)


def views_of_one_tensor(m: nn.Module, x: Tensor) -> Tensor:
    a = x * 2
    first, second = a.view(-1), a.view(-1)
    first.add_(1)
    return second * 2


def autocast_regions(m: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        a = torch.mm(x, x.t())
    return a.float() + torch.mm(x, x.t())


def no_grad_regions(m: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        a = torch.exp(x)
    return a + torch.exp(x)


def five_copies(m: nn.Module, x: Tensor) -> Tensor:
    return sum(torch.relu(torch.exp(x) + 1) for _ in range(5))


def across_branches(m: nn.Module, x: Tensor) -> Tensor:
    left, right = m.a(torch.exp(x)), m.b(torch.exp(x))
    return left * torch.tanh(left) + right * torch.tanh(left)


def methods_and_operators(m: nn.Module, x: Tensor) -> Tensor:
    return (x.exp() * x.exp() + (x + 1)) * (x + 1)


KEPT: dict[str, Of | Callable[[], Of]] = {
    "dropout-twice": lambda: Of(lambda m, x: m.d(x) + m.d(x), d=nn.Dropout(0.5)),
    "functional-dropout-twice": lambda: Of(lambda m, x: F.dropout(x, 0.5) + F.dropout(x, 0.5)),
    "batch-norm": lambda: Of(lambda m, x: m.n(x) + m.n(x), n=nn.BatchNorm1d(4)),
    "batch-norm-renamed": lambda: Of(lambda m, x: m.n(x) + m.n(x), n=Normalise(4)),
    "functional-batch-norm": lambda: Of(
        lambda m, x: (
            F.batch_norm(x, m.n.running_mean, m.n.running_var, training=True)
            + F.batch_norm(x, m.n.running_mean, m.n.running_var, training=True)
        ),
        n=nn.BatchNorm1d(4),
    ),
    "in-place-between": lambda: Of(in_place_between),
    "in-place-on-a-copy": lambda: Of(in_place_on_a_copy),
    "in-place-on-a-later-copy": lambda: Of(in_place_on_a_later_copy),
    "aliasing-views": lambda: Of(aliasing_views),
    "rand-like": lambda: Of(lambda m, x: torch.rand_like(x) + torch.rand_like(x) * 2),
    "counter": lambda: Of(lambda m, x: m.c(x) + m.c(x) * 2, c=Counter()),
    "autocast": lambda: Of(autocast_regions),
    "no-grad": lambda: Of(no_grad_regions),
    "int-and-float": lambda: Of(lambda m, x: torch.full((4,), 1) / 2 + torch.full((4,), 1.0) / 2 + x),
    "two-outputs": lambda: Of(lambda m, x: (x * 2, x * 2)),
}
NOT_BY_FX = ("batch-norm-renamed", "counter", "autocast", "no-grad")  # it traces through them, or past them
# Not even candidates: other constants, what a write gave, or graphs of their own.
UNLIKE = ("int-and-float", "in-place-between", "counter", "autocast", "no-grad")
# What is merged: the model, and how many nodes fewer that is.
MERGED: dict[str, tuple[Callable[[], Of], int]] = {
    "five-copies": (lambda: Of(five_copies), 12),
    "across-branches": (lambda: Of(across_branches, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), 2),
    "methods-and-operators": (lambda: Of(methods_and_operators), 2),
    "modules": (lambda: Of(lambda m, x: m.a(x) * m.a(x), a=nn.Linear(4, 4)), 1),
    "views-of-one-tensor": (lambda: Of(views_of_one_tensor), 1),
    "kwargs-order": (
        lambda: Of(lambda m, x: torch.sum(x, dim=1, keepdim=True) * torch.sum(x, keepdim=True, dim=1)),
        1,
    ),
    "multiple-outputs": (lambda: Of(lambda m, x: x.max(dim=1)[0] + x.max(dim=1)[0] * 2), 2),
    "weights-read-twice": (lambda: Of(lambda m, x: x @ m.a.weight + x @ m.a.weight, a=nn.Linear(4, 4)), 1),
}


def optimised(model: nn.Module, method: str) -> tuple[Any, dict[str, Any]]:
    opt = graph_package().GraphOptimizer(model, torch.randn(3, 4), method=method, repeats=0, batches=())
    made = opt.optimize(["redundant_ops"], strict=True)
    return made, opt.report().to_dict()["passes"][0]


def size(told: dict[str, Any], when: str, mode: str) -> int:
    return sum(count for op, count in told[f"nodes_{when}"][mode].items() if op.startswith("call_"))


@pytest.mark.parametrize("name", NOT_BY_FX)
def test_what_fx_traces_wrong_is_refused_with_a_way_out(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    with pytest.raises(graph_package().TraceError, match="export"):
        optimised(KEPT[name](), "fx")


@pytest.mark.parametrize(("name", "method"), [(n, m) for n in KEPT for m in METHODS if m != "fx" or n not in NOT_BY_FX])
def test_what_only_looks_the_same_is_kept_apart_and_told_why(name: str, method: str, seed: int) -> None:
    torch.manual_seed(seed)
    _, told = optimised(KEPT[name]().train(), method)
    assert told["error"] <= 1e-6
    found = told["opportunities"]["train"]
    assert all(o["refused"] for o in found), found
    assert any(o["refused"] for o in found) or name in UNLIKE, found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MERGED)
def test_what_is_the_same_is_computed_once(name: str, method: str, seed: int) -> None:
    torch.manual_seed(seed)
    model, fewer = MERGED[name]
    _, told = optimised(model(), method)
    assert size(told, "before", "eval") - size(told, "after", "eval") >= fewer, told["opportunities"]["eval"]
    assert told["error"] <= 1e-5


def test_batch_norm_and_dropout_are_merged_in_evaluation_alone() -> None:
    model = Of(lambda m, x: m.d(m.n(x)) + m.d(m.n(x)), n=nn.BatchNorm1d(4), d=nn.Dropout(0.5))
    _, told = optimised(model, "fx")
    assert size(told, "before", "eval") - size(told, "after", "eval") == 2
    assert size(told, "before", "train") == size(told, "after", "train")


seen: list[str] = []


@fx.wrap
def log_and_double(x: Tensor) -> Tensor:
    seen.append("called")
    return x * 2


def test_a_function_of_the_users_own_is_called_as_often_as_before() -> None:
    made, told = optimised(Of(lambda m, x: log_and_double(x) + log_and_double(x)), "fx")
    assert [o["refused"] for o in told["opportunities"]["eval"]] == ["the user's own, which may do more than it shows"]
    seen.clear()
    made(torch.randn(3, 4))
    assert len(seen) == 2


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "double": lambda t: t * 2,
    "method": lambda t: t.tanh(),
    "flat": lambda t: t.view(-1).view(3, 4),
    "transposed": lambda t: t.t().t(),
    "row": lambda t: t[:1].expand(3, 4),
    "random": lambda t: t + torch.rand_like(t),
    "dropout": lambda t: F.dropout(t, 0.5),
    "clone": lambda t: t.clone(),
}
WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add_": lambda t, o: t.add_(o),
    "mul_": lambda t, o: t.mul_(0.5),
    "row_": lambda t, o: t[1].zero_(),
    "flat_": lambda t, o: t.view(-1)[2:5].fill_(0.25),
}
STEP = st.tuples(st.sampled_from([*UNARY, *WRITES, "add", "mul"]), st.integers(0, 99), st.integers(0, 99))


def program(steps: list[tuple[str, int, int]], x: Tensor) -> Tensor:
    """Runs steps over a growing list of values; a write is to a clone's alias, never to x."""
    values = [x, x * 1.5, x * 1.5]
    for name, i, j in steps:
        one, other = values[i % len(values)], values[j % len(values)]
        if name in UNARY:
            values.append(UNARY[name](one))
        elif name == "add":
            values.append(one + other)
        elif name == "mul":
            values.append(one * other)
        else:
            target = values[1 + i % (len(values) - 1)]
            if target.is_contiguous() and 0 not in target.stride():
                WRITES[name](target, other)
    return sum(value * (n + 1) for n, value in enumerate(values))


@settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=1, max_size=12), seed=st.integers(0, 2**31 - 1))
def test_random_graphs_give_what_eager_gives(steps: list[tuple[str, int, int]], seed: int) -> None:
    check_random_graph(steps, seed)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=1, max_size=30), seed=st.integers(0, 2**31 - 1))
def test_many_random_graphs_give_what_eager_gives(steps: list[tuple[str, int, int]], seed: int) -> None:
    check_random_graph(steps, seed)


def check_random_graph(steps: list[tuple[str, int, int]], seed: int) -> None:
    graph_package()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))

    def run(call: Callable[[Tensor], Tensor]) -> Tensor:
        torch.manual_seed(seed)
        return call(x.clone())

    def fails(call: Callable[[Tensor], Tensor]) -> bool:
        try:
            run(call)
        except RuntimeError:
            return True
        return False

    if fails(lambda t: program(steps, t)):
        return  # no program: a write to more than one place at once
    traced = recorded(steps, x)
    result = graph_package().find_pass("redundant_ops")()(traced)
    want, got = run(lambda t: program(steps, t)), run(result.graph_module)
    assert torch.equal(got, want), result.graph_module.code
    assert len(result.graph_module.graph.nodes) <= len(traced.graph.nodes)


def recorded(steps: list[tuple[str, int, int]], x: Tensor) -> fx.GraphModule:
    """The program as a graph of ATen operators, in place writes and all."""
    from torch.fx.experimental.proxy_tensor import make_fx

    traced = make_fx(lambda t: program(steps, t), pre_dispatch=True)(x.clone())
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            node.meta["val"] = x
    return traced
