"""Drives the workers that time calls: before beside a second before, then before beside after, in turns.

Every turn has fresh values. Their features' signs are told only with "go", so that nothing can be computed before the
judge's clock runs; the answer holds sums over all outputs, so that nothing can be left for when it has stopped. One
call of each turn, which only the seed tells, has to be handed out afterwards.
"""

import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import save_file

from evaluation.judge.case import Case
from evaluation.judge.draw import draw
from evaluation.judge.layout import construction
from evaluation.judge.rates import measure_rates
from evaluation.judge.speed_cases import BASELINES, CONTENDERS, Device, Plan
from evaluation.judge.speed_record import ContenderFacts, Phase, RawCase, RawSpeed, Turn, Worker, role_of
from evaluation.judge.timed_outputs import with_weights
from evaluation.judge.turns import Values
from evaluation.suite.companion import Answer, Companion, Stopped, companion
from evaluation.suite.process import OutputHandler
from evaluation.suite.progress import progress
from evaluation.suite.result import Failure, FailureKind, short_line
from evaluation.suite.stage import Staged, scratch_folder

_WORKER = Path(__file__).resolve().parents[1] / "worker" / "time_calls.py"
SEED_BITS = 62
PROBES = 3
WARM_UPS = 8
STABLE = 1.05  # between two turns in a row


@dataclass(frozen=True)
class Seat:
    """A worker at its work, and the folder that it shares with the judge."""

    worker: Worker
    companion: Companion
    folder: Path

    def ask(self, do: str, **more: object) -> Answer:
        """Raises Stopped where the worker tells of an error."""
        answer = self.companion.ask(do, **more)
        if "error" in answer.told:
            why = f"a call that is timed raised {short_line(str(answer.told['error']))}"
            raise self.companion.stopped(FailureKind.TIMED_OUTPUT_WRONG, why)
        return answer

    def hand_out(self, tensors: Mapping[str, object]) -> str:
        """Into a file of a name that says nothing."""
        name = f"{secrets.token_hex(8)}.safetensors"
        save_file(tensors, self.folder / name)
        return name


