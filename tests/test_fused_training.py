"""SPEC K1, K3: forward and backward of a stack on tiles of rows, in one autograd function."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import row_sums, training_compiled, training_tier
from tests.cases import Shape
from tests.quick import slow_unless
from tests.tiles_tier import Case

pytestmark = pytest.mark.upgrade

Run = Callable[..., None]
FP32, FP16 = (torch.float32, 64), (torch.float16, 128)
ONE = Shape(1, 7, 5, 2, 16)
# No tile is full, x's or the context's last tile is full or has one row, and sizes that are no power of two.
CASES = [
    (Case("cross", Shape(2, 7, 5, 3, 16), *FP32), "none"),
    (Case("cross", Shape(1, 65, 64, 1, 16), *FP32, layers=1), "none"),
    (Case("cross", Shape(1, 64, 65, 1, 32), *FP16, layers=1), "selective"),
    (Case("cross", Shape(2, 1, 1, 1, 64), torch.float16, 192), "full"),
    (Case("plain", Shape(2, 7, 0, 2, 16), *FP32), "none"),
    (Case("plain", Shape(1, 65, 0, 1, 16), *FP16), "full"),
    (Case("conditioned", Shape(2, 7, 0, 1, 32), *FP32), "selective"),
    (Case("cross", ONE, *FP32, "random", "tensor", layers=3), "none"),
    (Case("cross", Shape(2, 7, 5, 1, 16), *FP32, "empty-rows-and-columns", "int32-tensor"), "selective"),
    (Case("cross", Shape(2, 7, 5, 1, 16), *FP16, "empty-rows-and-columns", "int"), "full"),
    (Case("cross", ONE, *FP32, "all-empty"), "full"),
    (Case("cross", ONE, *FP32, variant="strided-rows"), "none"),
    (Case("cross", ONE, *FP32, variant="transposed"), "full"),
    (Case("cross", Shape(2, 7, 5, 1, 16), *FP32, variant="expanded"), "none"),
    (Case("cross", ONE, *FP32, variant="y-of-rank-3"), "none"),
]
FROZEN = ("last-layer", "a-bias", "modulation", "x")


@pytest.mark.parametrize(
    ("case", "recompute"),
    slow_unless(lambda case, recompute: case.variant == "plain" and case.layers < 3, CASES),
    ids=str,
)
def test_every_gradient_matches_the_oracle(run: Run, case: Case, recompute: str) -> None:
    run(training_tier.gradients_match_the_oracle, case, recompute, False)


@pytest.mark.parametrize("kind", ["plain", "cross"])
def test_a_block_alone_matches_the_oracle(run: Run, kind: str) -> None:
    run(training_tier.gradients_match_the_oracle, Case(kind, ONE, *FP32, layers=1), "none", True)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_two_runs_give_the_same_bits(run: Run, recompute: str) -> None:
    run(training_tier.two_runs_give_the_same_bits, Case("cross", Shape(1, 3, 33, 1, 16), *FP32, "random"), recompute)


@pytest.mark.parametrize(("recompute", "checkpointed"), [("none", False), ("full", True)])
def test_dropout_drops_what_philox_says_forwards_and_backwards(run: Run, recompute: str, checkpointed: bool) -> None:
    run(training_tier.dropout_is_replayed, Case("cross", ONE, *FP32), 0.4, recompute, checkpointed)


def test_dropout_without_gradients_drops_the_same(run: Run) -> None:
    run(training_tier.dropout_without_gradients_is_the_same, Case("cross", ONE, *FP32))


@pytest.mark.parametrize("which", slow_unless(lambda which: which == "x", FROZEN))
def test_what_is_frozen_costs_nothing(run: Run, which: str) -> None:
    run(training_tier.frozen_weights_cost_nothing, which)


def test_gradients_of_heads_may_come_in_either_order(run: Run) -> None:
    run(training_tier.gradients_of_heads_may_come_in_either_order)


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_one(tree: Path) -> None:
    """Under DistributedDataParallel and fully_shard, each process with half of the batch."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "REPO_PATH": str(tree)}
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.distributed_training",
    ]
    done = subprocess.run(
        [sys.executable, *launch],
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("gradients match") == 4, done.stdout


@pytest.mark.parametrize("what", training_tier.OBSTACLES)
def test_what_the_kernels_cannot_train_takes_the_modules_and_says_why(run: Run, what: str) -> None:
    run(training_tier.an_obstacle_sends_a_step_to_the_modules, what)


def test_an_unknown_recompute_is_refused(run: Run) -> None:
    run(training_tier.an_unknown_recompute_is_refused)


@pytest.mark.parametrize(
    "check",
    [
        training_tier.second_derivatives_raise,
        training_tier.a_second_backward_gives_the_same,
        training_tier.weights_may_be_swapped,
        row_sums.sums_are_the_rows_and_keep_what_is_no_number,
    ],
    ids=lambda check: check.__name__,
)
def test_a_training_step_s_surroundings_are_kept(run: Run, check: Callable[..., None]) -> None:
    run(check)


@pytest.mark.parametrize(
    ("case", "recompute", "p"),
    slow_unless(lambda case, *_: case == training_compiled.HALF, training_compiled.CASES),
    ids=str,
)
def test_a_compiled_step_has_the_bits_of_an_eager_one(run: Run, case: Case, recompute: str, p: float) -> None:
    run(training_compiled.a_compiled_step_has_the_bits_of_an_eager_one, case, recompute, p)


@pytest.mark.slow
@pytest.mark.parametrize(
    "check",
    [
        training_compiled.a_compiled_step_computes_what_is_wanted,
        training_compiled.lengths_share_a_compiled_step,
        training_compiled.a_first_call_may_be_compiled,
        training_compiled.what_the_operator_does_not_take_keeps_its_modules,
        training_compiled.the_operators_pass_opcheck,
    ],
    ids=lambda check: check.__name__,
)
def test_a_compiled_step(run: Run, check: Callable[..., None]) -> None:
    run(check)
