"""Run the suite and the numeric cases on two trees, judge what each did, and write the verdict as JSON.

The tree BEFORE must pass every contract test and fail every upgrade test; the tree AFTER must pass both.
"""

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

if not __package__:  # run as a script: let the imports below find this package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from evaluation.judge.scan import scan
from evaluation.report.build import build_report
from evaluation.report.environment import describe_environment
from evaluation.report.junit import to_junit
from evaluation.report.models import RunSettings
from evaluation.report.sarif import to_sarif
from evaluation.report.summary import print_report
from evaluation.report.write import check_writable, default_report_file, write_atomically, write_record
from evaluation.suite.command import EXIT_CODES, ROOT, SUITE, add_run_options, run_guarded, settings_from, tree_folder
from evaluation.suite.pair import Judge, judge_numbers, run_pair
from evaluation.suite.result import exit_code
from evaluation.suite.run import Settings

REPORTS = ROOT / "evaluation" / "reports"


def main(
    argv: list[str] | None = None, *, suite: Path = SUITE, reports: Path = REPORTS, judge: Judge = judge_numbers
) -> int:
    options = _parser().parse_args(argv)
    return run_guarded(lambda: _evaluate(options, settings_from(options, suite), reports, judge))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluation/evaluate.py",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for role in ("before", "after"):
        parser.add_argument(
            f"--{role}",
            type=tree_folder,
            default=str(ROOT / f"repository_{role}"),
            metavar="FOLDER",
            help=f"the folder that holds the package mmdit of {role} (default: repository_{role})",
        )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="where the report goes: a file when PATH ends in .json, else a folder that gets report.json (default: "
        "evaluation/reports/YYYY-MM-DD/HH-MM-SS/report.json); evaluation/reports/latest.json is written in any case",
    )
    parser.add_argument("--sarif", type=Path, metavar="PATH", help="also write the static scan's findings to PATH")
    parser.add_argument("--junit", type=Path, metavar="PATH", help="also write the test results as JUnit XML to PATH")
    add_run_options(parser)
    return parser


def _evaluate(options: argparse.Namespace, settings: Settings, reports: Path, judge: Judge) -> int:
    console = Console()
    started_at, started, run_id = datetime.now(UTC), time.monotonic(), str(uuid4())
    file = _report_file(options.output) if options.output else default_report_file(reports, started_at, run_id)
    for folder in _folders_to_write(options, reports, file):
        check_writable(folder)
    findings = scan(options.after)
    pair = run_pair(options.before, options.after, settings, console, judge)
    report = build_report(
        pair,
        run_id=run_id,
        started_at=started_at,
        duration_seconds=time.monotonic() - started,
        settings=RunSettings(
            before=str(options.before),
            after=str(options.after),
            quick=settings.quick,
            timeout_seconds=settings.timeout,
            seed=settings.seed,
            device=settings.device,
        ),
        environment=describe_environment(ROOT, pair.machine),
        findings=findings,
    )
    write_record(report, file, reports / "latest.json")
    if options.junit:
        write_atomically(options.junit, to_junit(report))
    if options.sarif:
        write_atomically(options.sarif, to_sarif(findings))
    print_report(console, report, file)
    return exit_code(report.failures)


def _report_file(output: Path) -> Path:
    names_a_file = output.suffix == ".json" and not output.is_dir()
    return output if names_a_file else output / "report.json"


def _folders_to_write(options: argparse.Namespace, reports: Path, file: Path) -> list[Path]:
    """To be tried before the long work. The folder of this very second is made only when there is a report."""
    report_folder = file.parent if options.output else file.parent.parent
    return [reports, report_folder, *(path.parent for path in (options.junit, options.sarif) if path)]


if __name__ == "__main__":
    sys.exit(main())
