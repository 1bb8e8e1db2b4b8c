"""A judge of timed entries that times before, alone and beside them, in one worker for all."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from evaluation.judge.case import Case, Sizes
from evaluation.judge.rates import measure_rates
from evaluation.judge.speed import Judged, judge_raw
from evaluation.judge.speed_cases import CONTENDERS, Device, Plan
from evaluation.judge.speed_record import RawCase, RawSpeed
from evaluation.judge.timing import Seat, Session
from evaluation.suite.companion import Stopped
from evaluation.suite.stage import staged
from evaluation.tests.gallery.timed import HONEST

PLAN = Plan(Case("layernorm_adaln", Sizes(2, 9, 1, 2, 8), mode="inference"), calls=2, rounds=6)
SECONDS = 60.0


@dataclass
class Stopwatch:
    """Before's worker, its turns alone, and what any candidate beside it did. All but that candidate is `honest`."""

    folder: Path
    plan: Plan
    honest: str
    session: Session
    first: Seat

    def raw(self, code: str) -> tuple[RawSpeed, Path]:
        """A candidate's turns, not yet judged, and where its outputs are."""
        tree = self.folder / f"after-{len(list(self.folder.iterdir()))}"
        write(tree, self.honest + code)
        session = Session(self.session.seed, self.session.device, SECONDS, tree, lambda _: None)
        session.baselines = self.session.baselines
        session.turns = {case: [*turns] for case, turns in self.session.turns.items()}
        session.facts = {case: [*facts] for case, facts in self.session.facts.items()}
        failures = []
        with staged(tree, "after") as stage:
            try:
                with session.seat(stage, "after") as third:
                    session.beside(self.plan, self.first, third)
            except Stopped as stop:
                failures.append(stop.failure)
            finally:
                self.first.companion.thaw()
        told = RawCase(
            name=self.plan.case.name,
            calls=self.plan.calls,
            rounds=self.plan.rounds,
            rates=measure_rates(session.device, self.plan.case.dtype),
            contenders=tuple(session.facts[self.plan.case]),
            turns=tuple(session.turns[self.plan.case]),
        )
        raw = RawSpeed(
            seed=session.seed, device=session.device, cases=(told,), failures=tuple(failures), duration_seconds=1.0
        )
        return raw, tree


def judged(raw: RawSpeed, folder: Path, plan: Plan = PLAN) -> Judged:
    return judge_raw(raw, {plan.case.name: plan}, folder, Console(quiet=True))


@contextmanager
def stopwatch(
    folder: Path, seed: int, device: Device = "cpu", plan: Plan = PLAN, honest: str = HONEST
) -> Iterator[Stopwatch]:
    """`folder` gets the candidates. Before is timed beside a second before only once, and never compiled."""
    write(folder / "before", honest)
    plan = replace(plan, baselines=CONTENDERS[device])
    with staged(folder / "before", "before") as stage:
        session = Session(seed, device, 10 * SECONDS, folder / "before", lambda _: None)
        with session.seat(stage, "before") as first:
            with session.seat(stage, "again") as second:
                session.alone(plan, first, second)
            yield Stopwatch(folder, plan, honest, session, first)


def write(tree: Path, code: str) -> None:
    (tree / "mmdit").mkdir(parents=True)
    (tree / "mmdit" / "__init__.py").write_text(code, encoding="utf-8")
