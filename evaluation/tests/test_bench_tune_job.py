"""What the tuning command tries beside the fused tree's tables, checks and rejects, without a GPU."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from time import monotonic
from types import ModuleType
from typing import Any, get_args

import pytest
import torch

from evaluation.bench import tune
from evaluation.bench.timing import Rounds
from evaluation.bench.trees import LoadedTree
from evaluation.bench.tune_record import TunedOp, TuneJob, TuneResult
from evaluation.bench.tune_tables import TABLES
from evaluation.tests.test_bench_stack import AFTER, BEFORE
from evaluation.tests.test_bench_tune import JOB, SMALL

TARGET = SMALL.model_copy(update={"dim": 128, "heads": 8, "feed_forward": 512})


def module(after_tree: LoadedTree, name: str) -> ModuleType:
    return after_tree.modules[f"mmdit.{name}"]


def test_only_one_architecture_says_that_it_was_measured(after_tree: LoadedTree) -> None:
    key = module(after_tree, "runtime.architecture").architecture
    assert [str(key(version)) for version in ((8, 0), (8, 9), (9, 0), (10, 3), (12, 0), (0, 0))] == [
        *["sm_80, not measured"] * 2,
        "sm_90",
        *["sm_100, not measured"] * 2,
        "sm_80, not measured",
    ]


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("joint_attention", "TILES"),
        *[("norm_adaln", name) for name in ("FORWARD", "BACKWARD", "REDUCE")],
        ("pack_heads", "ROWS"),
    ],
)
def test_a_table_has_an_entry_for_every_architecture(after_tree: LoadedTree, op: str, name: str) -> None:
    table = getattr(module(after_tree, f"ops.{op}.tuning"), name)
    assert list(table) == [entry.name for entry in module(after_tree, "runtime.architecture").ARCHITECTURES]


def present_tiles(after_tree: LoadedTree, op: TunedOp) -> Any:
    """Some tiles that the op's table gives on a GPU."""
    if op == "stack_rows":
        rows = module(after_tree, "ops.stack_rows.tuning").row_tiles
        return rows(64, 128, 512, torch.empty(1, dtype=torch.float16))
    if "attention" in op:
        return module(after_tree, "ops.joint_attention.tuning").attention_tiles(
            "sm_90", 8, 256, 16, torch.float16, False, "ieee"
        )
    tuning = module(after_tree, "ops.norm_adaln.tuning")
    return (
        tuning.reduce_tiles("sm_90", 128) if op == "norm_adaln_reduce" else tuning.forward_tiles("sm_90", 1, 186, 128)
    )


@pytest.mark.parametrize("op", get_args(TunedOp))
def test_the_nearest_tiles_are_tried_first_each_once_and_never_the_tables_own(
    after_tree: LoadedTree, op: TunedOp
) -> None:
    table, present = TABLES[op], present_tiles(after_tree, op)
    others = table.others(present, TARGET)
    assert present not in others
    assert len(others) == len(set(others)) > 10
    changes = [sum(a != b for a, b in zip(tiles, present, strict=True)) for tiles in others[len(table.early) :]]
    assert changes == sorted(changes)
    assert changes[-1] > 1 == changes[0]


