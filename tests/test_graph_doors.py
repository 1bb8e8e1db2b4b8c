"""SPEC G5, G8: every vanilla module becomes the fused one through each of the three doors, right in all gradients."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from tests import oracle
from tests.cases import (
    BLOCK,
    BLOCK_CONDITIONED,
    BLOCK_CROSS,
    CONTEXT_LEFT_OUT,
    CROSS,
    CROSS_LINEAR,
    NO_CONTEXT,
    SELF,
    SELF_LINEAR,
    STACK,
    Kind,
    Shape,
    random_mask,
)
from tests.graph_models import graph_package, in_mode, operators
from tests.vanilla import vanilla
from tests.verify import assert_inference_matches_oracle, assert_matches_oracle, build, draw_inputs

pytestmark = pytest.mark.upgrade

Operators = dict[str, int]
LINEAR_LEFT_OUT = Kind(
    "cross-linear-context-left-out",
    lambda m, s: m.RMSNormSelfCrossAttention(s.dim, s.heads, use_context=True, linear=True),
    partial(oracle.attention, linear_kernel=True),
    linear=True,
)
STACK_ALONE = Kind(
    "stack-unconditioned",
    lambda m, s: m.MMDiT(
        m.MMDiTConfig(
            num_layers=2,
            dim_base=s.dim,
            num_attn_head=s.heads,
            dim_feedforward=2 * s.dim,
            conditioning=False,
            use_cross_attn=False,
        )
    ),
    oracle.stack,
)
HEADS = {"pack_heads": 1}
ATTENTION = {**HEADS, "joint_attention": 1}
# What stands in the graph in training; the modulated norms in the middle are the gated residuals' own.
FUSED: dict[Kind, Operators] = {
    **dict.fromkeys((SELF, NO_CONTEXT, CONTEXT_LEFT_OUT, CROSS), ATTENTION),
    **dict.fromkeys((SELF_LINEAR, LINEAR_LEFT_OUT, CROSS_LINEAR), HEADS),  # no operator computes linear attention
    BLOCK: {"gated_residual": 1, **ATTENTION},
    BLOCK_CONDITIONED: {"norm_adaln": 1, "gated_residual": 2, **ATTENTION},
    BLOCK_CROSS: {"norm_adaln": 2, "gated_residual": 4, **ATTENTION},
    STACK: {"norm_adaln": 2, "gated_residual": 8, "pack_heads": 2, "joint_attention": 2},
    STACK_ALONE: {"gated_residual": 2, "pack_heads": 2, "joint_attention": 2},
}
STARTS = {"none": None, "int": 3, "tensor": torch.tensor([3, 0, 1000])}


@dataclass(frozen=True)
class Case:
    kind: Kind
    masked: bool
    start: str

    def __str__(self) -> str:
        return f"{self.kind}-{'masked' if self.masked else 'unmasked'}-start-{self.start}"

    @property
    def shape(self) -> Shape:
        return Shape(3, 7, 5, 2, 64 if self.kind.linear else 8)  # wide heads: see tests.cases.LINEAR_SHAPES

    def operators(self, training: bool) -> Operators:
        """Blocks without gradients are one operator; there is no backward of attention for fp32."""
        if not training and "gated_residual" in FUSED[self.kind]:
            return {"stack": 1}
        return {name: n for name, n in FUSED[self.kind].items() if not (training and name == "joint_attention")}


ALL = [Case(*values) for values in product(FUSED, (False, True), STARTS)]
QUICK = {
    "graph": (Case(SELF_LINEAR, True, "int"),),
    "compile": (Case(CROSS, True, "tensor"),),
}


def cases(door: str) -> list[Any]:
    marks = {c: pytest.mark.slow if number % 14 == 0 else pytest.mark.exhaustive for number, c in enumerate(ALL)}
    return [pytest.param(c, id=str(c), marks=[] if c in QUICK[door] else marks[c]) for c in ALL]


class Through(nn.Module):
    """What a door gave for a model, with the model's own weights by their names."""

    def __init__(self, call: Callable[..., Any], model: nn.Module) -> None:
        super().__init__()
        self.call, self.model = [call], model  # in a list, that it be no submodule

    def forward(self, **inputs: Any) -> Any:
        return self.call[0](**inputs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return self.model.named_parameters(*args, **kwargs)


def draw(case: Case, rng: torch.Generator) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    """A model in evaluation, its inputs, and its mask and start, where it has them."""
    model, inputs = build(vanilla(), case.kind, case.shape, rng), draw_inputs(case.kind, case.shape, rng)
    options = {"attn_mask": random_mask(case.shape, rng)} if case.masked else {}
    return model, inputs, options | ({} if case.start == "none" else {"start_pos": STARTS[case.start]})


def assert_right(call: Callable[..., Any], model: nn.Module, case: Case, drawn: Any, rng: torch.Generator) -> None:
    inputs, options = drawn
    assert_matches_oracle(Through(call, model), case.kind, case.shape, inputs, rng, **options)


@pytest.mark.parametrize("kind", FUSED, ids=str)
def test_swapped_modules_are_the_packages_own_and_right(kind: Kind, mmdit: Any, rng: torch.Generator) -> None:
    for case in (case for case in ALL if case.kind is kind):
        model, *drawn = draw(case, rng)
        fused = graph_package().fuse(model)
        assert type(fused) is getattr(mmdit, type(model).__name__)
        assert {type(m).__module__.partition(".")[0] for m in fused.modules()} <= {"mmdit", "torch"}
        assert_right(fused, model, case, drawn, rng)


def assert_told(told: list[str], case: Case) -> None:
    """That linear attention is left is said, and of nothing else."""
    assert any("nearest pattern self_attention" in t and "got aten.relu" in t for t in told) == case.kind.linear, told


@pytest.mark.slow
def test_the_optimiser_gives_both_modes_the_operators_and_is_right(rng: torch.Generator) -> None:
    case = Case(BLOCK_CROSS, True, "tensor")
    model, *drawn = draw(case, rng)
    in_mode(model, False)
    opt = graph_package().GraphOptimizer(model, {**drawn[0], **drawn[1]}, repeats=0, batches=())
    made = opt.optimize(["redundant_ops", "fuse_mmdit"], strict=True)
    for training, graph_module in ((False, made.eval_graph), (True, made.train_graph)):
        assert operators(graph_module) == case.operators(training), str(opt.report())
        assert_right(made.train(training), model, case, drawn, rng)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", cases("graph"))
def test_a_rewritten_graph_holds_the_operators_and_is_right(case: Case, training: bool, rng: torch.Generator) -> None:
    model, *drawn = draw(case, rng)
    traced = graph_package().trace(in_mode(model, training), ((), {**drawn[0], **drawn[1]}))
    found = graph_package().find_pass("fuse_mmdit")()
    made = found(traced.graph_module).graph_module
    assert operators(made) == case.operators(training)
    assert_told([o.refused for o in found.analyze(traced.graph_module) if o.refused], case)
    assert_right(made, model, case, drawn, rng)


@pytest.mark.parametrize("case", cases("compile"))
def test_the_compiled_model_holds_the_operators_and_is_right(case: Case, rng: torch.Generator) -> None:
    torch._dynamo.reset()
    seen: list[fx.GraphModule] = []
    model, *drawn = draw(case, rng)

    def keep(graph_module: fx.GraphModule, inputs: Any) -> Any:
        seen.append(graph_module)
        return torch._dynamo.lookup_backend("aot_eager")(graph_module, inputs)

    graph_package()
    compiled = torch.compile(model, backend="mmdit", fullgraph=True, options={"inner": keep})
    assert_right(compiled, model, case, drawn, rng)
    with torch.no_grad():
        assert_inference_matches_oracle(Through(compiled, model), case.kind, case.shape, drawn[0], **drawn[1])
    assert [operators(graph_module) for graph_module in seen] == [case.operators(True), case.operators(False)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[] if k in (SELF_LINEAR, BLOCK_CROSS) else pytest.mark.exhaustive) for k in FUSED],
    ids=str,
)
def test_a_graph_of_16_bits_holds_the_operators_and_is_right(kind: Kind, rng: torch.Generator) -> None:
    case = Case(kind, True, "tensor")
    model, inputs, options = draw(case, rng)
    model, inputs = model.bfloat16(), {name: t.bfloat16() for name, t in inputs.items()}
    graph_module = graph_package().trace(model, ((), inputs | options)).graph_module
    made = graph_package().find_pass("fuse_mmdit")()(graph_module).graph_module
    assert operators(made) == case.operators(False)
    with torch.no_grad():
        assert_inference_matches_oracle(Through(made, model), kind, case.shape, inputs, **options)
