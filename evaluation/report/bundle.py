"""A verdict again, from what a run left behind: no candidate runs, and the same comes out."""

from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from evaluation.judge.record import Numerics
from evaluation.report.build import build_report
from evaluation.report.bundle_record import Bundle
from evaluation.report.models import Report
from evaluation.suite.pair import PairRun, gather
from evaluation.suite.probe import Machine
from evaluation.suite.result import Failure, GraderError

BUNDLE_FILE = "bundle.json"


def report_of(bundle: Bundle, numerics: Numerics, failures: tuple[Failure, ...]) -> Report:
    """The report on a run, of what was recorded and nothing else."""
    machine = Machine.model_validate(bundle.environment.model_dump(include=set(Machine.model_fields)))
    return build_report(
        PairRun(machine, bundle.before, bundle.after, numerics, failures),
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
        numerics, wrong = _judge(folder / "numerics", console)
    except (OSError, ValidationError) as error:
        raise GraderError(f"{folder} is not a whole bundle: {error}") from error
    return report_of(bundle, numerics, gather(bundle.grader_failures, wrong, bundle.before, bundle.after))


def _judge(folder: Path, console: Console) -> tuple[Numerics, tuple[Failure, ...]]:
    """Nothing where the run broke before it came to the numeric cases. Imports torch, hence only here."""
    if not folder.exists():
        return Numerics(), ()
    from evaluation.judge.cases import cases
    from evaluation.judge.numerics import judge_again

    return judge_again(folder, {case.name: case for case in cases(quick=False)}, console)
