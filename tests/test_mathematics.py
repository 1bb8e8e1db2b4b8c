"""SPEC A6: forward and every gradient of every module against the fp64 oracle, at sizes that do not divide."""

from types import ModuleType

import pytest
import torch

from tests.cases import CASES, TARGET, TARGET_STACK, Kind, Shape
from tests.verify import assert_matches_oracle, build, draw_inputs

pytestmark = pytest.mark.contract


@pytest.mark.parametrize(("kind", "shape"), CASES, ids=str)
def test_forward_and_gradients_match_the_oracle(
    mmdit: ModuleType, kind: Kind, shape: Shape, rng: torch.Generator
) -> None:
    module = build(mmdit, kind, shape, rng)
    assert_matches_oracle(module, kind, shape, draw_inputs(kind, shape, rng), rng)


def test_stack_of_12_layers_at_the_target_size_matches_the_oracle(mmdit: ModuleType, rng: torch.Generator) -> None:
    module = build(mmdit, TARGET_STACK, TARGET, rng)
    assert_matches_oracle(module, TARGET_STACK, TARGET, draw_inputs(TARGET_STACK, TARGET, rng), rng)
