"""Checks of the fused path that run in the interpreter's process (see tests/interpreter.py); each raises or returns.

mmdit is imported inside the checks, where it is the tree under test.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.utils._python_dispatch import TorchDispatchMode

from tests.adaln import VARIANTS, adaln_inputs, adaln_values, assert_adaln_matches_oracle
from tests.cases import BLOCK_CROSS, CROSS, MASKS, SELF, SMALL, STACK, Shape, random_mask
from tests.numerics import TOLERANCE, assert_close
from tests.verify import assert_inference_matches_oracle, assert_matches_oracle, build, draw_inputs

Size = tuple[int, int, int]
FUSED_KINDS = {"block": BLOCK_CROSS, "stack": STACK}
INFERENCE_KINDS = {"self": SELF, "cross": CROSS, **FUSED_KINDS}


@contextmanager
def counted_kernels() -> Iterator[list[str]]:
    """The names of the kernels that Triton's interpreter really runs, as it runs them."""
    executor = import_module("triton.runtime.interpreter").GridExecutor
    names: list[str] = []

    def call(self: Any, *args: Any, run: Callable[..., None] = executor.__call__, **kwargs: Any) -> None:
        names.append(self.fn.__name__)
        run(self, *args, **kwargs)

    with patch.object(executor, "__call__", call):
        yield names


def seeded(seed: int) -> torch.Generator:
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def matches_the_oracle(op: str, size: Size, dtype: torch.dtype, variant: str, seed: int) -> None:
    mmdit = import_module("mmdit")
    inputs = VARIANTS[variant](adaln_inputs(op, size, seeded(seed)))
    explanation = mmdit.explain(assert_adaln_matches_oracle, mmdit, op, inputs, dtype)
    assert explanation.path == "fused", str(explanation)


def says_what_it_launched(op: str, seed: int) -> None:
    mmdit = import_module("mmdit")
    inputs = adaln_inputs(op, (2, 7, 16), seeded(seed))
    with counted_kernels() as forward:
        explanation = mmdit.explain(getattr(mmdit, op), **inputs)
    assert explanation.path == "fused", str(explanation)
    assert {decision.op for decision in explanation.decisions} == {op}
    assert forward, "no kernel ran"
    assert list(explanation.launches) == forward
    assert all(name in str(explanation) for name in forward)
    with counted_kernels() as both:
        explanation = mmdit.explain(adaln_values, getattr(mmdit, op), inputs, torch.float32)
    assert list(explanation.launches) == both
    assert set(both) > set(forward), "backward launched no kernel of its own"


def takes_pytorch_for_what_it_cannot_do(op: str, dtype: torch.dtype, seed: int) -> None:
    mmdit = import_module("mmdit")
    inputs = {name: t.to(dtype) for name, t in adaln_inputs(op, (2, 7, 16), seeded(seed)).items()}
    with counted_kernels() as launched:
        explanation = mmdit.explain(getattr(mmdit, op), **inputs)
    assert (explanation.path, launched) == ("pytorch", [])
    assert str(dtype) in str(explanation)


def two_runs_give_the_same_bits(op: str, seed: int) -> None:
    mmdit, inputs = import_module("mmdit"), adaln_inputs(op, (3, 70, 100), seeded(seed))
    with counted_kernels() as launched:
        first, second = (adaln_values(getattr(mmdit, op), inputs, torch.float32) for _ in range(2))
    assert launched, "no kernel ran"
    for name, t in {**first.outputs, **first.gradients}.items():
        assert torch.equal(t, {**second.outputs, **second.gradients}[name]), f"{name} differs between two runs"


def module_matches_the_oracle(kind: str, seed: int) -> None:
    mmdit, rng = import_module("mmdit"), seeded(seed)
    module, inputs = build(mmdit, FUSED_KINDS[kind], SMALL, rng), draw_inputs(FUSED_KINDS[kind], SMALL, rng)
    with counted_kernels() as launched:
        explanation = mmdit.explain(assert_matches_oracle, module, FUSED_KINDS[kind], SMALL, inputs, rng)
    assert "fused" in {decision.path for decision in explanation.decisions}, str(explanation)
    assert list(explanation.launches) == launched


