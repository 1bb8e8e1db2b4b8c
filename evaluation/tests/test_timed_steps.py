"""Timed training steps: outputs and gradients are summed in time and right, and cheats with gradients are told."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation.bench.stack_backward import differentiate
from evaluation.bench.trees import LoadedTree
from evaluation.judge.bounds import allowed
from evaluation.judge.case import Case, Sizes
from evaluation.judge.draw import draw
from evaluation.judge.layout import construction
from evaluation.judge.speed_cases import Plan, known_plans, plans, work_of
from evaluation.judge.speed_record import Rates, Turn
from evaluation.judge.timed_outputs import check_turn, with_weights
from evaluation.judge.turns import Values
from evaluation.suite.result import FailureKind
from evaluation.tests.gallery.timed_steps import HONEST_STEP, STEP_CHEATS, STEP_LOOK_ALIKES, STEP_PLAN, TimedEntry
from evaluation.tests.simulated import Bench
from evaluation.tests.test_timed_defences import outcome
from evaluation.worker.time_calls import Timer

SEED = 7
SMALL = Plan(Case("stack", Sizes(2, 9, 3, 2, 8, layers=2)), calls=2, rounds=3)
MANY = Plan(Case("stack", Sizes(17, 3, 2, 1, 4)), calls=2, rounds=3)
BY_NAME = {entry.name: entry for entry in (*STEP_CHEATS, *STEP_LOOK_ALIKES)}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(Timer, "give", Timer.give)  # which a cheat replaces
    counted = HONEST_STEP.replace("from torch.nn.functional import layer_norm", "layer_norm = _clock.layer_norm")
    return Bench(tmp_path, STEP_PLAN, counted.replace("range(100)", "range(5)"))


@pytest.mark.parametrize("entry", STEP_CHEATS, ids=str)
def test_a_cheat_with_gradients_is_told_for_what_it_is(bench: Bench, entry: TimedEntry):
    assert entry.told in outcome(bench.judged(entry.code))


@pytest.mark.parametrize("entry", STEP_LOOK_ALIKES, ids=str)
def test_honest_gradients_pass(bench: Bench, entry: TimedEntry):
    assert bench.judged(entry.code)[1] == ()


OFF = {
    "skips a gradient": "speed.error_problem",
    "replays old gradients": "speed.error_problem",
    "gradients left for after the time": "timed_outputs.sum_problem",
}


@pytest.mark.parametrize("name", OFF)
def test_without_the_oracle_or_the_sums_a_cheat_with_gradients_wins(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setattr(f"evaluation.judge.{OFF[name]}", lambda *_: None)
    assert outcome(bench.judged(BY_NAME[name].code)) == "faster"


def turn_of(plan: Plan, tree: LoadedTree, folder: Path, number: int = 0) -> Turn:
    """One turn of a tree's training step, by the worker's own code."""
    timer, case = Timer(tree.mmdit, folder, "cpu"), plan.case
    told = {"phase": "beside", "round": number, "worker": "after", "contender": "eager"}
    values = Values.draw(plan, SEED, ":".join(map(str, told.values())))
    save_file(values.tensors(), folder / "values")
    save_file(draw(case, SEED).weights[0], folder / "weights")
    timer.load("values", plan.calls)
    timer.begin("c", "weights", {"make": construction(case), "dtype": case.dtype, "mode": case.mode})
    timer.prepare("c", "eager")
    turn = Turn(**timer.go("c", "eager", values.signs), **told, host_seconds=1.0)
    timer.give(values.checked, turn.file(case), with_weights(plan, SEED, number))
    return turn


def check(turn: Turn, plan: Plan, folder: Path) -> tuple[object, dict[str, float]]:
    return check_turn(turn, plan, draw(plan.case, SEED).weights[0], SEED, folder, "cpu")


def test_outputs_and_all_gradients_of_a_step_are_right(after_tree: LoadedTree, tmp_path: Path):
    problem, errors = check(turn_of(SMALL, after_tree, tmp_path), SMALL, tmp_path)
    assert problem is None
    weights = {f"0.d.w.{name}" for name in draw(SMALL.case, SEED).weights[0]}
    inputs = {
        f"0.{name}" for name in ("d.x", "d.y", "d.context", "x_out", "x_out row", "context_out", "context_out row")
    }
    assert errors.keys() == weights | inputs
    assert not [name for name, error in errors.items() if error > allowed(name, "float32", None)]


def test_one_wrong_gradient_of_many_weights_is_seen_by_its_sum_and_where_that_is_forged_by_the_oracle(
    after_tree: LoadedTree, tmp_path: Path
):
    turn = turn_of(SMALL, after_tree, tmp_path)
    file = tmp_path / turn.file(SMALL.case)
    given = load_file(file)
    given["5"][100] += 1
    save_file(given, file)
    assert check(turn, SMALL, tmp_path)[0][0] is FailureKind.SPEED_FORGED
    values = Values.draw(SMALL, SEED, turn.part)
    flips = values.flips.double()
    sums = [list(each) for each in turn.sums]
    sums[values.checked][5] += float(flips.repeat(7)[100])
    forged = turn.model_copy(update={"sums": tuple(map(tuple, sums))})
    problem, errors = check(forged, SMALL, tmp_path)
    assert problem is None
    assert [name for name, error in errors.items() if error > allowed(name, "float32", None)]


def test_of_a_large_batch_weights_gradients_are_of_one_secret_round_and_of_all_samples(
    after_tree: LoadedTree, tmp_path: Path
):
    whole = [number for number in range(MANY.rounds) if with_weights(MANY, SEED, number)]
    assert len(whole) == 1
    assert {number for seed in range(40) for number in range(3) if with_weights(MANY, seed, number)} == {0, 1, 2}
    for number in (whole[0], (whole[0] + 1) % MANY.rounds):
        problem, errors = check(turn_of(MANY, after_tree, tmp_path, number), MANY, tmp_path)
        assert problem is None
        assert any(".d.w." in name for name in errors) == (number == whole[0])
        assert not [name for name, error in errors.items() if error > allowed(name, "float32", None)]


def test_the_step_is_what_the_benchmark_differentiates(after_tree: LoadedTree, tmp_path: Path):
    turn = turn_of(SMALL, after_tree, tmp_path)
    drawn = Values.draw(SMALL, SEED, turn.part).looked_at(draw(SMALL.case, SEED).weights[0], [0, 1])
    module = after_tree.mmdit.MMDiT(after_tree.mmdit.MMDiTConfig(**construction(SMALL.case)["configuration"])).eval()
    module.load_state_dict(dict(drawn.weights[0]))
    inputs = drawn.calls[0].inputs
    found = differentiate(module, (inputs["x"], inputs["y"], inputs["context"]), tuple(drawn.cotangents[0].values()))
    given = load_file(tmp_path / turn.file(SMALL.case))
    assert [torch.equal(given[str(n)], found[m]) for n, m in ((0, 0), (1, 1), (2, 4), (3, 2), (4, 3))] == [True] * 5
    names = [name for name, _ in module.named_parameters()]
    weights = dict(zip(names, found[5:], strict=True))
    assert torch.equal(given["5"], torch.cat([weights[name].flatten() for name in sorted(names)]))


def test_steps_are_timed_beside_inference_and_have_a_floor_of_their_own():
    rates = Rates(operations_per_s=1e12, bytes_per_s=1e12)
    for device, quick in (("cpu", False), ("cuda", True), ("cuda", False)):
        cases = [plan.case for plan in plans(device, quick)]
        assert {case.mode for case in cases} == {"inference", "backward"}
    assert {case.mode for plan in plans("cpu", True) for case in [plan.case]} == {"inference"}
    by_name = known_plans()
    for name, plan in by_name.items():
        if (forward := by_name.get(f"{name} inference")) is not None:
            assert work_of(plan.case, rates).least_seconds > 1.9 * work_of(forward.case, rates).least_seconds
