"""Judges a timed run: what the workers told is checked first, then compared. Nothing here runs a candidate."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import median

from rich.console import Console

from evaluation.judge.clock import clock_problem, floor_problem
from evaluation.judge.compare import rounding_of
from evaluation.judge.draw import draw
from evaluation.judge.intervals import compare, noise_floor, ratio_of
from evaluation.judge.speed_cases import Device, Plan, work_of
from evaluation.judge.speed_record import (
    CONFIDENCE,
    Interval,
    Phase,
    RawCase,
    RawSpeed,
    Speed,
    SpeedCase,
    Timed,
    Turn,
    Worker,
    role_of,
)
from evaluation.judge.timed_outputs import Problem, check_turn, error_problem
from evaluation.judge.timing import measure
from evaluation.suite.progress import progress
from evaluation.suite.result import Failure, FailureKind, GraderError
from evaluation.suite.stage import Staged, scratch_folder

_RAW = "speed.json"
FUSED_SHARE = 0.5  # of a call's time on the GPU

Judged = tuple[Speed, tuple[Failure, ...]]


def judge_speed(
    before: Staged,
    after: Staged,
    plans: Sequence[Plan],
    timeout: float,
    device: Device,
    console: Console,
    keep: Path | None = None,
) -> Judged:
    """Time both trees, and judge what was told; all of it is left in `keep`, for `judge_speed_again`."""
    with ExitStack() as stack:
        folder = keep or stack.enter_context(scratch_folder()) / "speed"
        raw = measure(before, after, plans, timeout, device, console, folder)
        keep_raw(raw, folder)
        return judge_raw(raw, {plan.case.name: plan for plan in plans}, folder, console)


def keep_raw(raw: RawSpeed, folder: Path) -> None:
    """Leave what was told beside the outputs that were handed out."""
    whole = raw.model_copy(update={"files": _hashes(folder)})
    (folder / _RAW).write_text(whole.model_dump_json(indent=2) + "\n", encoding="utf-8")


def judge_speed_again(keep: Path, known: Mapping[str, Plan], console: Console) -> Judged:
    """Judge what an earlier run left in `keep`. Raises GraderError where it is not whole."""
    raw = RawSpeed.model_validate_json((keep / _RAW).read_bytes())
    if _hashes(keep) != raw.files:
        raise GraderError(f"{keep} does not hold the outputs that were put there")
    if unknown := [case.name for case in raw.cases if case.name not in known]:
        raise GraderError(f"{keep} has a case that this version of the grader does not know: {unknown[0]}")
    return judge_raw(raw, known, keep, console)


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.safetensors"))}


def judge_raw(raw: RawSpeed, known: Mapping[str, Plan], folder: Path, console: Console) -> Judged:
    """Of what was told, the report's section, and the failures of either tree."""
    cases: list[SpeedCase] = []
    failures = list(raw.failures)
    with progress(console, "outputs of timed calls") as say:
        for number, each in enumerate(raw.cases):
            say(f"[{100 * number // len(raw.cases)}%]".encode())
            plan = Plan(known[each.name].case, each.calls, each.rounds)
            judge = _Case(each, plan, raw, folder)
            cases.append(judge.judged())
            failures += judge.failures
    told = any(case.contenders for case in cases)
    what = ("fused" if raw.device == "cuda" else "fallback") if told else "nothing"
    speed = Speed(
        what=what,
        why=None if told else (failures[0].message if failures else "no case was timed"),
        confidence=CONFIDENCE,
        seed=raw.seed,
        duration_seconds=raw.duration_seconds,
        cases=tuple(cases) if told else (),
    )
    return speed, tuple(failures)


