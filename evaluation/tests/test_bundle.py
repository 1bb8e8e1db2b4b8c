"""A bundle gives the same verdict again, without a candidate; and a report can be said in plain words."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console

from evaluation.evaluate import main as evaluate
from evaluation.judge import numerics
from evaluation.judge.case import Case, Sizes
from evaluation.judge.numerics import judge_again, judge_numerics
from evaluation.judge.speed_cases import Plan
from evaluation.judge.speed_record import not_timed
from evaluation.report.bundle import judge_kept
from evaluation.report.explain import MEANINGS, explain, read_report
from evaluation.report.models import Report
from evaluation.suite import pair
from evaluation.suite.pair import WRONG_FIRST, Judged, judge_both
from evaluation.suite.probe import Machine
from evaluation.suite.result import FailureKind, GraderError
from evaluation.suite.run import Settings
from evaluation.suite.stage import Staged, staged
from evaluation.tests.conftest import FAKE, Kata
from evaluation.tests.test_worker import CASES, NORM, fake

__all__ = ["fake"]  # the fixture

KNOWN = {case.name: case for case in CASES}


def norm_numbers(before: Staged, after: Staged, settings: Settings, console: Console, _machine: Machine) -> Judged:
    """The real judge, on cases that the fake kata has the function for."""
    keep = settings.keep and settings.keep / "numerics"
    numerics, wrong = judge_numerics(before, after, CASES, 60, "cpu", console, keep)
    assert wrong
    return Judged(numerics, wrong, not_timed(WRONG_FIRST))


class Graded(NamedTuple):
    kata: Kata
    bundle: Path
    report: Path

    def evaluate(self, *arguments: str) -> int:
        suite, reports = self.kata.suite, self.kata.folder / "reports"
        return evaluate([*arguments], suite=suite, reports=reports, judge=norm_numbers)


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graded]:
    """The bundle and the report of a run whose numbers are wrong on after, and whose trees are gone."""
    folder = tmp_path_factory.mktemp("graded")
    kata = Kata(Path(shutil.copytree(FAKE, folder / "kata", ignore=shutil.ignore_patterns("__pycache__"))))
    for tree, code in (("before", NORM), ("after", NORM.replace("1 + scale", "scale"))):
        kata.append(f"{tree}/mmdit/__init__.py", code)
    found = Graded(kata, folder / "bundle", folder / "first.json")
    trees = ("--before", str(kata.before), "--after", str(kata.after), "--bundle", str(found.bundle))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair, "describe_machine", lambda _device: Machine(torch_version="0"))
        patch.setattr("evaluation.judge.cases.QUICK", CASES)
        assert found.evaluate(*trees, "--output", str(found.report)) == 1
        shutil.rmtree(kata.after)
        shutil.rmtree(kata.before)
        yield found


def test_a_bundle_gives_the_same_report_byte_for_byte(graded: Graded, tmp_path: Path):
    assert graded.evaluate("--regrade", str(graded.bundle), "--output", str(tmp_path / "again.json")) == 1
    assert (tmp_path / "again.json").read_bytes() == graded.report.read_bytes()
    report = json.loads(graded.report.read_text())
    assert report["verdict"]["correctness"]["reason"].startswith("2 of 2 numeric cases are wrong")
    assert set(json.loads((graded.bundle / "bundle.json").read_text())["sha256"]) == {
        "before",
        "after",
        "suite",
        "grader",
    }


def test_a_bundle_that_was_changed_or_is_not_whole_is_3(
    graded: Graded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bundle = Path(shutil.copytree(graded.bundle, tmp_path / "bundle"))
    shutil.copy(bundle / "numerics" / "before" / "0.safetensors", bundle / "numerics" / "after" / "0.safetensors")
    assert graded.evaluate("--regrade", str(bundle)) == 3
    assert "does not hold the tensors that were put there" in capsys.readouterr().err
    (bundle / "bundle.json").unlink()
    assert graded.evaluate("--regrade", str(bundle)) == 3
    assert "is not a whole bundle" in capsys.readouterr().err


@pytest.mark.slow
def test_without_its_hashes_a_bundle_passes_with_befores_tensors_for_afters(
    graded: Graded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bundle = Path(shutil.copytree(graded.bundle, tmp_path / "bundle"))
    shutil.copytree(bundle / "numerics" / "before", bundle / "numerics" / "after", dirs_exist_ok=True)
    record = json.loads((bundle / "numerics" / "numerics.json").read_text())
    monkeypatch.setattr(numerics, "hashes_below", lambda _: record["files"])
    assert graded.evaluate("--regrade", str(bundle)) == 0


def test_a_bundle_goes_to_a_new_folder(kata: Kata, tmp_path: Path):
    with pytest.raises(SystemExit) as caught:
        evaluate(["--bundle", str(tmp_path)], suite=kata.suite, reports=kata.folder / "reports")
    assert caught.value.code == 2


def test_kept_results_are_judged_the_same_and_unknown_cases_refused(fake: Path, tmp_path: Path):
    console, keep = Console(quiet=True), tmp_path / "keep"
    with ExitStack() as stack:
        trees = [stack.enter_context(staged(fake / role, role)) for role in ("before", "after")]
        first = judge_numerics(*trees, CASES, 60, "cpu", console, keep)
    assert judge_again(keep, KNOWN, console) == first
    other = Case("layernorm_adaln", Sizes(1, 1, 1, 1, 2))
    with pytest.raises(GraderError, match="does not know"):
        judge_again(keep, {other.name: other}, console)


def test_numbers_and_times_are_judged_one_after_the_other_and_again_from_what_was_kept(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = Plan(replace(CASES[0], mode="inference"), calls=2, rounds=2)
    monkeypatch.setattr("evaluation.judge.cases.QUICK", CASES)
    monkeypatch.setattr("evaluation.judge.speed_cases.plans", lambda *_: (plan,))
    settings = Settings(suite=fake, quick=True, timeout=60, seed=1, device="cpu", keep=tmp_path / "keep")
    with ExitStack() as stack:
        trees = [stack.enter_context(staged(fake / role, role)) for role in ("before", "after")]
        first = judge_both(*trees, settings, Console(quiet=True), Machine())
    assert first.failures == ()
    assert [case.name for case in first.speed.cases] == [plan.case.name]
    assert len(first.numerics.after.cases) == len(CASES)
    again = judge_kept(tmp_path / "keep", Console(quiet=True))
    assert again == first


def test_every_kind_of_failure_has_a_meaning():
    assert MEANINGS.keys() == set(FailureKind)


def test_a_report_is_said_in_plain_words(graded: Graded, capsys: pytest.CaptureFixture[str]):
    assert graded.evaluate("explain", str(graded.report)) == 0
    said = capsys.readouterr().out
    assert said.startswith("The verdict is a failure (exit code 1), for 1 reason(s).")
    assert "Whether after computes what it must: it fails (2 of 2 numeric cases are wrong" in said
    assert "Whether after is faster: it was not measured, which is not a pass" in said
    assert "further from the truth than rounding explains" in said
    assert f"  - {CASES[0].name}: 0.x_out: relative L2 error" in said


@pytest.mark.usefixtures("known_machine")
def test_a_success_and_a_grader_error_are_said_as_such(kata: Kata, passing: Report, monkeypatch: pytest.MonkeyPatch):
    assert "The verdict is a success (exit code 0): 2 tests that fail" in explain(passing)
    monkeypatch.setattr("evaluation.suite.pair.run_suite", lambda *_: 1 / 0)
    assert "There is no verdict" in explain(kata.report())


def test_what_is_no_report_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "x.json").write_text("{}")
    assert evaluate(["explain", str(tmp_path / "x.json")]) == 3
    assert "is not a report that can be read" in capsys.readouterr().err
    with pytest.raises(GraderError):
        read_report(tmp_path / "none.json")
