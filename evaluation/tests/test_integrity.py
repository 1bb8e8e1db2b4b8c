"""Forged results contradict what only a run that took place leaves, and each defence is what catches its cheat."""

import dataclasses
from pathlib import Path

import pytest

from evaluation.report.build import verdict
from evaluation.suite import instrument as instrument_module
from evaluation.suite import run as run_module
from evaluation.suite.instrument import Instrumented, instrument, with_nonces
from evaluation.suite.integrity import check_ids
from evaluation.suite.result import Evidence, FailureKind, TreeProblem
from evaluation.tests.conftest import Kata
from evaluation.tests.gallery.forgeries import (
    FORGERIES,
    INIT,
    LEAVES_TESTS_OUT,
    SKIPS_EVERY_BODY,
    SPARES_CANARIES,
    WRONG,
    forge,
)


@pytest.mark.parametrize(("code", "kind", "message"), FORGERIES.values(), ids=FORGERIES)
def test_a_forged_run_contradicts_itself(kata: Kata, code: str, kind: FailureKind, message: str):
    (failure,) = forge(kata, code)
    assert (failure.kind, failure.tree) == (kind, "after")
    assert message in failure.message


def test_processes_share_the_suite_and_give_what_one_does(kata: Kata):
    alone, shared = kata.run_after(), kata.run_after(processes=3)
    assert shared.failures == ()
    assert [(case.name, case.outcome) for case in shared.cases] == [(case.name, case.outcome) for case in alone.cases]
    assert (shared.not_run, shared.return_code) == (alone.not_run, alone.return_code)


# What each process is told of its share: all of the suite, or next to nothing.
SHARES = {"all": ("0, 1", "5 tests were run more than once"), "nothing": ("1, 10**12", "no contract test ran")}


@pytest.mark.parametrize(("share", "message"), SHARES.values(), ids=SHARES)
def test_each_test_is_run_by_one_of_the_processes(kata: Kata, share: str, message: str):
    kata.append("suite/conftest.py", f"plugin = sys.modules[sys.argv[2]]\nplugin._number, plugin._count = {share}")
    (failure,) = kata.run_after(processes=2).failures
    assert message in failure.message


def no_canaries(file: Path, compares: bool) -> dict[str, instrument_module.Outcome]:
    file.write_text("import pytest\n@pytest.mark.contract\ndef test_fails(): assert 0\n", encoding="utf-8")
    return {}


def no_nonces(source: str, _plugin: str) -> tuple[str, dict[str, str]]:
    return source, {}


def test_without_canaries_skipped_bodies_get_only_as_far_as_the_nonces(kata: Kata, monkeypatch: pytest.MonkeyPatch):
    kata.append(INIT, WRONG + SKIPS_EVERY_BODY)
    monkeypatch.setattr(instrument_module, "_write_canaries", no_canaries)
    (failure,) = kata.run_after().failures
    assert "whose end was reached 0 times" in failure.message


@pytest.mark.parametrize("code", [SPARES_CANARIES, SPARES_CANARIES.replace("square", "area")])
def test_without_nonces_a_forgery_that_spares_the_canaries_gets_through(
    kata: Kata, monkeypatch: pytest.MonkeyPatch, code: str
):
    kata.append(INIT, WRONG + code)
    monkeypatch.setattr(run_module, "check_traces", lambda *_: EVIDENCE)
    run = kata.run_after()
    assert run.failures == ()
    assert {case.outcome for case in run.cases} == {"passed"}


EVIDENCE = Evidence(canary_file="test_c.py", canaries=1, bodies_reached=1)


def test_ids_may_begin_above_the_suite(kata: Kata):
    (kata.suite / "pytest.ini").unlink()
    settings = '[tool.pytest.ini_options]\nmarkers = ["contract", "upgrade", "slow", "gpu"]\n'
    (kata.folder / "pyproject.toml").write_text(settings)
    run = kata.run_after()
    assert run.failures == ()
    assert run.cases[0].nodeid == "suite/test_square.py::test_area"


@pytest.mark.usefixtures("known_machine")
class TestPair:
    def test_an_honest_pair_passes_and_says_what_was_checked(self, kata: Kata):
        pair = kata.grade()
        assert pair.failures == ()
        axis = verdict(pair.before, pair.after, pair.numerics, pair.speed, pair.failures).integrity
        assert (axis.status, axis.reason) == (
            "pass",
            "7 canaries did as they must, 6 tests reached their last line, no file changed",
        )

    def test_a_forged_run_fails_integrity_with_the_evidence(self, kata: Kata):
        kata.append(INIT, WRONG + SPARES_CANARIES)
        pair = kata.grade()
        axis = verdict(pair.before, pair.after, pair.numerics, pair.speed, pair.failures).integrity
        assert axis.status == "fail"
        assert axis.reason.startswith("the results contradict themselves: 1 passes of test_square.py::test_area")

    def test_a_run_that_broke_leaves_integrity_open(self, kata: Kata):
        kata.append(INIT, "import os\ndef area(_): os._exit(0)")
        pair = kata.grade()
        axes = verdict(pair.before, pair.after, pair.numerics, pair.speed, pair.failures)
        assert axes.integrity.status == "inconclusive"

    def test_tests_that_both_trees_lack_are_missed(self, kata: Kata):
        for tree in ("before", "after"):
            kata.append(f"{tree}/mmdit/__init__.py", LEAVES_TESTS_OUT)
        kinds = {(failure.tree, failure.kind) for failure in kata.grade().failures}
        assert kinds == {("before", FailureKind.SUITE_FORGED), ("after", FailureKind.SUITE_FORGED)}

    def test_a_candidate_that_changes_the_suite_is_caught(self, kata: Kata):
        kata.append(INIT, f"open({str(kata.suite / 'conftest.py')!r}, 'a').write('#')")
        (failure,) = kata.grade().failures
        assert (failure.kind, failure.tree) == (FailureKind.GRADER_CHANGED, "after")


def test_ids_are_those_of_the_graders_own_copy():
    check_ids(["a", "b"], {"a", "b"})
    for reported, told in ((["a"], "1 tests are not in the report: b"), (["a", "b", "c"], "not in the suite: c")):
        with pytest.raises(TreeProblem, match=told) as caught:
            check_ids(reported, {"a", "b"})
        assert caught.value.kind is FailureKind.SUITE_FORGED


SOURCE = """\
def test_one():
    with open("x") as file:
        assert file


class TestClass:
    def test_two(self): assert self

    def helper(self):
        return 1
"""


def test_nonces_come_last_in_each_test_and_move_no_line():
    text, found = with_nonces(SOURCE, "p")
    by_name = {name: nonce for nonce, name in found.items()}
    lines = text.splitlines()
    assert len(lines) == len(SOURCE.splitlines())
    assert lines[3] == f"    __import__('p').reached('{by_name['test_one']}')"
    assert lines[6].endswith(f"assert self; __import__('p').reached('{by_name['TestClass::test_two']}')")
    assert set(by_name) == {"test_one", "TestClass::test_two"}


def test_names_and_nonces_are_drawn_anew_for_each_run(kata: Kata, tmp_path: Path):
    first, second = (instrument(kata.suite, tmp_path / name) for name in ("a", "b"))
    for field in dataclasses.fields(Instrumented):
        if field.name not in ("suite", "folder"):
            assert getattr(first, field.name) != getattr(second, field.name), field.name
    assert not first.canaries.keys() & second.canaries.keys()
