"""SPEC G5: vanilla blocks, and those that follow each other, become one operator in a graph for evaluation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from tests import graph_training, kernels
from tests.cases import STACK, Shape, random_mask
from tests.graph_models import graph_package, operators
from tests.numerics import TOLERANCE, assert_close
from tests.quick import slow_unless
from tests.vanilla import vanilla
from tests.verify import build, draw_inputs

pytestmark = pytest.mark.upgrade

SHAPE = Shape(3, 7, 5, 2, 16)
Drawn = tuple[nn.Module, dict[str, Tensor]]


@pytest.fixture
def drawn(rng: torch.Generator) -> Drawn:
    """A vanilla stack of two layers in evaluation, and inputs with a mask and a start for each sample."""
    inputs = draw_inputs(STACK, SHAPE, rng) | {"attn_mask": random_mask(SHAPE, rng)}
    return build(vanilla(), STACK, SHAPE, rng), inputs | {"start_pos": torch.tensor([3, 0, 1000])}


def rewrite(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[fx.GraphModule, list[Any]]:
    """The graph in evaluation after the pass, and what the pass found of blocks."""
    graph_module = graph_package().trace(model, ((), inputs)).graph_module
    fuse = graph_package().find_pass("fuse_mmdit")()
    return fuse(graph_module).graph_module, [o for o in fuse.analyze(graph_module) if o.action == "to stack"]


def assert_right(made: Callable[..., Any], model: nn.Module, inputs: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for got, want in zip(made(**inputs), model(**inputs), strict=True):
            assert_close(got, want, TOLERANCE[torch.float32])


def test_a_stack_is_one_operator_that_takes_the_rotary_table_itself(drawn: Drawn) -> None:
    model, inputs = drawn
    made, found = rewrite(model, inputs)
    assert operators(made) == {"stack": 1}
    assert [o.refused for o in found] == [None, None]
    targets = [node.target for node in made.graph.nodes]
    assert torch.ops.aten.index.Tensor not in targets
    assert targets.count(torch.ops.aten._assert_async.msg) == 1, "each layer checks start_pos, and one check is enough"
    assert_right(made, model, inputs)


def test_a_compiled_stack_is_one_operator(drawn: Drawn) -> None:
    torch._dynamo.reset()
    model, inputs = drawn
    seen: list[fx.GraphModule] = []

    def keep(graph_module: fx.GraphModule, examples: Any) -> Any:
        seen.append(graph_module)
        return graph_module

    graph_package()
    compiled = torch.compile(model, backend="mmdit", fullgraph=True, options={"inner": keep})
    with torch.no_grad():
        got = compiled(**inputs)
    assert [operators(graph_module) for graph_module in seen] == [{"stack": 1}]
    assert_right(lambda **_: got, model, inputs)


class Looking(nn.Module):
    """A stack whose first layer's x is looked at as well."""

    def __init__(self, stack: nn.Module) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor, y: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        first = self.stack.layers[0](x, y, context=context)
        return first.x_out, *self.stack.layers[1](first.x_out, y, context=first.context_out)


def other_table(model: nn.Module) -> nn.Module:
    model.layers[1].cross_attn.rotary.freqs_cis.conj_physical_()
    return model


