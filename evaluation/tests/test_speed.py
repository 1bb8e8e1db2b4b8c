"""Timed workers and their judge: honest ones pass, cheats are told for what they are, each by the defence for it."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evaluation.judge import same, speed
from evaluation.judge.speed import Judged, judge_speed_again, keep_raw
from evaluation.judge.speed_cases import Plan
from evaluation.judge.speed_record import ContenderFacts, Kernel, Rates, RawSpeed, Turn, Work
from evaluation.judge.turns import Values
from evaluation.report.speed_axis import speed_axis
from evaluation.suite.result import Failure, FailureKind, GraderError
from evaluation.suite.stage import Staged
from evaluation.tests.gallery.stopwatch import PLAN, Stopwatch, judged, stopwatch
from evaluation.tests.gallery.timed import CHEATS, GAIN_NOTHING, HONEST_LOOK_ALIKES, TimedEntry

BY_NAME = {entry.name: entry for entry in (*CHEATS, *GAIN_NOTHING, *HONEST_LOOK_ALIKES)}
CAUGHT = (
    "times divided where they are told",
    "answer before its time, as it was asked for",
    "work left for after the time",
    "lazy output",
    "replay by pointer",
)
Run = Callable[[str], tuple[RawSpeed, Path]]


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stopwatch]:
    with stopwatch(tmp_path_factory.mktemp("timed"), seed=20261121) as found:
        yield found


@pytest.fixture(scope="module")
def run(watch: Stopwatch) -> Run:
    """A candidate of the gallery beside before, once for all tests."""
    return cache(lambda name: watch.raw(BY_NAME[name].code))


def changed(raw: RawSpeed, change: Callable[[Turn], dict[str, Any]], **more: Any) -> RawSpeed:
    """The same run with other turns."""
    (case,) = raw.cases
    turns = tuple(turn.model_copy(update=change(turn)) for turn in case.turns)
    return raw.model_copy(update={"cases": (case.model_copy(update={"turns": turns} | more),)})


def outcome(found: Judged) -> tuple[str, tuple[Failure, ...]]:
    return found[0].cases[0].outcome, found[1]


WINS = "faster", ()


class TestHonest:
    def test_the_same_is_not_faster_and_nothing_is_held_against_it(self, run: Run):
        found, failures = judged(*run("as it is"))
        assert failures == ()
        assert found.what == "fallback"
        assert found.cases[0].outcome != "faster"
        assert found.cases[0].path == "fallback"
        assert [(each.worker, len(each.rounds)) for each in found.cases[0].contenders] == [
            ("before", PLAN.rounds),
            ("again", PLAN.rounds),
            ("after", PLAN.rounds),
        ]

    def test_what_is_faster_is_told_as_faster_by_both_clocks(self, run: Run):
        found, failures = judged(*run("really faster"))
        assert (failures, found.cases[0].outcome) == ((), "faster")
        assert found.cases[0].ratio.low > 3
        assert found.cases[0].host_ratio.low > 1

    def test_a_kept_run_is_judged_the_same_and_refused_where_it_was_changed(self, run: Run):
        raw, folder = run("really faster")
        known, quiet = {PLAN.case.name: PLAN}, Console(quiet=True)
        keep_raw(raw, folder)
        assert judge_speed_again(folder, known, quiet) == judged(raw, folder)
        with pytest.raises(GraderError, match="does not know"):
            judge_speed_again(folder, {}, quiet)
        (folder / "more.safetensors").write_bytes(b"")
        with pytest.raises(GraderError, match="does not hold the outputs"):
            judge_speed_again(folder, known, quiet)
        (folder / "more.safetensors").unlink()

    def test_workers_are_asked_in_turns(self, run: Run):
        (case,) = run("as it is")[0].cases
        beside = [turn.worker for turn in case.turns if turn.phase == "beside"]
        assert beside == ["before", "after", "after", "before"] * (PLAN.rounds // 2)

    def test_no_two_turns_have_the_same_values(self):
        first, again, other = (Values.draw(PLAN, 1, part) for part in ("a", "a", "b"))
        assert first.calls[0].inputs["x"].equal(again.calls[0].inputs["x"])
        assert not first.calls[0].inputs["x"].equal(other.calls[0].inputs["x"])
        assert not first.calls[0].inputs["x"].equal(first.calls[1].inputs["x"])
        assert (first.signs, set(first.signs)) != (other.signs, {"+"})


@pytest.mark.parametrize("name", CAUGHT)
def test_a_cheat_is_told_for_what_it_is(run: Run, name: str):
    found, failures = judged(*run(name))
    entry: TimedEntry = BY_NAME[name]
    assert [each.tree for each in failures] == ["after"]
    assert entry.told in failures[0].message
    assert found.cases[0].outcome == "not_measured"
    assert speed_axis(found, failures).status == "fail"


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Checks of the judge's, switched off."""
    for name in names:
        module, _, check = name.rpartition(".")
        monkeypatch.setattr(f"evaluation.judge.{module}.{check}", lambda *_: None)


