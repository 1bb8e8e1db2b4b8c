"""Checks, for the interpreter's process, of a stack that is copied, cast, traced or forgotten after it has been called,
and of what explain says of the tiers.

mmdit is imported inside the checks, where it is the tree under test.
"""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from tests.cases import Shape
from tests.numerics import TOLERANCE, assert_close, relative_l2
from tests.stack_dispatch import (
    CASE,
    STACK_KERNELS,
    TILED,
    WIDER,
    assert_right,
    by_pytorch,
    drawn,
    in_double,
    run,
    takes_modules,
)
from tests.tiles_tier import Case, launches_of

ROWS_TIER = {
    "fp32-exact": (TILED, "highest", "fp32 products"),
    "wide": (replace(TILED, shape=Shape(1, 7, 5, 9, 16)), "high", "D above 128"),
    "narrow-heads": (replace(TILED, shape=Shape(1, 7, 5, 2, 8)), "high", "head dim"),
    "odd-features": (replace(TILED, forward=100), "high", "F not a multiple of 64"),
}


def explain_tells_the_tiles_tier(case: Case, seed: int) -> None:
    stack, inputs = drawn(case, seed)
    with torch.no_grad():
        ran = run(lambda: stack(**inputs))
    assert ran.launches == launches_of(case, case.sliced)
    ((path, reason),) = ran.decisions
    assert (path, reason) == ("fused", "TRITON_INTERPRET=1; tiles tier")


def explain_tells_the_rows_tier_and_why(name: str, seed: int) -> None:
    case, precision, why = ROWS_TIER[name]
    stack, inputs = drawn(case, seed)
    with torch.no_grad():
        ran = assert_right(lambda: stack(**inputs), precision=precision)
    ((path, reason),) = ran.decisions
    assert path == "fused"
    assert "rows tier, not tiles: " in reason
    assert why in reason
    assert STACK_KERNELS & set(ran.launches) == {"pack_heads_kernel", "gated_residual_kernel"}


def a_dtype_without_kernels_takes_the_modules(dtype: torch.dtype, seed: int) -> None:
    case = replace(WIDER, dtype=dtype)
    stack, inputs = drawn(case, seed)
    with torch.no_grad():
        exact = None if dtype in TOLERANCE else in_double(stack, inputs)
        takes_modules(case, lambda: stack(**inputs), str(dtype), TOLERANCE.get(dtype, 0.0), exact)


def norms_kept_in_fp32_take_the_modules(seed: int) -> None:
    case = replace(WIDER, dtype=torch.float16)
    stack, inputs = drawn(case, seed)
    for module in stack.modules():
        if isinstance(module, import_module("mmdit").RMSNorm):
            module.float()
    with torch.no_grad():
        takes_modules(case, lambda: stack(**inputs), "dtype", exact=in_double(stack, inputs))


def transposed_weights_take_the_modules(seed: int) -> None:
    stack, inputs = drawn(CASE, seed)
    for layer in stack.layers:
        weight = layer.cross_attn.to_out[0].weight
        weight.data = weight.data.mT.contiguous().mT
    with torch.no_grad():
        takes_modules(CASE, lambda: stack(**inputs), "not contiguous")


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda stack: pickle.loads(pickle.dumps(stack)),
}


def a_copy_of_a_used_stack_is_its_own(how: str, seed: int) -> None:
    stack, inputs = drawn(CASE, seed)
    with torch.no_grad():
        first = run(lambda: stack(**inputs), "highest").output
        copied = COPIES[how](stack)
        assert torch.equal(run(lambda: copied(**inputs), "highest").output.x_out, first.x_out)
        for parameter in copied.parameters():
            parameter.mul_(0.5)
        ran = assert_right(lambda: copied(**inputs), precision="highest")
        assert ran.decisions[0][0] == "fused"
        assert relative_l2(ran.output.x_out, first.x_out.double()) > 1e-3
        assert torch.equal(run(lambda: stack(**inputs), "highest").output.x_out, first.x_out), (
            "the original changed with its copy"
        )