@dataclass
class _Case:
    """One case. `failures` fills as it is judged."""

    told: RawCase
    plan: Plan
    raw: RawSpeed
    folder: Path
    failures: list[Failure] = field(default_factory=list)

    def judged(self) -> SpeedCase:
        work = work_of(self.plan.case, self.told.rates)
        least = work and work.least_seconds
        self.check(least)
        timed = tuple(self.timed(facts.worker, facts.contender) for facts in self.told.contenders)
        path, own = self.path()
        facts = {"name": self.told.name, "least_seconds": least, "work": work, "path": path}
        facts |= {"own_kernels": own, "contenders": timed}
        beside = self.turns("beside", "before")
        whole = [name for name in self.names("after") if len(self.turns("beside", "after", name)) == self.plan.rounds]
        why = [each.message for each in (*self.failures, *self.raw.failures)]
        why += ["after was not timed to its end"] if not whole or len(beside) != self.plan.rounds else []
        if why:
            nothing = dict.fromkeys(("baseline", "contender", "ratio", "host_ratio", "noise_floor"))
            return SpeedCase(outcome="not_measured", why=why[0], same=(), **nothing, **facts)
        alone, again = self.turns("alone", "before"), self.turns("alone", "again")
        same = (self.ratio(alone, again), self.ratio(alone, beside, paired=False))
        floor = noise_floor(same)
        ratios = {name: self.ratio(beside, self.turns("beside", "after", name)) for name in whole}
        best = max(ratios, key=lambda name: ratios[name].ratio)
        by_host = self.ratio(beside, self.turns("beside", "after", best), host=True)
        return SpeedCase(
            outcome=compare((ratios[best], by_host), floor),
            why=None,
            baseline=beside[0].contender,
            contender=best,
            ratio=ratios[best],
            host_ratio=by_host,
            same=same,
            noise_floor=floor,
            **facts,
        )

    def check(self, least: float | None) -> None:
        """One failure for each tree at most: what is wrong with its outputs, else with its times."""
        case, seed = self.plan.case, self.raw.seed
        drawn = draw(case, seed)
        vanilla: dict[str, float] | None = None
        for role in ("before", "after"):
            worst: dict[str, float] = {}
            for turn in self.turns("beside", role):
                problem, errors = check_turn(turn, self.plan, drawn.weights[0], seed, self.folder, self.raw.device)
                if problem is None and (wrong := error_problem(errors, vanilla, rounding_of(drawn))):
                    problem = FailureKind.TIMED_OUTPUT_WRONG, wrong
                if self.fails(role, problem):
                    break
                worst |= {name: max(error, worst.get(name, 0.0)) for name, error in errors.items()}
            vanilla = worst
        reference = self.turns("beside", "before")
        sides: list[tuple[Worker, Sequence[Turn], Sequence[Turn]]] = [("before", reference, reference)]
        sides += [("after", self.turns("beside", "after", name), reference) for name in self.names("after")]
        for worker in ("before", "again"):
            turns = self.turns("alone", worker)
            sides.append((worker, turns, turns))
        for worker, turns, honest in sides:
            if turns and honest:
                wrong = clock_problem(turns, honest, self.raw.device) or floor_problem(turns, least)
                self.fails(worker, (FailureKind.SPEED_FORGED, wrong) if wrong else None)

    def fails(self, worker: Worker, problem: Problem | None) -> bool:
        role = role_of(worker)
        if problem is not None and all(each.tree != role for each in self.failures):
            self.failures.append(Failure(kind=problem[0], tree=role, message=f"{self.told.name}: {problem[1]}"))
        return problem is not None

    def turns(self, phase: Phase, worker: Worker, contender: str | None = None) -> list[Turn]:
        found = [turn for turn in self.told.turns if (turn.phase, turn.worker) == (phase, worker)]
        return [turn for turn in found if contender in (None, turn.contender)]

    def names(self, worker: Worker) -> list[str]:
        """Contenders that had a turn that counts."""
        return list(dict.fromkeys(turn.contender for turn in self.turns("beside", worker)))

    def ratio(self, over: Sequence[Turn], under: Sequence[Turn], host: bool = False, paired: bool = True) -> Interval:
        sides = [[(turn.host_seconds,) if host else turn.seconds for turn in side] for side in (over, under)]
        return ratio_of(*sides, seed=self.raw.seed, paired=paired)

    def timed(self, worker: Worker, contender: str) -> Timed:
        """What is known of a contender, with the rounds of the last phase that it was in."""
        (facts,) = (each for each in self.told.contenders if (each.worker, each.contender) == (worker, contender))
        phases = ("beside", "alone", "probe")
        rounds = next((found for phase in phases if (found := self.turns(phase, worker, contender))), [])
        seconds = [each for turn in rounds for each in turn.seconds]
        return Timed(
            **facts.model_dump(),
            median_seconds=median(seconds) if seconds else None,
            rounds=tuple(turn.seconds for turn in rounds),
        )

    def path(self) -> tuple[str, tuple[str, ...]]:
        """Whose kernels after's calls ran, by what the profiler named; and those that only after has."""
        if self.raw.device != "cuda":
            return "fallback", ()
        ran = {each.worker: each.kernels for each in self.told.contenders if each.kernels}
        if "after" not in ran or "before" not in ran:
            return "unknown", ()
        known = {k.name for each in self.told.contenders if each.worker != "after" for k in each.kernels or ()}
        own = {kernel.name for kernel in ran["after"]} - known
        seconds = sum(kernel.seconds for kernel in ran["after"])
        share = sum(kernel.seconds for kernel in ran["after"] if kernel.name in own) / max(seconds, 1e-12)
        return ("fallback" if not own else "fused" if share >= FUSED_SHARE else "mixed"), tuple(sorted(own))
