"""SPEC G5: the graph of a vanilla model, or of a look-alike, rewritten to the fused operators."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tests import kernels
from tests.cases import BLOCK_CROSS, SELF, Shape
from tests.graph_models import graph_package, operators
from tests.look_alikes import JointBlock
from tests.numerics import NEGLIGIBLE, TOLERANCE, Values, assert_accurate, assert_close, errors, evaluate
from tests.quick import slow_unless
from tests.vanilla import vanilla
from tests.verify import build, draw_inputs, spread_weights

pytestmark = pytest.mark.upgrade

SHAPE = Shape(3, 7, 5, 2, 8)
STREAMS = {"norm_adaln": 2, "gated_residual": 4, "pack_heads": 1, "joint_attention": 1}


def optimised(model: nn.Module, inputs: Any) -> tuple[Any, Any]:
    opt = graph_package().GraphOptimizer(model, inputs, repeats=0, batches=(2,))
    return opt.optimize(["redundant_ops", "fuse_mmdit"], strict=True), opt


def fused(model: nn.Module, inputs: dict[str, Any]) -> tuple[fx.GraphModule, list[str]]:
    """The graph in evaluation after the pass, and what it says of what it left."""
    graph_module = graph_package().trace(model.eval(), ((), inputs)).graph_module
    found = graph_package().find_pass("fuse_mmdit")()
    return found(graph_module).graph_module, [o.refused for o in found.analyze(graph_module) if o.refused]


class Modulated(nn.Module):
    """A modulated norm, spelled in one of NORMS's ways."""

    def __init__(self, spelled: Callable[..., Tensor], rng: torch.Generator) -> None:
        super().__init__()
        self.spelled = spelled
        self.weight, self.bias = (nn.Parameter(torch.randn(16, generator=rng)) for _ in range(2))

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor]:
        return (self.spelled(x, scale, shift, self.weight, self.bias),)


