"""Run the suite and the numeric cases on two trees, time them, judge what each did, and write the verdict as JSON.

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

from evaluation.config_file import add_config_option, parse_with_config
from evaluation.judge.scan import scan
from evaluation.report.bundle import BUNDLE_FILE, regrade, report_of
from evaluation.report.bundle_record import Bundle, Sources
from evaluation.report.environment import describe_environment
from evaluation.report.explain import explain, read_report
from evaluation.report.junit import to_junit
from evaluation.report.models import Report, RunSettings
from evaluation.report.page import render_page
from evaluation.report.sarif import to_sarif
from evaluation.report.summary import print_report
from evaluation.report.write import check_writable, default_report_file, write_atomically, write_record
from evaluation.runs.options import tag
from evaluation.store.store import Store
from evaluation.store.verdict_run import earlier, keep_verdict, resolved
from evaluation.suite.command import EXIT_CODES, ROOT, SUITE, add_run_options, run_guarded, settings_from, tree_folder
from evaluation.suite.integrity import digest_of
from evaluation.suite.pair import GRADER, Judge, Judged, judge_both, run_pair
from evaluation.suite.result import FailureKind, exit_code
from evaluation.suite.run import Settings

REPORTS = ROOT / "evaluation" / "reports"


def main(
    argv: list[str] | None = None, *, suite: Path = SUITE, reports: Path = REPORTS, judge: Judge = judge_both
) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["explain"]:
        report = _explain_parser().parse_args(arguments[1:]).report
        return run_guarded(lambda: _explain(report))
    parser = _parser()
    options = parse_with_config(parser, arguments)
    if options.regrade and options.require:
        parser.error("argument --require: not allowed with --regrade, which keeps to what its run was asked for")
    return run_guarded(lambda: _evaluate(options, settings_from(options, suite), reports, judge))


def _explain_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="evaluation/evaluate.py explain", description="Say a report in plain words.")
    parser.add_argument("report", type=Path, metavar="REPORT", help="a report.json")
    return parser


def _explain(report: Path) -> int:
    print(explain(read_report(report)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluation/evaluate.py",
        description=__doc__,
        epilog=f"`evaluate.py explain REPORT` says a report in plain words.\n\n{EXIT_CODES}",
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
        "evaluation/reports/YYYY-MM-DD/HH-MM-SS/report.json), its page beside it as .html; "
        "evaluation/reports/latest.json is written in any case",
    )
    parser.add_argument("--sarif", type=Path, metavar="PATH", help="also write the static scan's findings to PATH")
    parser.add_argument("--junit", type=Path, metavar="PATH", help="also write the test results as JUnit XML to PATH")
    parser.add_argument(
        "--bundle",
        type=_new_folder,
        metavar="DIR",
        help="leave all that the verdict rests on (outcomes, raw tensors, hashes, versions) in DIR, a new folder",
    )
    parser.add_argument(
        "--regrade",
        type=tree_folder,
        metavar="BUNDLE",
        help="run no candidate: compute the verdict again from what --bundle left",
    )
    parser.add_argument(
        "--require",
        action="append",
        choices=("speed",),
        default=[],
        help="fail unless this axis passes as well: speed needs a GPU, and a fused path that is faster there",
    )
    _add_store_options(parser)
    add_run_options(parser)
    return parser


def _add_store_options(parser: argparse.ArgumentParser) -> None:
    add_config_option(parser)
    parser.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="where the run is kept, for `python -m evaluation.runs` (default: evaluation/reports/runs)",
    )
    parser.add_argument("--no-store", action="store_true", help="keep the run nowhere but in its report")
    parser.add_argument("--tag", type=tag, action="append", default=[], metavar="TAG", help="of the run that is kept")


def _new_folder(text: str) -> Path:
    if Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text!r} is already there")
    return Path(text).resolve()


def _evaluate(options: argparse.Namespace, settings: Settings, reports: Path, judge: Judge) -> int:
    console = Console()
    started_at, run_id = datetime.now(UTC), str(uuid4())
    file = _report_file(options.output) if options.output else default_report_file(reports, started_at, run_id)
    keep = None if options.no_store or options.regrade else options.store or reports / "runs"
    for folder in (*_folders_to_write(options, reports, file), *filter(None, [keep])):
        check_writable(folder)
    if options.regrade:
        report = regrade(options.regrade, console)
    else:
        report = _grade(options, settings, judge, console, started_at, run_id)
    write_record(report, file, reports / "latest.json")
    if options.junit:
        write_atomically(options.junit, to_junit(report))
    if options.sarif:
        write_atomically(options.sarif, to_sarif(report.findings))
    page = render_page(report, earlier(Store(keep), report) if keep else ())
    write_atomically(file.with_suffix(".html"), page)
    print_report(console, report, file)
    if keep:
        run = keep_verdict(Store(keep), report, page, resolved(options, settings.seed), tuple(options.tag))
        console.print(f"run: {run.id}", soft_wrap=True)
    return exit_code(report.failures)


def _grade(
    options: argparse.Namespace, settings: Settings, judge: Judge, console: Console, started_at: datetime, run_id: str
) -> Report:
    """Run both trees, and leave a bundle where one is asked for."""
    started = time.monotonic()
    sources = {"before": options.before, "after": options.after, "suite": settings.suite, "grader": GRADER}
    if settings.keep:
        settings.keep.mkdir(parents=True)
    findings = scan(options.after)
    pair = run_pair(options.before, options.after, settings, console, judge)
    bundle = Bundle(
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
            isolation=settings.isolation,
            require=tuple(dict.fromkeys(options.require)),
        ),
        environment=describe_environment(ROOT, pair.machine),
        findings=findings,
        before=pair.before,
        after=pair.after,
        grader_failures=tuple(each for each in pair.failures if each.kind is FailureKind.GRADER_ERROR),
        sha256=Sources(**{name: digest_of(folder) for name, folder in sources.items()}),
    )
    if settings.keep:
        write_record(bundle, settings.keep / BUNDLE_FILE)
    return report_of(bundle, Judged(pair.numerics, pair.failures, pair.speed), pair.failures)


def _report_file(output: Path) -> Path:
    names_a_file = output.suffix == ".json" and not output.is_dir()
    return output if names_a_file else output / "report.json"


def _folders_to_write(options: argparse.Namespace, reports: Path, file: Path) -> list[Path]:
    """To be tried before the long work. The folder of this very second is made only when there is a report."""
    report_folder = file.parent if options.output else file.parent.parent
    return [reports, report_folder, *(path.parent for path in (options.junit, options.sarif) if path)]


if __name__ == "__main__":
    sys.exit(main())