def inference_takes_only_kernels(
    name: str, shape: Shape, dtype: torch.dtype, mask: str | None, gain: float, seed: int
) -> None:
    """gain: factor of the norm weights of queries and keys, so that logits grow with its square."""
    mmdit, rng, kind = import_module("mmdit"), seeded(seed), INFERENCE_KINDS[name]
    module = build(mmdit, kind, shape, rng)
    for name, parameter in module.named_parameters():
        if "rms_norm_" in name:
            parameter.data.mul_(gain)
    inputs = {name: t.to(dtype) for name, t in draw_inputs(kind, shape, rng).items()}
    attn_mask = None if mask is None else MASKS[mask](random_mask(shape, rng))
    check = partial(assert_inference_matches_oracle, module.to(dtype), kind, shape, inputs, attn_mask=attn_mask)
    with counted_kernels() as launched:
        explanation = mmdit.explain(check)
    assert explanation.path == "fused", str(explanation)
    assert list(explanation.launches) == launched


def wide_heads_take_pytorch(dtype: torch.dtype, dim_head: int, seed: int) -> None:
    rng, shape = seeded(seed), Shape(1, 5, 3, 1, dim_head)
    module = build(import_module("mmdit"), CROSS, shape, rng).to(dtype)
    inputs = {name: t.to(dtype) for name, t in draw_inputs(CROSS, shape, rng).items()}
    with torch.no_grad(), counted_kernels() as launched:
        explanation = import_module("mmdit").explain(module, **inputs)
    assert (explanation.path, launched) == ("pytorch", [])
    assert "head dim" in str(explanation)


class OpCalls(TorchDispatchMode):
    """Records every call of an op of the package's own library, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "mmdit":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def leaf(value: Any, requires_grad: bool, dtype: torch.dtype | None = None) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().to(dtype or value.dtype).requires_grad_(requires_grad)


def op_calls(op: str, size: Size, seed: int) -> tuple[OpCalls, OpCalls]:
    """The op calls that one forward and its backward make."""
    function, inputs = getattr(import_module("mmdit"), op), adaln_inputs(op, size, seeded(seed))
    leaves = {name: t.requires_grad_() for name, t in inputs.items()}
    with OpCalls() as forward:
        out = function(**leaves)
    with OpCalls() as backward:
        torch.autograd.grad(out, list(leaves.values()), torch.randn(out.shape))
    assert forward.calls, "forward called no op of torch.ops.mmdit"
    assert backward.calls, "backward called no op of torch.ops.mmdit"
    return forward, backward


def ops_pass_opcheck(op: str, seed: int) -> None:
    for recorded, requires_grad in zip(op_calls(op, (2, 7, 16), seed), (True, False), strict=True):
        for func, args, kwargs in recorded.calls:
            torch.library.opcheck(func, tuple(leaf(a, requires_grad) for a in args), kwargs)


def forward_op_passes_gradcheck(op: str, seed: int) -> None:
    for func, args, kwargs in op_calls(op, (2, 2, 3), seed)[0].calls:
        doubles = tuple(leaf(a, True, torch.float64) for a in args)
        assert torch.autograd.gradcheck(lambda *a, func=func, kwargs=kwargs: func(*a, **kwargs), doubles)


def compiled_values(call: Callable[[], Tensor], leaves: list[Tensor]) -> tuple[Tensor, list[Tensor], list[set[str]]]:
    """Output, gradients, and the targets in the forward and the backward graph, of call compiled in full."""
    graphs: list[set[str]] = []

    def record(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    out = torch.compile(call, fullgraph=True, backend=aot_autograd(fw_compiler=record, bw_compiler=record))()
    gradients = torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True, materialize_grads=True)
    return out, list(gradients), graphs


def compiles_whole(call: Callable[[], Tensor], leaves: list[Tensor]) -> None:
    want = call()
    gradients = torch.autograd.grad(want, leaves, torch.ones_like(want), allow_unused=True, materialize_grads=True)
    got, compiled, graphs = compiled_values(call, leaves)
    assert len(graphs) == 2, f"expected a forward and a backward graph, got {len(graphs)}"
    for graph in graphs:
        assert any(target.startswith("mmdit.") for target in graph), f"no fused op in {sorted(graph)}"
    for mine, wanted in zip((got, *compiled), (want, *gradients), strict=True):
        assert_close(mine, wanted, TOLERANCE[torch.float32])


def op_compiles_whole(op: str, seed: int) -> None:
    function = getattr(import_module("mmdit"), op)
    inputs = {name: t.requires_grad_() for name, t in adaln_inputs(op, (2, 7, 16), seeded(seed)).items()}
    compiles_whole(lambda: function(**inputs), list(inputs.values()))


def module_compiles_whole(kind: str, seed: int) -> None:
    rng = seeded(seed)
    module = build(import_module("mmdit"), FUSED_KINDS[kind], SMALL, rng)
    inputs = draw_inputs(FUSED_KINDS[kind], SMALL, rng)
    leaves = [t.requires_grad_() for t in inputs.values()]
    compiles_whole(lambda: module(**inputs).x_out, [*leaves, *module.parameters()])
