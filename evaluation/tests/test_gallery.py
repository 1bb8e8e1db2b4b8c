"""A sample of the gallery, and what each defence is for. The rest: `python -m evaluation.tests.gallery`."""

import pytest

from evaluation.judge import compare
from evaluation.judge.case import Case
from evaluation.tests.gallery.__main__ import ENTRIES
from evaluation.tests.gallery.entry import NEEDLES, SMALL, Entry, plain
from evaluation.tests.gallery.run import Gallery

SAMPLE = ENTRIES[::12]
BY_NAME = {entry.name: entry for entry in ENTRIES}
INFERENCE = (Case("stack", SMALL, mode="inference"),)
ONCE = (*plain("stack"), *INFERENCE)

# A cheat or wrong module, the cases that are left without the defence, and the defence.
WITHOUT_CASES = {
    "replay by pointer": (INFERENCE, "other values in the same memory"),
    "weights of the first call kept": (INFERENCE, "other weights in the same memory"),
    "first call only": (INFERENCE, "a second call"),
    "gradients only": (plain("stack"), "inference mode"),
    "fp32 only": (plain("stack"), "16-bit dtypes"),
    "small inputs only": (plain("stack"), "more than one size"),
    "mask ignored": (plain("cross"), "masks"),
    "start off by one": (plain("cross"), "positions"),
    "key at a tile's edge dropped": (plain("cross"), "lengths and needles beyond one tile"),
    "gradient of the values scaled": ((Case("cross", SMALL, mode="inference"),), "gradients"),
    "one buffer for all outputs": (INFERENCE, "outputs kept over a later call"),
}
# The same where a check is switched off.
WITHOUT_CHECKS = {
    "lazy output": "_form",
    "output not contiguous": "_form",
    "input written over": "_unchanged",
    "weights written over": "_unchanged",
    "race between programs": "_laws",
}


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    used = [BY_NAME[name] for name in (*WITHOUT_CASES, *WITHOUT_CHECKS)]
    more = [case for cases, _ in WITHOUT_CASES.values() for case in cases]
    return Gallery((*SAMPLE, *used), (*more, *ONCE, NEEDLES))


def test_there_are_enough_of_each_class():
    kinds = [entry.kind for entry in ENTRIES]
    assert kinds.count("wrong") >= 40
    assert kinds.count("cheat") >= 20
    assert kinds.count("honest") >= 15
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)


@pytest.mark.parametrize("entry", SAMPLE, ids=str)
def test_an_entry_is_told_for_what_it_is(gallery: Gallery, entry: Entry):
    graded = gallery.grade(entry)
    assert graded.as_it_should_be, graded.told


@pytest.mark.parametrize("name", WITHOUT_CASES)
def test_without_the_cases_of_a_defence_what_they_are_for_gets_through(gallery: Gallery, name: str):
    cases, defence = WITHOUT_CASES[name]
    assert gallery.grade(BY_NAME[name], cases).told == (), defence


@pytest.mark.parametrize("name", WITHOUT_CHECKS)
def test_without_a_check_what_it_is_for_gets_through(gallery: Gallery, monkeypatch: pytest.MonkeyPatch, name: str):
    entry = BY_NAME[name]
    monkeypatch.setattr(compare, WITHOUT_CHECKS[name], lambda *_: [])
    cases = [case for case in entry.cases if case.scenario == "once"] or entry.cases
    assert gallery.grade(entry, cases).told == ()