class TestDefencesSwitchedOff:
    """What each is for gets through without it."""

    def test_without_the_clock_forged_times_pass_and_without_the_hosts_ratio_they_win(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ):
        raw, folder = run("times divided where they are told")
        without(monkeypatch, "speed.clock_problem")
        assert outcome(judged(raw, folder)) in (("inconclusive", ()), ("slower", ()))
        monkeypatch.setattr(speed, "compare", lambda ratios, floor: _compare(ratios[:1], floor))
        assert outcome(judged(raw, folder)) == WINS

    def test_without_the_sums_work_that_is_left_for_later_wins(self, run: Run, monkeypatch: pytest.MonkeyPatch):
        without(monkeypatch, "timed_outputs.sum_problem")
        assert outcome(judged(*run("work left for after the time"))) == WINS

    def test_without_the_oracle_a_replay_wins(self, run: Run, monkeypatch: pytest.MonkeyPatch):
        without(monkeypatch, "speed.error_problem")
        assert outcome(judged(*run("replay by pointer"))) == WINS

    def test_without_the_form_and_the_clock_a_lazy_output_passes(self, run: Run, monkeypatch: pytest.MonkeyPatch):
        without(monkeypatch, "timed_outputs.form_problem")
        assert "are explained" in judged(*run("lazy output"))[1][0].message
        without(monkeypatch, "speed.clock_problem")
        assert judged(*run("lazy output"))[1] == ()

    def test_without_signs_that_come_late_what_was_computed_ahead_wins(
        self, run: Run, watch: Stopwatch, monkeypatch: pytest.MonkeyPatch
    ):
        name = "computed ahead of its time"
        assert outcome(judged(*run(name)))[0] != "faster"
        draw = Values.draw

        def unsigned(*given: Any) -> Values:
            return Values(**vars(draw(*given)) | {"signs": "+" * PLAN.case.sizes.dim})

        monkeypatch.setattr(Values, "draw", unsigned)
        assert outcome(judged(*watch.raw(BY_NAME[name].code))) == WINS

    def test_a_before_that_is_slowed_beside_after_makes_nothing_faster(self, run: Run, monkeypatch: pytest.MonkeyPatch):
        def slowed(turn: Turn) -> dict[str, Any]:
            scale = 5e-3 * (4 if (turn.phase, turn.worker) == ("beside", "before") else 1) * (1 + turn.round / 1e3)
            return {"seconds": (scale, scale), "host_seconds": 2 * scale}

        raw, folder = run("as it is")
        raw = changed(raw, slowed)
        found, failures = judged(raw, folder)
        assert (found.cases[0].outcome, failures) == ("inconclusive", ())
        assert found.cases[0].ratio.low > 3.9
        monkeypatch.setattr(speed, "noise_floor", lambda same: max(each.high for each in same[:1]))
        assert outcome(judged(raw, folder)) == WINS

    def test_what_no_machine_can_do_is_refused_and_passes_without_the_floor(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ):
        def impossible(turn: Turn) -> dict[str, Any]:
            return {"seconds": (1e-9,) * 2, "host_seconds": 1e-8} if turn.worker == "after" else {}

        raw, folder = run("as it is")
        slow = Rates(operations_per_s=1e15, bytes_per_s=None)
        monkeypatch.setattr(speed, "work_of", lambda *_: Work(operations=10**9, moved_bytes=1, rates=slow))
        failures = judged(changed(raw, impossible), folder)[1]
        assert [each.kind for each in failures] == [FailureKind.SPEED_FORGED]
        assert "takes this machine at least 1e-06 s" in failures[0].message
        without(monkeypatch, "speed.floor_problem")
        assert outcome(judged(changed(raw, impossible), folder)) == WINS


