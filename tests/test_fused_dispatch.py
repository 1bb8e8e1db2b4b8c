"""SPEC K2, K5: where a stack is fused, in which tier, and where its modules are called instead; explain says which."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from tests import stack_compiled, stack_dispatch, stack_state
from tests.cases import SMALL, STACK
from tests.stack_dispatch import CHANGES, OBSTACLES, OWN_LAYERS, TILED
from tests.stack_state import COPIES, ROWS_TIER
from tests.verify import build, draw_inputs

pytestmark = pytest.mark.upgrade

Interpreted = Callable[..., None]
THREE = replace(TILED, layers=3)
HALF = replace(THREE, dtype=torch.float16)
TILES = (THREE, replace(HALF, mask="random"), replace(HALF, forward=512), replace(HALF, forward=512, mask="random"))
# Before its first call, and after one that may have kept something.
AT_ONCE = ("hook", "eps-set", "one-more-part", "parametrized", "layer-of-other-heads", "wider-context-mlp")


def whens(names: Iterable[str]) -> list[object]:
    at_once = [pytest.param(name, False, id=f"{name}-at-once") for name in names if name in AT_ONCE]
    return at_once + [
        pytest.param(name, True, id=f"{name}-after-a-call", marks=[pytest.mark.slow] if name in AT_ONCE else [])
        for name in names
    ]


@pytest.mark.parametrize("case", TILES, ids=str)
def test_explain_names_the_tiles_tier_and_every_launch_of_it(interpreted: Interpreted, case: object, seed: int) -> None:
    interpreted(stack_state.explain_tells_the_tiles_tier, case, seed)


@pytest.mark.parametrize("name", ROWS_TIER)
def test_explain_names_the_rows_tier_and_what_keeps_the_tiles_from_it(
    interpreted: Interpreted, name: str, seed: int
) -> None:
    interpreted(stack_state.explain_tells_the_rows_tier_and_why, name, seed)


@pytest.mark.parametrize(("name", "used"), whens(OBSTACLES))
def test_a_layer_with_parts_or_hooks_of_its_own_takes_its_modules(
    interpreted: Interpreted, name: str, used: bool, seed: int
) -> None:
    interpreted(stack_dispatch.an_obstacle_sends_its_layer_to_the_modules, name, used, seed)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "used"), whens(CHANGES))
def test_a_changed_layer_or_weight_is_seen(interpreted: Interpreted, name: str, used: bool, seed: int) -> None:
    interpreted(stack_dispatch.a_change_is_seen, name, used, seed)


@pytest.mark.parametrize("name", OWN_LAYERS)
def test_explain_says_why_a_stack_with_such_a_layer_is_not_fused_whole(
    interpreted: Interpreted, name: str, seed: int
) -> None:
    interpreted(stack_dispatch.a_layer_of_its_own_is_called_and_told, name, seed)


def test_a_hook_on_all_modules_is_called(interpreted: Interpreted, seed: int) -> None:
    interpreted(stack_dispatch.a_global_hook_is_called, seed)


@pytest.mark.parametrize("of", ["weights", "x", "y", "context"])
def test_where_gradients_are_recorded_the_modules_are_called_and_they_arrive(
    interpreted: Interpreted, of: str, seed: int
) -> None:
    interpreted(stack_dispatch.recorded_gradients_take_the_modules_and_arrive, of, seed)


@pytest.mark.parametrize("which", ["all", "dropouts", "context-dropouts-of-training-layers"])
def test_dropout_in_training_takes_the_modules(interpreted: Interpreted, which: str, seed: int) -> None:
    interpreted(stack_dispatch.dropout_in_training_takes_the_modules, which, seed)


def test_autocast_takes_the_modules(interpreted: Interpreted, seed: int) -> None:
    interpreted(stack_dispatch.autocast_takes_the_modules, seed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_dtype_without_kernels_takes_the_modules(interpreted: Interpreted, dtype: torch.dtype, seed: int) -> None:
    interpreted(stack_state.a_dtype_without_kernels_takes_the_modules, dtype, seed)


def test_norms_kept_in_fp32_take_the_modules(interpreted: Interpreted, seed: int) -> None:
    interpreted(stack_state.norms_kept_in_fp32_take_the_modules, seed)


def test_transposed_weights_take_the_modules(interpreted: Interpreted, seed: int) -> None:
    interpreted(stack_state.transposed_weights_take_the_modules, seed)


def test_a_weight_of_a_tensor_subclass_keeps_its_numbers(interpreted: Interpreted, seed: int) -> None:
    interpreted(stack_state.a_weight_of_a_subclass_takes_the_modules, seed)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_used_stack_is_its_own(interpreted: Interpreted, how: str, seed: int) -> None:
    interpreted(stack_state.a_copy_of_a_used_stack_is_its_own, how, seed)


def test_a_used_stack_may_be_cast_to_half_and_back(interpreted: Interpreted, seed: int) -> None:
    interpreted(stack_state.a_used_stack_may_be_cast, seed)


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_weights_loaded_into_a_used_stack_are_seen(interpreted: Interpreted, assign: bool, seed: int) -> None:
    interpreted(stack_state.weights_loaded_into_a_used_stack_are_seen, assign, seed)


def test_weights_given_for_one_call_are_seen_in_that_call_alone(interpreted: Interpreted, seed: int) -> None:
    interpreted(stack_state.weights_given_for_one_call_are_seen, seed)


def test_a_used_stack_is_freed_when_it_is_forgotten(interpreted: Interpreted, seed: int) -> None:
    interpreted(stack_state.a_used_stack_is_freed, seed)


def test_a_compiled_stack_is_one_operator_with_the_kernels_of_a_call(interpreted: Interpreted, seed: int) -> None:
    interpreted(stack_compiled.a_compiled_stack_is_one_operator_with_the_kernels_of_a_call, seed)


SAMPLE = ("obstacle-hook", "obstacle-norm-of-another-eps", "layer-of-other-heads", "weight-of-a-subclass", "dropout")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SAMPLE else pytest.mark.exhaustive) for n in stack_compiled.ALTERED]
)
def test_a_compiled_stack_that_was_altered_is_right(interpreted: Interpreted, name: str, seed: int) -> None:
    interpreted(stack_compiled.a_compiled_stack_that_was_altered_is_right, name, seed)


@pytest.mark.slow
def test_a_compiled_stack_under_autocast_or_with_gradients_keeps_its_modules(
    interpreted: Interpreted, seed: int
) -> None:
    interpreted(stack_compiled.a_compiled_stack_under_autocast_or_with_gradients_keeps_its_modules, seed)


def test_fake_tensors_take_the_modules(interpreted: Interpreted, seed: int) -> None:
    interpreted(stack_state.fake_tensors_take_the_modules, seed)


def test_a_graph_of_a_stack_on_the_cpu_raises_and_names_x(mmdit: ModuleType, rng: torch.Generator) -> None:
    stack, inputs = build(mmdit, STACK, SMALL, rng), draw_inputs(STACK, SMALL, rng)
    with pytest.raises(mmdit.DeviceError, match="cpu") as raised:
        stack.compile_graph(**inputs)
    assert raised.value.argument == "x"
