"""Timed runs in this process, by a clock of their own: nothing depends on how fast, or how busy, the machine is.

`Bench` runs the worker's own code on candidates; its clock counts the layer norms that they compute. `World` runs none:
its turns take what it is told that they take.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from rich.console import Console
from torch.nn.functional import layer_norm

from evaluation.judge.speed import Judged, judge_raw
from evaluation.judge.speed_cases import Device, Plan
from evaluation.judge.speed_record import ContenderFacts, Kernel, Phase, Rates, RawCase, RawSpeed, Turn, Worker
from evaluation.judge.timing import Seat, Session
from evaluation.suite.companion import Answer, Stopped
from evaluation.suite.result import Failure, FailureKind
from evaluation.tests.gallery.timed import WORKER
from evaluation.worker import time_calls
from evaluation.worker.time_calls import Timer

SEED = 20261121
A_NORM, A_LOOK = 1e-4, 1e-6  # seconds of a layer norm, and of a look at the clock
RATES = Rates(operations_per_s=1e30, bytes_per_s=None)


class Clock:
    """Tells the seconds since it was made; candidates import its `layer_norm`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += A_LOOK
        return self.now

    def layer_norm(self, *given: Any, **more: Any) -> Any:
        self.now += A_NORM
        return layer_norm(*given, **more)


@dataclass
class Direct:
    """In the place of a Companion: it asks a worker's code in this process."""

    timer: Timer
    clock: Clock

    def ask(self, do: str, **values: object) -> Answer:
        start = self.clock()
        try:
            told = json.loads(json.dumps(getattr(self.timer, do)(**values)))
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}"}
        return Answer(told, self.clock() - start)

    def stopped(self, kind: FailureKind, message: str) -> Stopped:
        return Stopped(Failure(kind=kind, tree="after", message=message))

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...


@dataclass
class Bench:
    """Before is `honest`, and so is every candidate but for the code that follows it. Folders are below `folder`."""

    folder: Path
    plan: Plan
    honest: str
    clock: Clock = field(default_factory=Clock)

    def raw(self, code: str) -> tuple[RawSpeed, Path]:
        """A candidate's run, not yet judged, and where its outputs are."""
        keep = self.folder / f"after-{len(list(self.folder.iterdir()))}"
        keep.mkdir()
        session = Session(SEED, "cpu", 60.0, keep, lambda _: None)
        failures = []
        with patch.object(time_calls, "perf_counter", self.clock):
            first, second, third = (self.seat(who, code) for who in ("before", "again", "after"))
            try:
                session.alone(self.plan, first, second)
                session.beside(self.plan, first, third)
            except Stopped as stop:
                failures.append(stop.failure)
        return raw_of(session, self.plan, failures), keep

    def seat(self, worker: Worker, code: str) -> Seat:
        module = ModuleType("mmdit")
        module.__dict__["_clock"] = self.clock
        code = code.replace(WORKER, f"import {time_calls.__name__} as _worker\n") if worker == "after" else ""
        exec(self.honest + code, module.__dict__)
        folder = self.folder / f"{worker}-{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        return Seat(worker, Direct(Timer(module, folder, "cpu"), self.clock), folder)

    def judged(self, code: str) -> Judged:
        raw, folder = self.raw(code)
        return judge_raw(raw, {self.plan.case.name: self.plan}, folder, Console(quiet=True))


def raw_of(session: Session, plan: Plan, failures: list[Failure]) -> RawSpeed:
    case, name = plan.case, plan.case.name
    told = RawCase(
        name=name,
        calls=plan.calls,
        rounds=plan.rounds,
        rates=RATES,
        contenders=tuple(session.facts.get(case, ())),
        turns=tuple(session.turns.get(case, ())),
    )
    return RawSpeed(
        seed=session.seed, device=session.device, cases=(told,), failures=tuple(failures), duration_seconds=1.0
    )


Cost = Callable[["World", Phase, Worker, str], float]


class Body:
    """In the place of a Companion that does nothing but stand still or not."""

    def __init__(self, worker: Worker, running: set[Worker]) -> None:
        self.worker, self.running = worker, running
        self.thaw()

    def freeze(self) -> None:
        self.running.discard(self.worker)

    def thaw(self) -> None:
        self.running.add(self.worker)


class World(Session):
    """A session whose turns take `cost` seconds a call. `running`: the workers that are not frozen."""

    def __init__(
        self, plan: Plan, cost: Cost, device: Device = "cpu", kernels: dict[Worker, str] | None = None
    ) -> None:
        super().__init__(SEED, device, 60.0, Path(), lambda _: None)
        self.plan, self.cost, self.kernels = plan, cost, kernels or {}
        self.running: set[Worker] = set()

    def prepare(self, seat: Seat, plan: Plan, contenders: list[str]) -> list[str]:
        ran = self.kernels.get(seat.worker)
        kernels = (Kernel(name=ran, seconds=1.0),) if ran else None
        self.facts.setdefault(plan.case, []).extend(
            ContenderFacts(worker=seat.worker, contender=name, kernels=kernels) for name in contenders
        )
        return list(contenders)

    def turn(self, phase: Phase, number: int, plan: Plan, seat: Seat, name: str) -> Turn:
        seconds = self.cost(self, phase, seat.worker, name)
        told = {"phase": phase, "round": number, "worker": seat.worker, "contender": name}
        host = seconds * plan.calls
        turn = Turn(**told, host_seconds=host, seconds=(seconds,) * plan.calls, sums=(), forms=())
        if phase != "warm":
            self.turns.setdefault(plan.case, []).append(turn)
        return turn

    def judged(self) -> Judged:
        """Both phases. Outputs, of which there are none, are not looked at."""
        first, second = (Seat(who, Body(who, self.running), Path()) for who in ("before", "again"))
        self.alone(self.plan, first, second)
        self.running.discard("again")
        self.beside(self.plan, first, Seat("after", Body("after", self.running), Path()))
        with patch("evaluation.judge.speed._Case.check"):
            return judge_raw(raw_of(self, self.plan, []), {self.plan.case.name: self.plan}, Path(), Console(quiet=True))