_compare = speed.compare


class TestRuns:
    def test_a_run_that_was_not_finished_is_not_measured(self, run: Run):
        raw, folder = run("as it is")
        (case,) = raw.cases
        turns = case.turns[:-3]
        raw = raw.model_copy(update={"cases": (case.model_copy(update={"turns": turns}),)})
        found, _ = judged(raw, folder)
        assert (found.cases[0].outcome, found.cases[0].why) == ("not_measured", "after was not timed to its end")

    def test_outputs_that_are_not_there_are_wrong(self, run: Run, tmp_path: Path):
        _, failures = judged(run("as it is")[0], tmp_path)
        assert {each.kind for each in failures} == {FailureKind.TIMED_OUTPUT_WRONG}
        assert "cannot be read" in failures[0].message

    @pytest.mark.parametrize(
        ("own", "path", "status", "says"),
        [
            (("fused_rows",), "fused", "pass", "faster: before's eager takes"),
            (("gemm",), "fallback", "fail", "which is a silent fallback"),
            ((), "unknown", "inconclusive", "kernels that nobody could name"),
            (("fused_rows", "gemm", "gemm"), "mixed", "inconclusive", "partly by kernels of its own"),
        ],
    )
    def test_on_a_gpu_kernels_tell_whether_it_was_the_fused_path(
        self, run: Run, own: tuple[str, ...], path: str, status: str, says: str
    ):
        """What a GPU would have told, of a run that had none."""
        raw, folder = run("really faster")
        facts = tuple(
            each.model_copy(update={"kernels": kernels(own if each.worker == "after" else ("gemm", "layer_norm"))})
            for each in raw.cases[0].contenders
        )
        raw = changed(
            raw, lambda turn: {"forms": tuple(f.replace(" cpu", " cuda") for f in turn.forms)}, contenders=facts
        )
        found, failures = judged(raw.model_copy(update={"device": "cuda"}), folder)
        axis = speed_axis(found, failures)
        assert (found.what, found.cases[0].path, axis.status) == ("fused", path, status)
        assert says in axis.reason
        assert found.cases[0].own_kernels == tuple(name for name in own[:1] if name == "fused_rows")


@pytest.mark.parametrize(("after", "code", "says"), [(5e-3, 0, "1 of 1"), (1e-3, 1, "0 of 1")])
def test_a_tree_against_itself_has_to_be_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], after: float, code: int, says: str
):
    def steady(turn: Turn) -> dict[str, Any]:
        seconds = after if turn.worker == "after" else 5e-3
        return {"seconds": (seconds, seconds), "host_seconds": 2 * seconds}

    raw, folder = run("as it is")
    monkeypatch.setattr(same, "judge_speed", lambda *_: judged(changed(raw, steady), folder))
    monkeypatch.setattr(same, "plans", lambda *_: (PLAN,))
    assert same.main(["--runs", "1"]) == code
    assert f"the same in {says} runs" in capsys.readouterr().out


def test_what_a_tree_is_timed_as_can_be_chosen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    chosen: list[Plan] = []

    def judge(before: Staged, after: Staged, plans: Sequence[Plan], *rest: object):
        chosen.extend(plans)
        raise KeyboardInterrupt

    monkeypatch.setattr(same, "judge_speed", judge)
    with pytest.raises(KeyboardInterrupt):
        same.main(["--device", "cuda", "--baselines", "eager,graph"])
    assert [plan.baselines for plan in chosen] == [("eager", "graph")] * 2
    with pytest.raises(SystemExit) as usage:
        same.main(["--baselines", "eager,graph"])
    assert usage.value.code == 2
    assert "--baselines: expected some of eager, got graph" in capsys.readouterr().err


def kernels(names: tuple[str, ...]) -> tuple[Kernel, ...] | None:
    return tuple(Kernel(name=name, seconds=1e-3) for name in names) or None


def test_what_a_worker_tells_is_held_to_its_form():
    assert ContenderFacts(worker="after", contender="eager").kernels is None
    with pytest.raises(ValueError, match="surprise"):
        ContenderFacts.model_validate({"worker": "after", "contender": "eager", "surprise": 1})
