"""SPEC A6, masks: over x alone, grown by the context, of any dtype, with rows and columns that are empty."""

from types import ModuleType

import pytest
import torch

from tests.cases import (
    BLOCK_CROSS,
    CROSS,
    CROSS_LINEAR,
    MASKS,
    SELF,
    SELF_LINEAR,
    SMALL,
    STACK,
    Kind,
    Shape,
    random_mask,
)
from tests.verify import assert_matches_oracle, build, draw_inputs

pytestmark = pytest.mark.contract

WIDE = Shape(2, 17, 5, 2, 64)
KINDS = {SELF: SMALL, CROSS: SMALL, BLOCK_CROSS: SMALL, STACK: SMALL, SELF_LINEAR: WIDE, CROSS_LINEAR: WIDE}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_masked_attention_matches_the_oracle(mmdit: ModuleType, kind: Kind, mask: str, rng: torch.Generator) -> None:
    shape = KINDS[kind]
    module, inputs = build(mmdit, kind, shape, rng), draw_inputs(kind, shape, rng)
    attn_mask = MASKS[mask](random_mask(shape, rng))
    assert_matches_oracle(module, kind, shape, inputs, rng, attn_mask=attn_mask)


@pytest.mark.parametrize("kind", [SELF, CROSS, SELF_LINEAR], ids=str)
def test_a_row_that_sees_nothing_gets_the_projection_of_zero(
    mmdit: ModuleType, kind: Kind, rng: torch.Generator
) -> None:
    module, inputs = build(mmdit, kind, SMALL, rng), draw_inputs(kind, SMALL, rng)
    attn_mask = random_mask(SMALL, rng).index_fill(1, torch.tensor(3), False)
    row = module(**inputs, attn_mask=attn_mask).x_out[:, 3]
    torch.testing.assert_close(row, module.to_out(torch.zeros_like(row)))
