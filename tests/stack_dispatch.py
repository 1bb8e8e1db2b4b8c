"""Checks, for the interpreter's process, of the path that a stack takes once something in it is altered.

mmdit is imported inside the checks, where it is the tree under test. Right numbers are those of PyTorch's arithmetic,
which MMDIT_FUSED=0 would give.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from tests.cases import Shape
from tests.kernels import counted_kernels, seeded
from tests.numerics import TOLERANCE, assert_accurate, assert_close, relative_l2
from tests.tiles_tier import Case, draw_call, draw_stack, fp32_products, outputs_of
from tests.verify import spread_weights

CASE = Case("cross", Shape(1, 2, 1, 2, 4), torch.float32, 16)  # in the rows tier: soon interpreted
TILED = Case("cross", Shape(1, 3, 2, 2, 16), torch.float32, 64)
STACK_KERNELS = {"qkv_kernel", "rows_kernel", "sum_kernel", "pack_heads_kernel", "gated_residual_kernel"}
WIDER = Case("cross", Shape(2, 7, 5, 2, 16), torch.float32, 64)  # errors of 16 bits scatter where numbers are few

Call = Callable[[], Any]


class Doubled(nn.Module):
    def forward(self, t: Tensor) -> Tensor:
        return 2 * t


class DoubledLinear(nn.Linear):
    def forward(self, t: Tensor) -> Tensor:
        return 2 * super().forward(t)


def double_the_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def double_x(layer: nn.Module, inputs: Any, output: Any) -> Any:
    return output._replace(x_out=2 * output.x_out)


def new_layer(stack: nn.Module, **changes: Any) -> nn.Module:
    """Another MMDiTBlock in the place of the middle layer."""
    config = asdict(stack.config) | changes
    del config["num_layers"]
    block = import_module("mmdit").MMDiTBlock(**config)
    stack.layers[1] = spread_weights(block, seeded(1)).eval()
    return stack.layers[1]


def new_context_mlp(stack: nn.Module, forward: int) -> None:
    dim = stack.config.dim_base
    mlp = nn.Sequential(nn.Linear(dim, forward), nn.SiLU(), nn.Linear(forward, dim), nn.Dropout())
    stack.layers[1].context_layers["mlp"] = spread_weights(mlp, seeded(1)).eval()


def new_linear(stack: nn.Module, **options: Any) -> None:
    stack.layers[1].mlp[0] = nn.Linear(stack.config.dim_base, stack.config.dim_feedforward, **options)


def subclassed_layer(stack: nn.Module) -> None:
    block = type(stack.layers[1])

    class Twice(block):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return double_x(self, None, super().forward(*args, **kwargs))

    stack.layers[1].__class__ = Twice


def subclassed_linear(stack: nn.Module) -> None:
    linear = DoubledLinear(stack.config.dim_base, stack.config.dim_feedforward)
    linear.load_state_dict(stack.layers[1].mlp[0].state_dict())
    stack.layers[1].mlp[0] = linear


def set_eps(stack: nn.Module) -> None:
    stack.layers[1].cross_attn.rms_norm_q.eps = 8.0


def replace_norm(stack: nn.Module) -> None:
    stack.layers[1].cross_attn.c_rms_norm_k = import_module("mmdit").RMSNorm(stack.config.dim_base, 8.0)


def own_forward(stack: nn.Module) -> None:
    module = stack.layers[1].mlp[1]
    module.forward = lambda t, forward=module.forward: 2 * forward(t)


def linear_attention(stack: nn.Module) -> None:
    attention = import_module("mmdit").RMSNormSelfCrossAttention(
        stack.config.dim_base, 2, use_context=True, linear=True
    )
    attention.load_state_dict(stack.layers[1].cross_attn.state_dict())
    stack.layers[1].cross_attn = attention


def without_output_norm(stack: nn.Module) -> None:
    stack.layers[1].cross_attn.to_out = nn.Sequential(stack.layers[1].cross_attn.to_out[0])


def parametrized(stack: nn.Module) -> None:
    parametrize.register_parametrization(stack.layers[1].mlp[0], "weight", Doubled())


# What makes calling the parts the only right way, so that the layer takes its modules, and says why.
OBSTACLES: dict[str, Callable[[nn.Module], Any]] = {
    "hook": lambda s: s.layers[1].mlp[0].register_forward_hook(double_the_output),
    "hook-on-a-container": lambda s: s.layers[1].context_layers["mlp"].register_forward_hook(double_the_output),
    "pre-hook": lambda s: s.layers[1].cross_attn.to_qkv.register_forward_pre_hook(lambda m, i: (2 * i[0] + 1,)),
    "forward-of-its-own": own_forward,
    "subclassed-linear": subclassed_linear,
    "eps-set": set_eps,
    "norm-of-another-eps": replace_norm,
    "other-activation": lambda s: s.layers[1].mlp.__setitem__(1, nn.GELU()),
    "no-activation": lambda s: s.layers[1].mlp.__setitem__(1, nn.Sequential()),
    "one-more-part": lambda s: s.layers[1].mlp.append(nn.SiLU()),
    "linear-without-bias": lambda s: new_linear(s, bias=False),
    "no-output-norm": without_output_norm,
    "linear-attention": linear_attention,
    "parametrized": parametrized,
    "pruned": lambda s: prune.random_unstructured(s.layers[1].mlp[0], "weight", 0.5),
}
# What makes calling the layers the only right way.
OWN_LAYERS: dict[str, Callable[[nn.Module], Any]] = {
    "hooked": lambda s: s.layers[1].register_forward_hook(double_x),
    "subclassed": subclassed_layer,
}
# What gives one layer or one stream sizes of its own.
SIZES: dict[str, Callable[[nn.Module], Any]] = {
    "layer-of-other-heads": lambda s: new_layer(s, num_attn_head=1),
    "layer-of-other-features": lambda s: new_layer(s, dim_feedforward=128),
    "layer-of-odd-features": lambda s: new_layer(s, dim_feedforward=100),
    "wider-context-mlp": lambda s: new_context_mlp(s, 128),
}
# What the numbers must follow, whichever way the stack is called.
CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    **OWN_LAYERS,
    "another-layer": new_layer,
    **SIZES,
    "a-layer-less": lambda s: s.layers.__delitem__(1),
    "linear-replaced": new_linear,
    "parameter-replaced": lambda s: setattr(s.layers[1].mlp[0], "weight", nn.Parameter(-s.layers[1].mlp[0].weight)),
    "weight-changed-in-place": lambda s: s.layers[1].mlp[0].weight.data.neg_(),
    "condition-changed-in-place": lambda s: s.layers[1].adaLN_modulation[1].bias.data.add_(1),
    "norm-changed-in-place": lambda s: s.layers[1].cross_attn.rms_norm_q.weight.data.neg_(),
}


class Ran(NamedTuple):
    output: Any
    decisions: tuple[tuple[str, str], ...]  # path and reason of every one about a stack of blocks
    launches: tuple[str, ...]


def run(call: Call, precision: str = "high") -> Ran:
    got: list[Any] = []
    with fp32_products(precision), counted_kernels() as launched:
        explanation = import_module("mmdit").explain(lambda: got.append(call()))
    assert list(explanation.launches) == launched
    decisions = tuple((d.path, d.reason) for d in explanation.decisions if d.op == "stack")
    return Ran(got[0], decisions, explanation.launches)


def by_pytorch(call: Call) -> Any:
    with patch.object(import_module("mmdit.runtime.dispatch"), "FUSED", False), torch.random.fork_rng([]):
        return call()


def in_double(stack: nn.Module, inputs: dict[str, Any]) -> Call:
    """The same call in fp64."""
    exact = copy.deepcopy(stack).double()
    doubles = {n: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for n, t in inputs.items()}
    return torch.autocast("cpu", enabled=False)(lambda: exact(**doubles))


def assert_right(
    call: Call, tolerance: float = TOLERANCE[torch.float32], precision: str = "high", exact: Call | None = None
) -> Ran:
    """Within the tolerance of what PyTorch gives, in its dtype; with `exact`, for 16 bits, as near to it as PyTorch."""
    ran, want = run(call, precision), by_pytorch(call)
    for got, wanted in zip(ran.output, want, strict=True):
        assert got.dtype == wanted.dtype
        if exact is None:
            assert_close(got, wanted, tolerance)
    if exact is not None:
        values = {torch.float64: by_pytorch(exact), torch.float16: want}
        assert_accurate(outputs_of(ran.output), lambda precision: outputs_of(values[precision]), torch.float16)
    return ran


def drawn(case: Case, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    rng = seeded(seed)
    stack = draw_stack(case, rng).to(case.dtype)
    inputs, options = draw_call(case, "cpu", rng)
    return stack, inputs | options


def altered(alter: Callable[[nn.Module], Any], used: bool, case: Case, precision: str, seed: int) -> Ran:
    """A call of a stack that was altered, after a first call if used; its numbers are right, and others than before."""
    stack, inputs = drawn(case, seed)
    with torch.no_grad():
        before = run(lambda: stack(**inputs), precision).output if used else by_pytorch(lambda: stack(**inputs))
        alter(stack)
        ran = assert_right(lambda: stack(**inputs), precision=precision)
    differences = [relative_l2(now, then.double()) for now, then in zip(ran.output, before, strict=True)]
    assert max(differences) > 10 * TOLERANCE[torch.float32], "the alteration changes nothing"
    return ran


def an_obstacle_sends_its_layer_to_the_modules(name: str, used: bool, seed: int) -> None:
    ran = altered(OBSTACLES[name], used, CASE, "highest", seed)
    told = [path for path, reason in ran.decisions if "parts or hooks" in reason]
    assert told == ["pytorch"] * 2, f"the stack, and the layer: {ran.decisions}"
    assert ran.launches.count("pack_heads_kernel") == 1, f"the other layer is not fused: {ran.launches}"


def a_change_is_seen(name: str, used: bool, seed: int) -> None:
    case, precision = (TILED, "high") if name in SIZES else (CASE, "highest")
    altered(CHANGES[name], used, case, precision, seed)


def a_layer_of_its_own_is_called_and_told(name: str, seed: int) -> None:
    ran = altered(OWN_LAYERS[name], False, CASE, "highest", seed)
    assert any(path == "pytorch" and "layer" in reason for path, reason in ran.decisions), ran.decisions


def a_global_hook_is_called(seed: int) -> None:
    stack, inputs = drawn(CASE, seed)
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: 2 * o if isinstance(m, nn.Linear) else None)
    try:
        with torch.no_grad():
            ran = assert_right(lambda: stack(**inputs))
    finally:
        handle.remove()
    assert not STACK_KERNELS & set(ran.launches), ran.launches


def takes_modules(
    case: Case, call: Call, reason: str, tolerance: float = TOLERANCE[torch.float32], exact: Call | None = None
) -> None:
    """Every decision about a stack of blocks is for PyTorch, and told."""
    ran = assert_right(call, tolerance, exact=exact)
    assert len(ran.decisions) == 1 + case.layers, ran.decisions
    assert {path for path, _ in ran.decisions} == {"pytorch"}, ran.decisions
    assert all(reason in told for _, told in ran.decisions), ran.decisions
    assert not STACK_KERNELS & set(ran.launches), ran.launches


def recorded_gradients_take_the_modules_and_arrive(of: str, seed: int) -> None:
    """of: "weights", or the one input that gradients are wanted of."""
    stack, inputs = drawn(CASE, seed)
    stack.requires_grad_(of == "weights")
    leaf = stack.layers[1].mlp[0].weight if of == "weights" else inputs[of].requires_grad_()

    def gradient() -> tuple[Tensor, ...]:
        x_out, context_out = stack(**inputs)
        assert x_out.requires_grad, f"no gradient is recorded for {of}"
        return torch.autograd.grad(x_out.sin().sum() + context_out.sin().sum(), leaf)

    takes_modules(CASE, gradient, "gradients", 1e-4)


def dropout_in_training_takes_the_modules(which: str, seed: int) -> None:
    """which: the modules in training mode."""
    stack, inputs = drawn(CASE, seed)
    for layer in stack.layers:
        layer.mlp[3].p = layer.context_layers["mlp"][3].p = 0.5
    if which == "context-dropouts-of-training-layers":
        for layer in stack.train().layers:
            layer.mlp[3].p = 0.0
    elif which == "dropouts":
        for module in stack.modules():
            module.train(isinstance(module, nn.Dropout))
    else:
        stack.train()
    with torch.no_grad():
        takes_modules(CASE, lambda: stack(**inputs), "dropout")


def autocast_takes_the_modules(seed: int) -> None:
    stack, inputs = drawn(WIDER, seed)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        takes_modules(WIDER, lambda: stack(**inputs), "autocast", exact=in_double(stack, inputs))