def other_condition(model: nn.Module) -> nn.Module:
    def double(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x, y, *rest = args
        return (x, 2 * y, *rest), kwargs

    model.layers[1].register_forward_pre_hook(double, with_kwargs=True)
    return model


@pytest.mark.parametrize(
    "change", slow_unless(lambda change: change is other_table, (Looking, other_table, other_condition))
)
def test_blocks_are_apart_where_they_must_be(change: Callable[[nn.Module], nn.Module], drawn: Drawn) -> None:
    model, inputs = change(drawn[0]).eval(), {name: drawn[1][name] for name in ("x", "y", "context")}
    made, found = rewrite(model, inputs)
    assert operators(made) == {"stack": 2}
    assert [o.refused for o in found] == [None, None]
    assert_right(made, model, inputs)


def test_a_block_with_another_eps_stays_operators_and_is_told(drawn: Drawn) -> None:
    model, inputs = drawn
    model.layers[0].cross_attn.to_out[1].eps = 1e-5
    model.layers[0].cross_attn.c_to_out[1].eps = 1e-5
    for name in ("rms_norm_q", "rms_norm_k", "c_rms_norm_q", "c_rms_norm_k"):
        getattr(model.layers[0].cross_attn, name).eps = 1e-5
    made, found = rewrite(model, inputs)
    assert operators(made) == {"norm_adaln": 2, "gated_residual": 4, "pack_heads": 1, "joint_attention": 1, "stack": 1}
    assert [o.refused for o in found] == ["expected rms_eps 1.19209e-07, which the kernels have, got 1e-05", None]
    assert_right(made, model, inputs)


@pytest.mark.slow
def test_a_block_that_needs_its_own_context_first_stays_operators_and_is_told(drawn: Drawn) -> None:
    model, inputs = drawn
    graph_module = graph_package().trace(model.layers[0], ((), inputs)).graph_module
    graph, aten = graph_module.graph, torch.ops.aten
    context_out = graph.output_node().args[0][1]
    (weight,) = graph.find_nodes(op="get_attr", target="mlp.0.weight")
    (linear,) = weight.users
    with graph.inserting_before(linear):
        nothing = graph.call_function(aten.mul.Tensor, (graph.call_function(aten.mean.default, (context_out,)), 0))
        late = graph.call_function(aten.add.Tensor, (weight, nothing))
    late.meta["val"] = weight.meta["val"]
    linear.replace_input_with(weight, late)
    graph_module.recompile()
    fuse = graph_package().find_pass("fuse_mmdit")()
    made = fuse(graph_module).graph_module
    assert operators(made) == {"norm_adaln": 2, "gated_residual": 4, "pack_heads": 1, "joint_attention": 1}
    (found,) = [o for o in fuse.analyze(graph_module) if o.action == "to stack"]
    assert found.refused == f"{late.name} comes after the first result"
    assert_right(made, model.layers[0], inputs)


def stack_launches_the_packages_own_kernels(seed: int) -> None:
    rng = kernels.seeded(seed)
    model, inputs = build(vanilla(), STACK, SHAPE, rng).half(), draw_inputs(STACK, SHAPE, rng)
    inputs = {name: t.half() for name, t in inputs.items()} | {"start_pos": torch.tensor([3, 0, 1000])}
    with torch.no_grad():
        made, own = rewrite(model, inputs)[0], graph_package().fuse(model)
        launched = []
        for call in (made, own):
            with kernels.counted_kernels() as names:
                launched.append((call(**inputs), names))
    (got, names), (want, own_names) = launched
    assert names == own_names
    assert "modulation_kernel" in names, names
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


REWRITTEN = graph_training.a_rewritten_step_is_the_packages_own
COMPILED = graph_training.a_compiled_step_is_the_packages_own
OTHERS = [(REWRITTEN, True, 0.3), (COMPILED, False, 0.0), (COMPILED, True, 0.0)]


@pytest.mark.parametrize(
    ("check", "training", "dropout"),
    [
        (REWRITTEN, True, 0.0),
        pytest.param(REWRITTEN, False, 0.0, marks=pytest.mark.slow),
        pytest.param(COMPILED, True, 0.3, marks=pytest.mark.slow),
        *(pytest.param(*other, marks=pytest.mark.exhaustive) for other in OTHERS),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_training_step(
    check: Callable[..., None], training: bool, dropout: float, interpreted: Callable[..., None], seed: int
) -> None:
    interpreted(check, training, dropout, "cpu", seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "check",
    [
        graph_training.blocks_that_drop_stay_operators_and_are_told,
        graph_training.blocks_without_kernels_for_gradients_stay_operators_and_are_told,
        graph_training.one_output_will_do,
    ],
    ids=lambda check: check.__name__,
)
def test_in_training(check: Callable[..., None], interpreted: Callable[..., None], seed: int) -> None:
    interpreted(check, "cpu", seed)


def test_the_operator_launches_the_packages_own_kernels(interpreted: Callable[..., None], seed: int) -> None:
    interpreted(stack_launches_the_packages_own_kernels, seed)


@pytest.mark.slow
def test_the_operator_passes_opcheck(drawn: Drawn) -> None:
    model, inputs = drawn
    made, _ = rewrite(model.layers[0], inputs)
    with torch.no_grad(), kernels.OpCalls() as recorded:
        made(**inputs)
    ((operator, args, kwargs),) = recorded.calls
    args = tree_map_only(Tensor, lambda t: kernels.leaf(t, t.is_floating_point()), args)
    torch.library.opcheck(operator, args, kwargs)