def in_fp32(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return (F.layer_norm(wide, (16,), eps=1e-6) * (1 + scale) + shift).to(x.dtype)


def evaluate_norm(call: nn.Module, model: nn.Module, inputs: dict[str, Tensor]) -> Values:
    """What call, whose weights are model's, gives in their dtype, and its gradients."""
    leaves = {name: t.detach().to(model.weight.dtype).requires_grad_() for name, t in inputs.items()}
    cotangent = torch.linspace(-1, 1, inputs["x"].numel()).sin().view_as(inputs["x"])
    return evaluate(lambda: call(**leaves), leaves | dict(model.named_parameters()), {"out": cotangent})


# Each of x (B, L, D), scale and shift (B, D), weight and bias (D,).
NORMS: dict[str, Callable[..., Tensor]] = {
    "layernorm": lambda x, scale, shift, w, b: vanilla().layernorm_adaln(x, scale, shift),
    "layernorm-rows": lambda x, scale, shift, w, b: vanilla().layernorm_adaln(x, scale[:, None], shift[:, None]),
    "layernorm-affine": lambda x, scale, shift, w, b: (
        F.layer_norm(x, (16,), w, b) * (1 + scale[:, None]) + shift[:, None]
    ),
    "layernorm-weight": lambda x, scale, shift, w, b: F.layer_norm(x, (16,), w) * (1 + scale[:, None]) + shift[:, None],
    "layernorm-in-fp32": lambda x, scale, shift, w, b: in_fp32(x, scale[:, None], shift[:, None], w, b),
    "rmsnorm": lambda x, scale, shift, w, b: vanilla().rmsnorm_adaln(x, scale, shift, weight=w),
    "rmsnorm-without-weight": lambda x, scale, shift, w, b: vanilla().rmsnorm_adaln(x, scale, shift),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_a_modulated_norm_is_one_operator_however_it_is_spelled(
    name: str, dtype: torch.dtype, rng: torch.Generator
) -> None:
    model = Modulated(NORMS[name], rng).to(dtype)
    shapes = {"x": (3, 5, 16), "scale": (3, 16), "shift": (3, 16)}
    drawn = {key: torch.randn(shape, generator=rng).to(dtype) for key, shape in shapes.items()}
    made, _ = fused(model, drawn)
    assert operators(made) == {"norm_adaln": 1}, made.graph
    plain = {precision: copy.deepcopy(model).to(precision) for precision in (dtype, torch.float64)}
    assert_accurate(evaluate_norm(made, model, drawn), lambda p: evaluate_norm(plain[p], plain[p], drawn), dtype)


@pytest.mark.parametrize("without", slow_unless(lambda without: without == "", ("", "one-plus", "silu")))
def test_a_look_alike_is_fused_and_what_is_not_is_told(without: str, rng: torch.Generator) -> None:
    block = JointBlock(16, 2, 7, without)
    inputs = (torch.randn(3, 7, 16), torch.randn(3, 5, 16), torch.randn(3, 16))
    made, opt = optimised(block, inputs)
    want = STREAMS if without != "one-plus" else {key: n for key, n in STREAMS.items() if key != "norm_adaln"}
    assert operators(made.eval_graph) == want, str(opt.report())
    assert "slower_as_no_kernel_runs" in str(opt.report())
    if without == "one-plus":
        refused = [o["refused"] for o in opt.report().to_dict()["passes"][1]["opportunities"]["eval"] if o["refused"]]
        assert any("nearest pattern modulated_layer_norm" in reason and "expected add" in reason for reason in refused)


def test_rotations_of_each_samples_own_are_fused(rng: torch.Generator) -> None:
    block, shapes = JointBlock(16, 2, 7), {"image": (3, 7, 16), "text": (3, 5, 16), "condition": (3, 16)}
    inputs = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    starts = torch.tensor([3, 0, 20])
    made, told = fused(block, {**inputs, "starts": starts})
    assert operators(made) == STREAMS, told
    got = made(**inputs, starts=starts)
    want = block.double()(**{name: t.double() for name, t in inputs.items()}, starts=starts)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, TOLERANCE[torch.float32])


@pytest.mark.slow
def test_dropout_that_is_on_stays_where_it_is(rng: torch.Generator) -> None:
    model = vanilla().MMDiTBlock(16, 2, dim_feedforward=24, dropout=0.5, conditioning=True)
    made, _ = optimised(model, (torch.randn(3, 7, 16), torch.randn(3, 16)))
    (dropout,) = made.train_graph.graph.find_nodes(op="call_function", target=torch.ops.aten.dropout.default)
    assert dropout.args[1:] == (0.5, True)
    assert operators(made.train_graph) == {"norm_adaln": 1, "gated_residual": 2, "pack_heads": 1}


def test_an_eps_that_a_call_is_given_is_left() -> None:
    class Given(nn.Module):
        def forward(self, x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps.item()) * weight

    inputs = {"x": torch.randn(3, 7, 16), "weight": torch.randn(16), "eps": torch.tensor(0.1)}
    made, _ = fused(Given(), inputs)
    assert torch.equal(made(**inputs), Given()(**inputs))


def test_attention_of_another_kind_takes_packed_heads_and_is_told(rng: torch.Generator) -> None:
    class Causal(vanilla().RMSNormSelfAttention):
        def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    model, inputs = spread_weights(Causal(16, 2), rng), draw_inputs(SELF, SHAPE, rng)
    made, told = fused(model, inputs)
    assert operators(made) == {"pack_heads": 1}, told
    assert any("nearest pattern self_attention" in t and "expected False, got True" in t for t in told), told
    assert_close(made(**inputs)[0], model.double()(inputs["x"].double())[0], TOLERANCE[torch.float32])


def test_linear_attention_and_a_norm_alone_are_told_with_the_nearest_pattern(rng: torch.Generator) -> None:
    made, told = fused(vanilla().RMSNormSelfAttention(16, 2, linear=True), draw_inputs(SELF, SHAPE, rng))
    assert operators(made) == {"pack_heads": 1}
    wanted = "expected aten.scaled_dot_product_attention.default of the query, got aten.relu.default"
    assert told == [f"nearest pattern self_attention_complex: {wanted}"]
    made, told = fused(nn.LayerNorm(16), {"input": torch.randn(3, 7, 16)})
    assert operators(made) == {}
    assert told == [
        "nearest pattern modulated_layer_norm: expected a scale and a shift, got PyTorch's own operator alone"
    ]


def test_what_is_written_to_is_not_fused() -> None:
    class Written(nn.Module):
        def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            h = nn.functional.layer_norm(x, (8,))
            h.add_(1)
            return h * (1 + scale) + shift

    made, _ = optimised(Written(), (torch.randn(3, 5, 8), torch.randn(3, 1, 8), torch.randn(3, 1, 8)))
    assert operators(made.eval_graph) == {}


def graph_launches_kernels(seed: int) -> None:
    rng = kernels.seeded(seed)
    model, inputs = build(vanilla(), BLOCK_CROSS, SHAPE, rng), draw_inputs(BLOCK_CROSS, SHAPE, rng)
    inputs["start_pos"] = torch.tensor([3, 0, 1000])
    made, _ = fused(model, inputs)
    with torch.no_grad(), kernels.counted_kernels() as launched:
        got = made(**inputs)
    want = {"norm_adaln_forward_kernel": 2, "pack_heads_kernel": 1, "joint_attention_kernel": 1}
    assert Counter(launched) == {**want, "gated_residual_kernel": 4}
    inputs = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    for g, w in zip(got, model.double()(**inputs), strict=True):
        assert_close(g, w, TOLERANCE[torch.float32])


def affine_norm_launches_kernels(seed: int) -> None:
    rng = kernels.seeded(seed)
    model = Modulated(NORMS["layernorm-affine"], rng)
    inputs = {"x": torch.randn(3, 5, 16), "scale": torch.randn(3, 16), "shift": torch.randn(3, 16)}
    made, _ = fused(model, inputs)
    with kernels.counted_kernels() as launched:
        got = evaluate_norm(made, model, inputs)
    want = evaluate_norm(model.double(), model, inputs)
    assert set(launched) == {f"norm_adaln_{name}_kernel" for name in ("forward", "backward", "reduce")}
    for name, error in errors(got, want, NEGLIGIBLE).items():
        assert error < TOLERANCE[torch.float32], f"{name}: {error:.1e}"


@pytest.mark.parametrize("check", [graph_launches_kernels, affine_norm_launches_kernels])
def test_the_fused_graph_launches_the_kernels(
    check: Callable[[int], None], interpreted: Callable[..., None], seed: int
) -> None:
    interpreted(check, seed)