def a_used_stack_may_be_cast(seed: int) -> None:
    stack, inputs = drawn(TILED, seed)
    with torch.no_grad():
        run(lambda: stack(**inputs))
        for dtype in (torch.float16, torch.float32):
            stack.to(dtype)
            cast = {name: None if t is None else t.to(dtype) for name, t in inputs.items()}
            exact = in_double(stack, cast) if dtype == torch.float16 else None
            ran = assert_right(lambda cast=cast: stack(**cast), exact=exact)
            assert ran.launches == launches_of(TILED, False)
            assert ran.output.x_out.dtype == dtype


def weights_loaded_into_a_used_stack_are_seen(assign: bool, seed: int) -> None:
    (stack, inputs), (other, _) = drawn(CASE, seed), drawn(CASE, seed + 1)
    with torch.no_grad():
        run(lambda: stack(**inputs), "highest")
        stack.load_state_dict(other.state_dict(), assign=assign)
        got, want = (
            assert_right(lambda m=module: m(**inputs), precision="highest").output for module in (stack, other)
        )
    assert_close(got.x_out, want.x_out, TOLERANCE[torch.float32])


def weights_given_for_one_call_are_seen(seed: int) -> None:
    """By torch.func.functional_call, as those of an average are evaluated."""
    (stack, inputs), (other, _) = drawn(CASE, seed), drawn(CASE, seed + 1)
    state = {name: t.detach() for name, t in other.named_parameters()}
    with torch.no_grad():
        first = run(lambda: stack(**inputs), "highest").output
        called = run(lambda: torch.func.functional_call(stack, state, kwargs=inputs), "highest").output
        assert_close(called.x_out, run(lambda: other(**inputs), "highest").output.x_out, TOLERANCE[torch.float32])
        assert torch.equal(run(lambda: stack(**inputs), "highest").output.x_out, first.x_out)


def a_used_stack_is_freed(seed: int) -> None:
    stack, inputs = drawn(CASE, seed)
    with torch.no_grad():
        assert run(partial(stack, **inputs)).launches
    forgotten = [weakref.ref(module) for module in (stack, stack.layers[1], stack.layers[1].mlp[0])]
    del stack
    gc.collect()
    assert [ref() for ref in forgotten] == [None] * 3


def fake_tensors_take_the_modules(seed: int) -> None:
    stack, inputs = drawn(CASE, seed)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {name: mode.from_tensor(t) if isinstance(t, Tensor) else t for name, t in inputs.items()}
        ran = run(lambda: stack(**fake))
    assert ran.launches == ()
    for got, name in zip(ran.output, ("x", "context"), strict=True):
        assert (type(got), got.shape, got.dtype) == (type(fake[name]), fake[name].shape, fake[name].dtype)


class Halves(Tensor):
    """A weight that is kept as its half, as a quantised one is kept as something else: no address holds its values."""

    @staticmethod
    def __new__(cls, half: Tensor) -> "Halves":
        return Tensor._make_wrapper_subclass(cls, half.shape, dtype=half.dtype, device=half.device)

    def __init__(self, half: Tensor) -> None:
        self.half_of_it = half

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].half_of_it)
        args, kwargs = tree_map(lambda t: 2 * t.half_of_it if isinstance(t, cls) else t, (args, kwargs or {}))
        return func(*args, **kwargs)


def a_weight_of_a_subclass_takes_the_modules(seed: int) -> None:
    stack, inputs = drawn(TILED, seed)
    linear = stack.layers[1].mlp[0]
    with torch.no_grad():
        want = by_pytorch(lambda: stack(**inputs))
        linear.weight = nn.Parameter(Halves(linear.weight.detach() / 2), requires_grad=False)
        ran = run(lambda: stack(**inputs))
    assert_close(ran.output.x_out, want.x_out, TOLERANCE[torch.float32])
