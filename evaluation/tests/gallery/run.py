"""Grades entries of the gallery: one worker each, vanilla and the oracle once for all."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from evaluation.judge.case import Case
from evaluation.judge.compare import errors, judge_case, truth_of
from evaluation.judge.draw import Drawn, draw
from evaluation.judge.numerics import run_worker
from evaluation.suite.command import ROOT
from evaluation.suite.stage import staged
from evaluation.tests.gallery.entry import Entry

SECONDS = 60.0


@dataclass(frozen=True)
class Graded:
    """What was told of an entry; nothing where it passed."""

    entry: Entry
    told: tuple[str, ...]

    @property
    def caught(self) -> bool:
        return bool(self.told)

    @property
    def as_it_should_be(self) -> bool:
        """Refused for the right reason, or honest and passed."""
        if self.entry.kind == "honest":
            return not self.told
        return any(self.entry.told in each for each in self.told)


class Gallery:
    """Values of all cases from one secret seed, the truth of each, and vanilla's errors."""

    def __init__(self, entries: Sequence[Entry], more: Sequence[Case] = ()) -> None:
        seed = secrets.randbits(62)
        cases: list[Case] = list(dict.fromkeys((*more, *(case for entry in entries for case in entry.cases))))
        self.drawn: dict[Case, Drawn] = {case: draw(case, seed) for case in cases}
        self.truth = {case: truth_of(each) for case, each in self.drawn.items()}
        with staged(ROOT / "repository_before", "before") as stage:
            run = run_worker(stage, list(self.drawn.values()), 10 * SECONDS, "cpu")
        assert run.failure is None, run.failure
        self.vanilla = {case: errors(self.truth[case], got) for case, (_, got) in zip(cases, run.results, strict=True)}

    def grade(self, entry: Entry, cases: Sequence[Case] | None = None) -> Graded:
        """As the judge does it: a failure of the worker's first, then what is wrong in each case."""
        cases = entry.cases if cases is None else cases
        drawn = [self.drawn[case] for case in cases]
        with TemporaryDirectory(prefix="gallery-") as name, staged(entry.tree(Path(name) / "after"), "after") as stage:
            run = run_worker(stage, drawn, SECONDS, "cpu")
        told = [run.failure.message] if run.failure else []
        for case, (facts, got) in zip(cases, run.results, strict=True):
            judged = judge_case(self.drawn[case], self.truth[case], facts, got, self.vanilla[case])
            told += [f"{case.name}: {problem}" for problem in judged.problems]
        return Graded(entry, tuple(told))
