"""What the benchmark of the whole model measures against, on the CPU: its floor, weights, oracle and contenders."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import get_args

import pytest
import torch

from evaluation.bench import contenders, floor, stack, stack_case
from evaluation.bench.case import worst_error
from evaluation.bench.contenders import make_ready
from evaluation.bench.stack_case import StackSetup, matmul_precision
from evaluation.bench.stack_record import StackCase, StackContender, StackResult
from evaluation.bench.timing import Rounds
from evaluation.bench.trees import LoadedTree
from evaluation.tests.test_bench_stack import AFTER, BEFORE, MACHINE, TINY

SMALL = StackCase(
    batch=3, dtype="float32", masked=True, length=5, context=2, dim=16, heads=2, feed_forward=24, layers=2
)
BOTH_WAYS = SMALL.model_copy(update={"backward": True, "recompute": "full"})


def test_the_floor_counts_what_one_small_forward_needs() -> None:
    found = floor.floor_of(TINY, MACHINE)
    rows, per_row = 2 * (3 + 1), 2 * 4 * (4 * 4 + 2 * 8)
    modulation, attention = 2 * 2 * (2 * 4 * 6 * 4), 2 * 4 * 4 * 4 * 4
    assert found.operations == rows * per_row + modulation + attention == 3328
    weights = 2 * (4 * 12 + 12 + 4 * 4 + 4 + 3 * 4 + 4 * 8 + 8 + 8 * 4 + 4 + 4 * 24 + 24)
    assert found.moved_bytes == 2 * (weights + 2 * rows * 4 + 2 * 4) == 1296
    assert found.exponentials == rows * (2 * 4 + 8) == 128
    assert found.operations_us == pytest.approx(3328 / 750e6)
    assert found.moved_bytes_us == pytest.approx(1.296)
    assert found.us == found.exponentials_us == pytest.approx(8.0)
    assert found.bound == "exponentials"


def test_a_mask_adds_its_bytes_and_start_positions_and_four_bytes_a_value_double_the_rest() -> None:
    masked = TINY.model_copy(update={"masked": True, "dtype": "float32"})
    assert floor.count_bytes(masked) == 2 * 1296 + 2 * (3 * 3 + 8)


@pytest.mark.parametrize("context", [1, 0])
def test_the_floor_counts_the_weights_that_the_model_has(context: int) -> None:
    sizes = {"dim": 12, "heads": 3, "feed_forward": 7, "layers": 2, "context": context}
    case = StackCase.model_validate(TINY.model_dump() | sizes)
    model = stack_case.build_model(LoadedTree.load(BEFORE).mmdit, case)
    assert floor.count_weights(case) == sum(parameter.numel() for parameter in model.parameters())


def test_a_backward_has_twice_the_products_and_as_many_exponentials_again() -> None:
    found, forward = (floor.floor_of(case, MACHINE) for case in (BOTH_WAYS, SMALL))
    assert found.operations == 3 * forward.operations
    assert found.exponentials == 2 * forward.exponentials
    assert found.moved_bytes > 1.9 * forward.moved_bytes - floor.ITEM_BYTES["float32"] * 3 * 5 * 5


def test_there_is_no_floor_for_a_gpu_whose_ceilings_are_not_known() -> None:
    assert floor.floor_of(TINY, MACHINE.model_copy(update={"gpu": "NVIDIA T4"})) is None


@pytest.fixture(scope="module")
def before() -> LoadedTree:
    return LoadedTree.load(BEFORE)


@pytest.fixture(scope="module")
def setup(before: LoadedTree) -> StackSetup:
    return StackSetup.draw(SMALL, before.mmdit, before.mmdit, "cpu")


def test_the_oracle_runs_in_pieces_and_agrees_with_the_model(
    setup: StackSetup, before: LoadedTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_case, "ORACLE_BYTES", 2 * 8 * SMALL.heads * (SMALL.length + SMALL.context) ** 2)
    truth = stack_case.build_model(before.mmdit, SMALL).double()
    truth.load_state_dict(setup.vanilla.state_dict())
    expected = stack_case.oracle(truth, setup.inputs, SMALL.heads)
    assert [out.dtype for out in expected] == [torch.float64] * 2
    assert worst_error(expected, setup.expected) < 1e-12
    with torch.no_grad():
        assert worst_error(setup.fused(*setup.inputs), expected) < 1e-5
        x, y, context, attn_mask, start_pos = setup.inputs
        for wrong in ((x, y, context, None, start_pos), (x, y, context, attn_mask, start_pos.roll(1))):
            assert worst_error(setup.fused(*wrong), expected) > 1e-3


def test_gradients_in_pieces_are_those_of_the_whole_and_wrong_ones_show(
    before: LoadedTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_case, "ORACLE_BYTES", 1)
    setup = StackSetup.draw(BOTH_WAYS, before.mmdit, before.mmdit, "cpu")
    assert setup.fused.recompute == "full"
    names = ["x", "y", "context", *(name for name, _ in setup.vanilla.named_parameters())]
    assert len(setup.expected) == 2 + len(names)
    with torch.no_grad():
        found = setup.call(setup.vanilla)
    assert not any(t.requires_grad for t in found)
    assert setup.error(found) < 1e-5
    for index, name in enumerate(names, start=2):
        wrong = [t * (1.5 if i == index else 1.0) for i, t in enumerate(found)]
        least = 1e-4 if name.endswith("to_qkv.bias") else 1e-2
        assert setup.error(tuple(wrong)) > least, name
    with pytest.raises(RuntimeError, match="outputs and gradients, got"):
        setup.error(found[:-1])
    assert torch.tensor(setup.error((*found[:-1], found[-1] * torch.nan))).isnan()


def test_the_weights_of_norms_are_spread(setup: StackSetup) -> None:
    state = setup.fused.state_dict()
    norms = [weight for name, weight in state.items() if name.endswith("weight") and weight.dim() == 1]
    assert len(norms) == SMALL.layers * 6
    assert all(weight.std() > 0.05 for weight in norms)


def test_an_unmasked_case_has_neither_mask_nor_start_positions() -> None:
    assert stack_case.draw_inputs(SMALL.model_copy(update={"masked": False}), "cpu")[3:] == (None, None)


def test_tf32_is_allowed_within_its_cases_only() -> None:
    before = torch.get_float32_matmul_precision()
    with matmul_precision("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    with matmul_precision("float32"):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before


def test_a_contender_that_does_not_compile_is_unmeasured_and_the_others_go_on(
    setup: StackSetup, before: LoadedTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError("no compiler\nand more")

    monkeypatch.setattr(contenders.torch, "compile", fail)
    said: list[str] = []
    with torch.no_grad():
        ready = make_ready(setup, before, ("compiled", "compiled_graph", "eager", "fused"), "float32", said.append)
    assert list(ready.calls) == list(ready.errors) == ["eager", "fused"]
    reason = "NotImplementedError: no compiler"
    assert [(each.contender, each.reason) for each in ready.unmeasured] == [
        ("compiled", reason),
        ("compiled_graph", reason),
    ]
    assert said == ["preparing eager", "preparing compiled and compiled_graph", "preparing fused"]


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_a_contender_whose_outputs_are_wrong_ends_the_run(setup: StackSetup, before: LoadedTree, factor: float) -> None:
    wrong = replace(setup, expected=tuple(out * factor for out in setup.expected))
    with torch.no_grad(), pytest.raises(RuntimeError, match="fused, float32: expected an error below 1e-05"):
        make_ready(wrong, before, ("fused",), "float32", lambda _: None)


def time_both_trees(context: int, backward: bool) -> StackResult:
    """time_case with both trees, for a process of its own: what needs a GPU or a compiler is replaced."""
    patch = pytest.MonkeyPatch()
    patch.setattr(stack, "DEVICE", "cpu")
    patch.setattr(contenders, "capture", lambda call: call)
    compile_model = torch.compile
    patch.setattr(torch, "compile", lambda model, dynamic, mode: compile_model(model, dynamic=dynamic, backend="eager"))
    timed = lambda calls, rounds, rep_ms, flush: {name: Rounds([1.0] * rounds, 9) for name in calls}  # noqa: E731
    patch.setattr(stack, "time_in_turns", timed)
    patch.setattr(stack, "peak_bytes", lambda _: 5)
    patch.setattr(stack, "host_us", lambda _: 6.0)
    patch.setattr(stack, "gpu_kernels", lambda _: None)
    before, after = LoadedTree.load(BEFORE), LoadedTree.load(AFTER)
    case = SMALL.model_copy(update={"batch": 1, "context": context, "backward": backward})
    plan = stack.StackPlan("stack", BEFORE, AFTER, (case,), get_args(StackContender), rounds=3, rep_ms=1)
    return stack.time_case(case, before, after, MACHINE, plan, lambda _: None)


@pytest.mark.parametrize(
    ("context", "backward"), [(2, True), *(pytest.param(n, False, marks=pytest.mark.slow) for n in (2, 0))]
)
def test_every_contender_of_both_trees_is_checked_and_timed(context: int, backward: bool) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # as the ops of a tree can be registered but once
        result = pool.submit(time_both_trees, context, backward).result()
    assert result.unmeasured == []
    assert [timing.contender for timing in result.timings] == list(get_args(StackContender))
    assert max(timing.error for timing in result.timings) < 1e-5
    assert result.eager_peak_bytes == 5
    assert result.fused.host_us == 6.0
    assert result.fused.path != "fused"
    assert {decision.count > 0 for decision in result.fused.decisions} == {True}
    assert result.fused.kernels is None