def test_row_tiles_are_tried_only_where_their_blocks_divide_the_features(after_tree: LoadedTree) -> None:
    others = TABLES["stack_rows"].others(present_tiles(after_tree, "stack_rows"), TARGET)
    assert {tiles.tile for tiles in others if tiles.hopper} == {64}
    assert {512 // tiles.slices % tiles.block_f for tiles in others} == {0}
    assert others[0].hopper
    other_sizes = ({"dim": 64}, {"feed_forward": 384}, {"feed_forward": 64})
    cases = [TARGET.model_copy(update=sizes) for sizes in other_sizes]
    assert [tiles for case in cases for tiles in TABLES["stack_rows"].others(others[1], case) if tiles.hopper] == []
    narrow = TABLES["stack_rows"].others(others[0], TARGET.model_copy(update={"feed_forward": 192}))
    assert {tiles.slices * tiles.block_f for tiles in narrow} <= {32, 64, 192}


def test_a_masked_kernel_is_tried_with_32_keys_at_a_time_only(after_tree: LoadedTree) -> None:
    present = present_tiles(after_tree, "joint_attention")._replace(keys=32)
    others = TABLES["joint_attention"].others(present, SMALL.model_copy(update={"masked": True}))
    assert {tiles.keys for tiles in others} == {32}


# A job, in Triton's interpreter and with a clock of its own


def replace_the_gpu(patch: pytest.MonkeyPatch) -> tuple[LoadedTree, LoadedTree]:
    """Both trees. Contenders are captured as they are, and take 1, 2, 3 us a call."""
    patch.setattr(tune, "DEVICE", "cpu")
    patch.setattr(tune, "capture", lambda call: call)
    patch.setattr(
        tune,
        "time_in_turns",
        lambda calls, rounds, rep_ms, flush: {n: Rounds([10.0 * us] * rounds, 7) for n, us in zip(calls, count(1))},
    )
    return LoadedTree.load(BEFORE), LoadedTree.load(AFTER)


def tune_small(job: TuneJob, seconds: float, trees: tuple[LoadedTree, LoadedTree]) -> TuneResult:
    plan = tune.TunePlan(BEFORE, AFTER, (job,), rounds=3, rep_ms=1)
    return tune.tune_job(job, *trees, plan, monotonic() + seconds, lambda _: None)


def tune_attention() -> tuple[TuneResult, bool]:
    """With tiles beside the table's that do not compile, whose outputs are wrong, and that are right; and whether the
    table is as before.
    """
    patch = pytest.MonkeyPatch()
    trees = replace_the_gpu(patch)
    table = TABLES["joint_attention"]
    numbers = {"queries": (32, 33), "keys": (32, 64)}
    patch.setitem(TABLES, "joint_attention", table._replace(numbers=numbers, fits=lambda *_: True))
    asker = trees[1].modules[table.asker]
    look_up = asker.attention_tiles
    masked = SMALL.model_copy(update={"masked": True})
    return tune_small(TuneJob(op="joint_attention", case=masked), 1e9, trees), asker.attention_tiles is look_up


def tune_what_does_not_compile() -> TuneResult:
    patch = pytest.MonkeyPatch()
    trees = replace_the_gpu(patch)
    asker = trees[1].modules[TABLES[JOB.op].asker]
    look_up = asker.attention_tiles
    patch.setattr(asker, "attention_tiles", lambda *given: look_up(*given)._replace(queries=33))
    return tune_small(JOB, 1e9, trees)


def tune_in_no_time() -> list[TuneResult]:
    patch = pytest.MonkeyPatch()
    trees = replace_the_gpu(patch)
    return [tune_small(TuneJob(op=op, case=SMALL), 0.0, trees) for op in get_args(TunedOp)]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Runs a function in a process of its own, with Triton's interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    def run(function: Callable[[], Any]) -> Any:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(function).result()

    return run


def test_tiles_that_do_not_compile_or_are_wrong_are_named_and_never_timed(
    interpreted: Callable[[Callable[[], Any]], Any],
) -> None:
    result, table_is_as_before = interpreted(tune_attention)
    assert table_is_as_before
    right = "queries={}, keys=32, warps=2, stages=2, block=16"  # the table of sm_80, which the interpreter takes
    assert [timing.tiles for timing in result.timings] == [right.format(32)]
    (timing,) = result.timings
    assert (timing.rounds_us, timing.samples) == ([1.0] * 3, 70), "of a call, of which a graph holds ten"
    assert 0 < timing.error < 1e-3
    reasons = {rejected.tiles: rejected.reason for rejected in result.rejected}
    assert "expected an error of at most" in reasons[right.format(32).replace("keys=32", "keys=64")]
    assert "power of 2" in reasons[right.format(33)]
    assert "masked=True" in result.asked
    assert result.table == "mmdit.ops.joint_attention.tuning.attention_tiles"


def test_where_the_tables_own_tiles_do_not_compile_nothing_is_timed(
    interpreted: Callable[[Callable[[], Any]], Any],
) -> None:
    result = interpreted(tune_what_does_not_compile)
    assert result.problem.startswith("the table's own tiles: ")
    assert "power of 2" in result.problem
    assert (result.timings, result.asked is None) == ([], False)


def test_every_op_asks_its_table_and_out_of_time_only_the_tables_tiles_are_timed(
    interpreted: Callable[[Callable[[], Any]], Any],
) -> None:
    for result in interpreted(tune_in_no_time):
        assert result.problem is None, result
        assert len(result.timings) == 1
        assert result.timings[0].error < 1e-3
        assert result.rejected == []
        assert len(result.not_tried) > 10
