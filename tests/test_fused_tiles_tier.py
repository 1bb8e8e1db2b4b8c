"""SPEC K1, K2, K5: inference on tiles of rows, all of a stack but attention in a launch or two a layer."""

from collections.abc import Callable

import pytest
import torch

from tests import tiles_tier
from tests.cases import Shape
from tests.quick import slow_unless
from tests.tiles_tier import VARIANTS, Case

pytestmark = pytest.mark.upgrade

Run = Callable[..., None]
# Triton's interpreter computes bf16 wrongly. What the table gives each: tiles of 32 rows; of 64 (sm_80: 32); of 16 and
# an MLP in four slices.
TILE_32, TILE_64, SLICED = TABLE = ((torch.float32, 192), (torch.float16, 192), (torch.float16, 512))
ONE, TWO = Shape(1, 7, 5, 2, 16), Shape(2, 7, 5, 1, 32)
# No tile is full, x's or the context's last tile is full or has one row, and sizes that are no power of two.
SHAPES = (
    Shape(1, 1, 1, 2, 16),
    Shape(3, 7, 5, 1, 32),
    Shape(1, 65, 64, 2, 16),
    Shape(1, 64, 65, 5, 16),
    Shape(1, 70, 1, 3, 16),
)
CASES = [Case("cross", shape, *TILE_32) for shape in SHAPES]
CASES += [Case("cross", SHAPES[0], *SLICED), Case("cross", SHAPES[2], *SLICED), Case("cross", SHAPES[3], *TILE_64)]
# No rows of context, and none at all.
CASES += [Case(kind, Shape(2, 7, 0, 1, 32), *TILE_64) for kind in ("cross", "conditioned", "plain")]
CASES += [Case(kind, Shape(1, 7, 0, 1, 32), *SLICED) for kind in ("cross", "plain")]
CASES += [Case("cross", ONE, dtype, forward) for dtype, forward in ((torch.float32, 64), (torch.float16, 1024))]
MASKED = [Case("cross", TWO, *TILE_32, mask=m) for m in ("random", "empty-rows-and-columns", "all-empty")]
MASKED += [Case(kind, ONE, *TILE_64, mask="empty-rows-and-columns") for kind in ("cross", "plain")]
MASKED += [Case("cross", Shape(1, 65, 33, 1, 16), *TILE_32, mask="random")]
MASKED += [Case("cross", ONE, *TILE_32, mask=mask) for mask in ("int64", "transposed-strides")]
STARTED = [Case("cross", TWO, *TILE_32, start=start) for start in ("tensor", "int32-tensor", "spaced-tensor")]
STARTED += [Case("cross", ONE, *SLICED, start="int"), Case("cross", TWO, *TILE_64, start="tensor")]
LATER_LAYERS = [Case("cross", ONE, *row, mask="random", start="tensor", layers=3) for row in (TILE_32, SLICED)]
STRIDED = [Case("cross", ONE, *TILE_32, variant=name) for name in VARIANTS if name not in ("plain", "expanded")]
STRIDED += [Case("cross", TWO, *TILE_32, variant="expanded"), Case("cross", ONE, *TILE_64, variant="transposed")]
CASES += [*MASKED, *STARTED, *LATER_LAYERS, *STRIDED]
LESS_USUAL = {"all-empty", "int64", "transposed-strides", "int32-tensor", "spaced-tensor", "tiny", "expanded"}
BLOCKS = [Case("cross", ONE, *SLICED, layers=1), Case("plain", ONE, *TILE_32, layers=1)]
# gain: logits grow with its square, past what exp2 takes without the running maximum.
NEEDLES = [
    Case("cross", ONE, dtype, forward, mask, gain=gain)
    for (dtype, forward), gain, mask in zip(TABLE, (6.0, 3.0, 3.0), (None, None, "empty-rows-and-columns"), strict=True)
]
LATENCY = {"tile": 16, "qkv_parts": 3, "qkv_warps": 4, "slices": 4, "block_f": 32, "stages": 1, "rows_warps": 4}
THROUGHPUT = LATENCY | {"tile": 64, "qkv_parts": 1, "slices": 1, "stages": 3}
PLANS = {
    "latency": LATENCY,
    "latency-of-two-slices-in-blocks": LATENCY | {"slices": 2},
    "latency-of-whole-projections": LATENCY | {"qkv_parts": 1},
    "throughput": THROUGHPUT,
    "throughput-in-one-block": THROUGHPUT | {"block_f": 128},
    "throughput-of-split-projections": THROUGHPUT | {"qkv_parts": 3, "tile": 32},
}
EVERY_PLAN = Case("cross", ONE, torch.float32, 128, "empty-rows-and-columns", "tensor")
ONE_STREAM = Shape(1, 17, 0, 1, 16)
PLANNED = [(name, EVERY_PLAN) for name in PLANS]
PLANNED += [
    (name, Case(kind, ONE_STREAM, torch.float32, 128, mask, "int"))
    for name, kind, mask in (
        ("latency", "conditioned", "random"),
        ("latency", "plain", None),
        ("throughput", "plain", None),
    )
]


@pytest.mark.parametrize(
    "case", slow_unless(lambda case: not LESS_USUAL & {case.mask, case.start, case.variant}, CASES), ids=str
)
def test_a_stack_matches_the_oracle_in_the_launches_of_its_plan(run: Run, case: Case) -> None:
    run(tiles_tier.stack_matches_the_oracle, case, False)


@pytest.mark.parametrize("case", BLOCKS, ids=str)
def test_a_block_alone_matches_the_oracle_in_the_launches_of_its_plan(run: Run, case: Case) -> None:
    run(tiles_tier.stack_matches_the_oracle, case, True)


@pytest.mark.parametrize("case", NEEDLES, ids=str)
def test_logits_too_large_for_a_plain_exponential_are_exact_still(run: Run, case: Case) -> None:
    run(tiles_tier.stack_matches_the_oracle, case, False)


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "case"), PLANNED, ids=str)
def test_every_plan_matches_the_oracle(run: Run, plan: str, case: Case) -> None:
    run(tiles_tier.plan_matches_the_oracle, case, PLANS[plan])


@pytest.mark.parametrize("case", [Case("cross", Shape(1, 1, 1, 1, 16), *SLICED, mask="random")], ids=str)
def test_two_runs_give_the_same_bits(run: Run, case: Case) -> None:
    run(tiles_tier.two_runs_give_the_same_bits, case)


@pytest.mark.parametrize("case", [Case("cross", ONE, *TILE_64)], ids=str)
def test_weights_and_inputs_may_lie_at_any_address(run: Run, case: Case) -> None:
    run(tiles_tier.weights_may_lie_at_any_address, case)
