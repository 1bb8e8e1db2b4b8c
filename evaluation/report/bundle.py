"""A verdict again, from what a run left behind: no candidate runs, and the same comes out."""

from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from evaluation.judge.record import Numerics
from evaluation.judge.speed_record import not_timed
from evaluation.report.build import build_report
from evaluation.report.bundle_record import Bundle
from evaluation.report.models import Report
from evaluation.suite.pair import BROKEN_FIRST, IN_CONTAINERS, NUMERICS, SPEED, WRONG_FIRST, Judged, PairRun, gather
from evaluation.suite.probe import Machine
from evaluation.suite.result import Failure, GraderError

BUNDLE_FILE = "bundle.json"


def report_of(bundle: Bundle, judged: Judged, failures: tuple[Failure, ...]) -> Report:
    """The report on a run, of what was recorded and nothing else."""
    machine = Machine.model_validate(bundle.environment.model_dump(include=set(Machine.model_fields)))
    return build_report(
        PairRun(machine, bundle.before, bundle.after, judged.numerics, judged.speed, failures),
        run_id=bundle.run_id,
        started_at=bundle.started_at,
        duration_seconds=bundle.duration_seconds,
        settings=bundle.settings,
        environment=bundle.environment,
        findings=bundle.findings,
    )


def regrade(folder: Path, console: Console) -> Report:
    """The report of the run that left `folder`. Raises GraderError where it is not whole."""
    try:
        bundle = Bundle.model_validate_json((folder / BUNDLE_FILE).read_bytes())
        absent = IN_CONTAINERS if bundle.settings.isolation == "docker" else BROKEN_FIRST
        judged = judge_kept(folder, console, absent)
    except (OSError, ValidationError) as error:
        raise GraderError(f"{folder} is not a whole bundle: {error}") from error
    return report_of(bundle, judged, gather(bundle.grader_failures, judged.failures, bundle.before, bundle.after))


def judge_kept(folder: Path, console: Console, absent: str = BROKEN_FIRST) -> Judged:
    """What a bundle's raw numbers and times say; nothing where the run broke first. Imports torch, so only here."""
    if not (folder / NUMERICS).exists():
        return Judged(Numerics(), (), not_timed(BROKEN_FIRST))
    from evaluation.judge.cases import cases
    from evaluation.judge.numerics import judge_again
    from evaluation.judge.speed import judge_speed_again
    from evaluation.judge.speed_cases import known_plans

    numerics, wrong = judge_again(folder / NUMERICS, {case.name: case for case in cases(quick=False)}, console)
    if not (folder / SPEED).exists():
        return Judged(numerics, wrong, not_timed(WRONG_FIRST if wrong else absent))
    speed, wrong_times = judge_speed_again(folder / SPEED, known_plans(), console)
    return Judged(numerics, (*wrong, *wrong_times), speed)