class Session:
    """One timed run. Stopped ends it; what there is until then is kept."""

    def __init__(self, seed: int, device: Device, timeout: float, keep: Path, say: OutputHandler) -> None:
        self.seed, self.device, self.timeout, self.keep, self.say = seed, device, timeout, keep, say
        self.turns: dict[Case, list[Turn]] = {}
        self.facts: dict[Case, list[ContenderFacts]] = {}
        self.baselines: dict[Case, str] = {}

    def run(self, before: Staged, after: Staged, plans: Sequence[Plan]) -> Failure | None:
        """All turns of all cases; what ended it early. After is not alive before the first phase is over."""
        try:
            with self.seat(before, "before") as first:
                with self.seat(before, "again") as second:
                    for plan in plans:
                        self.alone(plan, first, second)
                with self.seat(after, "after") as third:
                    for number, plan in enumerate(plans):
                        self.say(f"[{50 + 50 * number // len(plans)}%]".encode())
                        self.beside(plan, first, third)
        except Stopped as stop:
            return stop.failure
        return None

    @contextmanager
    def seat(self, stage: Staged, worker: Worker) -> Iterator[Seat]:
        with scratch_folder() as folder:
            command = [sys.executable, "-P", str(_WORKER), str(stage.tree), str(folder), self.device]
            how = {"cwd": stage.scratch, "env": stage.env, "role": role_of(worker), "timeout": self.timeout}
            with companion(command, **how) as found:
                yield Seat(worker, found, folder)
                found.thaw()
                found.check_silence()

    def alone(self, plan: Plan, first: Seat, second: Seat) -> None:
        """Which of before's contenders is strongest, and how much it differs from itself."""
        ready = self.prepare(first, plan, plan.baselines or BASELINES[self.device])
        probes: dict[str, list[float]] = {name: [] for name in ready}
        for number in range(PROBES if len(ready) > 1 else 0):
            for name in ready:
                turn = self.turn("probe", number, plan, first, name)
                probes[name].append(min(turn.seconds))
        best = min(ready, key=lambda name: min(probes[name], default=0.0))
        self.baselines[plan.case] = best
        self.prepare(second, plan, [best])
        self.in_turns("alone", plan, [(first, best), (second, best)])

    def beside(self, plan: Plan, first: Seat, third: Seat) -> None:
        ready = self.prepare(third, plan, CONTENDERS[self.device])
        self.in_turns("beside", plan, [(first, self.baselines[plan.case]), *((third, name) for name in ready)])

    def prepare(self, seat: Seat, plan: Plan, contenders: Sequence[str]) -> list[str]:
        """Hand out a case's weights and compile, capture and call what has to be; those that are ready.

        Raises Stopped where the plain call is not.
        """
        case, ready = plan.case, []
        weights = seat.hand_out(draw(case, self.seed).weights[0])
        entry = {"make": construction(case), "dtype": case.dtype, "mode": case.mode}
        self.load(seat, Values.draw(plan, self.seed, f"first:{seat.worker}"))
        seat.ask("begin", case=case.name, weights=weights, entry=entry)
        for name in contenders:
            self.say(b"")
            ask = seat.ask if name == "eager" else seat.companion.ask
            told = ask("prepare", case=case.name, contender=name).told
            if "error" in told:
                told = {"unmeasured": short_line(str(told["error"]))}
            else:
                ready.append(name)
                told |= seat.ask("profile", case=case.name, contender=name).told
            self.facts.setdefault(case, []).append(
                _held(seat, ContenderFacts, told | {"worker": seat.worker, "contender": name})
            )
        return ready

    def in_turns(self, phase: Phase, plan: Plan, sides: Sequence[tuple[Seat, str]]) -> None:
        """Warm all up, then rounds, every other one backwards; whoever has no turn is frozen."""
        seats = {seat.worker: seat for seat, _ in sides}.values()
        for seat in seats:
            seat.companion.freeze()
        for seat, name in sides:
            self.warm_up(plan, seat, name)
        for number in range(plan.rounds):
            for seat, name in sides if number % 2 == 0 else reversed(sides):
                seat.companion.thaw()
                self.turn(phase, number, plan, seat, name)
                seat.companion.freeze()
        for seat in seats:
            seat.companion.thaw()

    def warm_up(self, plan: Plan, seat: Seat, name: str) -> None:
        """Until two turns in a row take the same time, or often enough."""
        seat.companion.thaw()
        last = float("inf")
        for number in range(WARM_UPS):
            turn = self.turn("warm", number, plan, seat, name)
            if max(last, turn.host_seconds) < STABLE * min(last, turn.host_seconds):
                break
            last = turn.host_seconds
        seat.companion.freeze()

    def turn(self, phase: Phase, number: int, plan: Plan, seat: Seat, name: str) -> Turn:
        """One: hand out values, let go, and keep one call's outputs of those that count."""
        self.say(b"")
        told = {"phase": phase, "round": number, "worker": seat.worker, "contender": name}
        values = Values.draw(plan, self.seed, ":".join(map(str, told.values())))
        self.load(seat, values)
        answer = seat.ask("go", case=plan.case.name, contender=name, signs=values.signs)
        turn = _held(seat, Turn, answer.told | told | {"host_seconds": answer.seconds})
        if phase == "beside":
            given = f"{secrets.token_hex(8)}.safetensors"
            whole = with_weights(plan, self.seed, number)
            seat.ask("give", call=values.checked, file=given, whole=whole)
            self.keep_file(seat.folder / given, turn.file(plan.case))
        if phase != "warm":
            self.turns.setdefault(plan.case, []).append(turn)
        return turn

    def load(self, seat: Seat, values: Values) -> None:
        name = seat.hand_out(values.tensors())
        seat.ask("load", file=name, calls=len(values.calls))
        (seat.folder / name).unlink(missing_ok=True)

    def keep_file(self, given: Path, name: str) -> None:
        """A link, or nothing at all, is left where it is: what is missing is judged as such."""
        if given.is_file() and not given.is_symlink():
            shutil.move(given, self.keep / name)


def _held(seat: Seat, model: type, told: dict[str, object]) -> object:
    """What a worker told, held to its form. Raises Stopped where it has another."""
    try:
        return model.model_validate(told)
    except ValidationError as error:
        why = f"what the timed worker tells has not the form that it must have: {short_line(str(error.errors()[0]))}"
        raise seat.companion.stopped(FailureKind.SPEED_FORGED, why) from error


def measure(
    before: Staged, after: Staged, plans: Sequence[Plan], timeout: float, device: Device, console: Console, keep: Path
) -> RawSpeed:
    """Time both trees, and leave in `keep` what the judge looks at."""
    started = time.monotonic()
    keep.mkdir(parents=True)
    rates = {plan.case: measure_rates(device, plan.case.dtype) for plan in plans}
    with progress(console, f"{len(plans)} timed cases") as say:
        session = Session(secrets.randbits(SEED_BITS), device, timeout, keep, say)
        failure = session.run(before, after, plans)
    return RawSpeed(
        seed=session.seed,
        device=device,
        cases=tuple(
            RawCase(
                name=plan.case.name,
                calls=plan.calls,
                rounds=plan.rounds,
                rates=rates[plan.case],
                contenders=tuple(session.facts.get(plan.case, ())),
                turns=tuple(session.turns.get(plan.case, ())),
            )
            for plan in plans
        ),
        failures=(failure,) if failure else (),
        duration_seconds=time.monotonic() - started,
    )
