"""SPEC G5: the graph of a vanilla model, or of a look-alike, rewritten to the fused operators."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import kernels
from tests.cases import BLOCK, BLOCK_CONDITIONED, BLOCK_CROSS, CROSS, SELF, STACK, Kind, Shape, random_mask
from tests.graph_models import graph_package
from tests.look_alikes import JointBlock
from tests.numerics import TOLERANCE, assert_close
from tests.vanilla import vanilla
from tests.verify import build, draw_inputs

pytestmark = pytest.mark.upgrade

SHAPE = Shape(3, 7, 5, 2, 8)
PARTS = {"pack_heads": 1, "joint_attention_forward": 1}
STREAMS = {"norm_adaln": 2, "gated_residual": 4, **PARTS}
# What is left of each kind in evaluation: the modulated norms in the middle are the gated residuals' own.
FUSED: dict[Kind, dict[str, int]] = {
    SELF: PARTS,
    CROSS: PARTS,
    BLOCK: {"gated_residual": 1, **PARTS},
    BLOCK_CONDITIONED: {"norm_adaln": 1, "gated_residual": 2, **PARTS},
    BLOCK_CROSS: STREAMS,
    STACK: {"norm_adaln": 2, "gated_residual": 8, "pack_heads": 2, "joint_attention_forward": 2},
}
QUICK = (SELF, BLOCK_CROSS)


def fused_ops(graph_module: Any) -> dict[str, int]:
    names = [str(n.target) for n in graph_module.graph.nodes if str(n.target).startswith("mmdit.")]
    return dict(Counter(name.split(".")[1] for name in names))


def optimised(model: nn.Module, inputs: Any) -> tuple[Any, Any]:
    opt = graph_package().GraphOptimizer(model, inputs, repeats=0, batches=(2,))
    return opt.optimize(["redundant_ops", "fuse_mmdit"], strict=True), opt


@pytest.mark.parametrize(
    "kind", [pytest.param(k, id=str(k), marks=[] if k in QUICK else pytest.mark.slow) for k in FUSED]
)
def test_a_vanilla_graph_becomes_fused_operators(kind: Kind, rng: torch.Generator) -> None:
    made, opt = optimised(build(vanilla(), kind, SHAPE, rng), draw_inputs(kind, SHAPE, rng))
    assert fused_ops(made.eval_graph) == FUSED[kind], str(opt.report())
    trained = FUSED[kind].keys() - {"joint_attention_forward"}  # there is no backward for fp32
    assert fused_ops(made.train_graph).keys() == trained, str(opt.report())
    assert opt.report().to_dict()["passes"][1]["error"] < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SELF, CROSS], ids=str)
def test_a_mask_and_a_start_are_fused_too(kind: Kind, rng: torch.Generator) -> None:
    options = {"attn_mask": random_mask(SHAPE, rng).int(), "start_pos": 3}
    made, opt = optimised(build(vanilla(), kind, SHAPE, rng), draw_inputs(kind, SHAPE, rng) | options)
    assert fused_ops(made.eval_graph) == PARTS, str(opt.report())
    told = opt.report().to_dict()["passes"][1]["opportunities"]["train"]
    assert [o["refused"] for o in told if o["refused"]] == ["a mask, and no kernel for the head dim"]


@pytest.mark.parametrize("without", ["", pytest.param("one-plus", marks=pytest.mark.slow), "silu"])
def test_a_look_alike_is_fused_and_what_is_not_is_told(without: str, rng: torch.Generator) -> None:
    block = JointBlock(16, 2, 7, without)
    inputs = (torch.randn(3, 7, 16), torch.randn(3, 5, 16), torch.randn(3, 16))
    made, opt = optimised(block, inputs)
    want = STREAMS if without != "one-plus" else {"gated_residual": 4, **PARTS}
    assert fused_ops(made.eval_graph) == want, str(opt.report())
    if without == "one-plus":
        refused = [o["refused"] for o in opt.report().to_dict()["passes"][1]["opportunities"]["eval"] if o["refused"]]
        assert any("nearest pattern modulated_layer_norm" in reason and "expected add" in reason for reason in refused)


def test_an_affine_norm_and_a_wide_head_are_left_and_the_nearest_pattern_told(rng: torch.Generator) -> None:
    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.condition = nn.LayerNorm(8), nn.Linear(8, 16)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            scale, shift = self.condition(y)[:, None].chunk(2, dim=-1)
            return self.norm(x) * (1 + scale) + shift

    made, opt = optimised(Affine(), (torch.randn(3, 5, 8), torch.randn(3, 8)))
    assert fused_ops(made.eval_graph) == {}
    (told,) = opt.report().to_dict()["passes"][1]["opportunities"]["eval"]
    assert "modulated_layer_norm" in told["refused"]
    assert "expected None, got" in told["refused"]
    assert "modulated_layer_norm" in str(opt.report())


def test_what_is_written_to_is_not_fused() -> None:
    class Written(nn.Module):
        def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            h = nn.functional.layer_norm(x, (8,))
            h.add_(1)
            return h * (1 + scale) + shift

    made, _ = optimised(Written(), (torch.randn(3, 5, 8), torch.randn(3, 1, 8), torch.randn(3, 1, 8)))
    assert fused_ops(made.eval_graph) == {}


def graph_launches_kernels(seed: int) -> None:
    rng = kernels.seeded(seed)
    model, inputs = build(vanilla(), BLOCK_CROSS, SHAPE, rng), draw_inputs(BLOCK_CROSS, SHAPE, rng)
    graph_module = graph_package().trace(model, ((), inputs)).graph_module
    made = graph_package().find_pass("fuse_mmdit")()(graph_module).graph_module
    with torch.no_grad(), kernels.counted_kernels() as launched:
        got = made(**inputs)
    want = {"norm_adaln_forward_kernel": 2, "pack_heads_kernel": 1, "joint_attention_kernel": 1}
    assert Counter(launched) == {**want, "gated_residual_kernel": 4}
    for g, w in zip(got, model(**inputs), strict=True):
        assert_close(g, w, TOLERANCE[torch.float32])


def test_the_fused_graph_launches_the_kernels(interpreted: Callable[..., None], seed: int) -> None:
    interpreted(graph_launches_kernels, seed)
