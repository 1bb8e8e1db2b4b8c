"""SPEC A6, start_pos: None, an int, or an int per sample, up to the last one that the table holds."""

from types import ModuleType

import pytest
import torch

from tests.cases import BLOCK_CROSS, CROSS, SELF, SELF_LINEAR, SMALL, STACK, START_POSITIONS, Kind, Shape
from tests.numerics import TOLERANCE, assert_close, relative_l2
from tests.verify import assert_matches_oracle, build, draw_inputs

pytestmark = pytest.mark.contract

KINDS = {SELF: SMALL, CROSS: SMALL, BLOCK_CROSS: SMALL, STACK: SMALL, SELF_LINEAR: Shape(2, 17, 5, 2, 64)}


@pytest.mark.parametrize("start", START_POSITIONS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_start_pos_matches_the_oracle(mmdit: ModuleType, kind: Kind, start: str, rng: torch.Generator) -> None:
    shape = KINDS[kind]
    module, inputs = build(mmdit, kind, shape, rng), draw_inputs(kind, shape, rng)
    assert_matches_oracle(module, kind, shape, inputs, rng, start_pos=START_POSITIONS[start](shape))


def test_start_pos_and_mask_together_match_the_oracle(mmdit: ModuleType, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, STACK, SMALL, rng), draw_inputs(STACK, SMALL, rng)
    options = {"attn_mask": torch.ones(2, 17, 17).tril(), "start_pos": torch.tensor([5, 0])}
    assert_matches_oracle(module, STACK, SMALL, inputs, rng, **options)


def test_one_step_of_position_is_seen_through_the_context(mmdit: ModuleType, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, CROSS, SMALL, rng), draw_inputs(CROSS, SMALL, rng)
    here, next_one = (module(**inputs, start_pos=start).x_out for start in (7, 8))
    assert relative_l2(next_one, here.double()) > 1e-3


def test_self_attention_depends_on_relative_positions_alone(mmdit: ModuleType, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, SELF, SMALL, rng), draw_inputs(SELF, SMALL, rng)
    assert_close(module(**inputs, start_pos=4000).x_out, module(**inputs).x_out, TOLERANCE[torch.float32])


def test_the_table_ends_at_max_seq_len(mmdit: ModuleType, rng: torch.Generator) -> None:
    module = mmdit.RMSNormSelfAttention(16, 2, max_seq_len=20)
    x = torch.randn(1, 17, 16, generator=rng)
    assert module(x, start_pos=3).x_out.isfinite().all()
    with pytest.raises(mmdit.PositionError):
        module(x, start_pos=4)
