"""SPEC K1: the copy of a stack's weights for the kernel that takes all of its layers."""

from collections.abc import Callable

import pytest
import torch

from tests import tiles_tier
from tests.cases import Shape
from tests.tiles_tier import Case

pytestmark = pytest.mark.upgrade


@pytest.mark.parametrize("kind", ["cross", "plain"])
@pytest.mark.parametrize("forward", [128, 512])
@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
def test_weights_are_packed_as_they_are(run: Callable[..., None], kind: str, forward: int, aligned: bool) -> None:
    case = Case(kind, Shape(1, 4, 4, 8, 16), torch.float16, forward, layers=3)
    run(tiles_tier.weights_are_packed, case, aligned)
