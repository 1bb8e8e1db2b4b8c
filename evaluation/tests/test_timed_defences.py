"""Each defence of a timed run, switched off: what it is for gets through. By clocks that no other process can slow."""

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.judge import speed
from evaluation.judge.case import Case, Sizes
from evaluation.judge.speed import Judged
from evaluation.judge.speed_cases import Plan
from evaluation.judge.speed_record import Phase, Worker
from evaluation.judge.turns import Values
from evaluation.report.speed_axis import speed_axis
from evaluation.tests.defences import DEFENCES
from evaluation.tests.gallery.timed import HONEST
from evaluation.tests.simulated import Bench, Body, World

HERE = Path(__file__).parent
PLAN = Plan(Case("layernorm_adaln", Sizes(2, 9, 1, 2, 8), mode="inference"), calls=2, rounds=6)
COUNTED = HONEST.replace("from torch.nn.functional import layer_norm", "layer_norm = _clock.layer_norm")
FUNCTION = "\n_kept = {}\ndef layernorm_adaln(x, scale, shift, eps=1e-6):\n    "
# The first is made to prepare; each turn has two.
SECOND_OF_TWO = (
    f"{FUNCTION}_kept[0] = _kept.get(0, -1) + 1\n    return x * 1.0 if _kept[0] % 2 else _honest(x, scale, shift)"
)
BY_VALUE = (
    f"{FUNCTION}key = x.numpy().tobytes()\n    if key not in _kept:\n        _kept[key] = _honest(x, scale, shift)\n"
    "    return _kept[key]"
)


def outcome(found: Judged) -> str:
    return found[1][0].message if found[1] else found[0].cases[0].outcome


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, PLAN, COUNTED.replace("range(600)", "range(20)"))


class TestWorkers:
    """The worker's own code, on candidates whose work is counted."""

    def test_who_is_honest_is_no_faster_and_who_needs_less_is(self, bench: Bench):
        assert outcome(bench.judged("")) == "inconclusive"
        assert outcome(bench.judged(f"{FUNCTION}return _honest(x, scale, shift, eps)")) == "inconclusive"
        cheap = bench.honest.replace("range(20)", "range(2)")
        assert outcome(bench.judged(cheap)) == "faster"

    def test_without_values_of_its_own_for_each_turn_a_replay_by_value_wins(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ):
        assert outcome(bench.judged(BY_VALUE)) == "inconclusive"
        draw = Values.draw
        monkeypatch.setattr(Values, "draw", lambda plan, seed, _part: draw(plan, seed, "the same"))
        assert outcome(bench.judged(BY_VALUE)) == "faster"

    def test_without_a_secret_which_call_is_checked_only_that_call_is_computed(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ):
        assert "relative L2 error" in outcome(bench.judged(SECOND_OF_TWO))
        draw = Values.draw

        def told(*given: Any) -> Values:
            return Values(**vars(draw(*given)) | {"checked": 1})

        monkeypatch.setattr(Values, "draw", told)
        assert outcome(bench.judged(SECOND_OF_TWO)) == "faster"


def steady(_world: World, _phase: Phase, worker: Worker, _name: str) -> float:
    return 1e-3


class TestTurns:
    """Turns that take what they are told to take."""

    def test_the_same_is_not_faster(self):
        assert outcome(World(PLAN, steady).judged()) == "inconclusive"

    def test_without_the_freeze_a_candidate_slows_the_other_down(self, monkeypatch: pytest.MonkeyPatch):
        def spinning(world: World, _phase: Phase, worker: Worker, _name: str) -> float:
            return 1e-3 * (4 if worker != "after" and "after" in world.running else 1)

        found = World(PLAN, spinning).judged()
        assert (outcome(found), found[0].cases[0].ratio.ratio) == ("inconclusive", 1.0)
        monkeypatch.setattr(Body, "freeze", lambda _: None)
        assert World(PLAN, spinning).judged()[0].cases[0].ratio.low == pytest.approx(4)  # it is before alone that tells
        monkeypatch.setattr(speed, "noise_floor", lambda same: max(each.high for each in same[:1]))
        assert outcome(World(PLAN, spinning).judged()) == "faster"

    def test_without_turns_a_machine_that_gets_faster_makes_who_comes_last_faster(
        self, monkeypatch: pytest.MonkeyPatch
    ):
        def warmed(world: World, phase: Phase, worker: Worker, _name: str) -> float:
            """After sees to it that the machine is twice as fast from its first turn that counts on."""
            world.warm = getattr(world, "warm", False) or (phase, worker) == ("beside", "after")
            return 5e-4 if world.warm else 1e-3

        assert outcome(World(PLAN, warmed).judged()) == "inconclusive"

        def one_after_another(world: World, phase: Phase, plan: Plan, sides: Any) -> None:
            for seat, name in sides:
                for number in range(plan.rounds):
                    world.turn(phase, number, plan, seat, name)

        monkeypatch.setattr(World, "in_turns", one_after_another)
        assert outcome(World(PLAN, warmed).judged()) == "faster"

    def test_without_the_strongest_baseline_a_captured_graph_of_the_same_is_faster(self):
        def launched(_world: World, _phase: Phase, _worker: Worker, name: str) -> float:
            return 1e-3 if name.endswith("graph") else 4e-3

        found = World(PLAN, launched, "cuda").judged()
        assert (outcome(found), found[0].cases[0].baseline) == ("inconclusive", "graph")
        found = World(replace(PLAN, baselines=("eager",)), launched, "cuda").judged()
        assert (outcome(found), found[0].cases[0].contender) == ("faster", "graph")

    def test_without_the_noise_floor_luck_is_faster(self, monkeypatch: pytest.MonkeyPatch):
        def by_luck(_world: World, _phase: Phase, worker: Worker, _name: str) -> float:
            return {"before": 1e-3, "again": 1.3e-3, "after": 8e-4}[worker]

        assert outcome(World(PLAN, by_luck).judged()) == "inconclusive"
        monkeypatch.setattr(speed, "noise_floor", lambda _same: 1.0)
        assert outcome(World(PLAN, by_luck).judged()) == "faster"

    def test_without_the_kernels_names_a_silent_fallback_passes(self, monkeypatch: pytest.MonkeyPatch):
        def faster(_world: World, _phase: Phase, worker: Worker, _name: str) -> float:
            return 5e-4 if worker == "after" else 1e-3

        def axis(after: str) -> str:
            found, failures = World(PLAN, faster, "cuda", {"before": "gemm", "again": "gemm", "after": after}).judged()
            return speed_axis(found, failures).status

        assert (axis("fused_rows"), axis("gemm")) == ("pass", "fail")
        monkeypatch.setattr(speed._Case, "path", lambda _: ("fused", ()))
        assert axis("gemm") == "pass"


def test_the_table_of_defences_names_tests_that_are_there():
    for file in {each.file for each in DEFENCES}:
        nodes = ast.walk(ast.parse((HERE / f"test_{file}.py").read_text(encoding="utf-8")))
        names = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        assert {f"test_{each.test}" for each in DEFENCES if each.file == file} <= names
