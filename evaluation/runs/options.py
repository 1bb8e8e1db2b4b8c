"""The options of `python -m evaluation.runs`."""

import argparse
from pathlib import Path
from re import fullmatch
from typing import get_args

from evaluation.store.export import Format
from evaluation.store.forms import Rule, Statistic
from evaluation.store.models import TAG, RunKind
from evaluation.suite.command import ROOT

DEFAULT_STORE = ROOT / "evaluation" / "reports" / "runs"
_EPILOG = """\
A run is named by its id, the beginning of it, a tag, `latest`, or `latest~1` for the one before that.

exit code:
  0  done; for gate: every rule of severity error is kept
  2  usage
  3  it could not be done: no such run or record, a run that is not whole, runs that are not alike
  4  gate: a rule of severity error is broken, or its metric missing

examples:
  python -m evaluation.runs list --tag nightly
  python -m evaluation.runs compare latest~1 latest --metric 'after/*' --top 10
  python -m evaluation.runs gate base latest --rule 'after/seconds:10::error' --rule '+after/tests/passed::0:error'
  python -m evaluation.runs history after/numerics/worst_share --window full
  python -m evaluation.runs import evaluation/records/h200/*.json --tag h200"""


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m evaluation.runs",
        description="Runs that were kept: look at them, compare them, gate on them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "--store", type=Path, default=DEFAULT_STORE, metavar="DIR", help="(default: evaluation/reports/runs)"
    )
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _list(commands.add_parser("list", help="the runs, newest first; those in quarantine too, with the reason"))
    _show(commands.add_parser("show", help="one run: what it was, its metrics, its artifacts"))
    _compare(commands.add_parser("compare", help="runs against a baseline, metric by metric"))
    _gate(commands.add_parser("gate", help="exit 4 where a run is worse than a baseline by more than rules allow"))
    _history(commands.add_parser("history", help="one metric over the runs like the newest, and where it changed"))
    _export(commands.add_parser("export", help="runs as csv, json or parquet, or into MLflow or TensorBoard"))
    _import(commands.add_parser("import", help="keep records that `python -m evaluation.bench` wrote"))
    commands.add_parser("reindex", help="make the index anew from every byte of the files, which are the truth")
    _prune(commands.add_parser("prune", help="delete old runs that carry no tag, and what killed writers left"))
    _tag(commands.add_parser("tag", help="put tags on a run, or take them off"))
    return found


def _list(command: argparse.ArgumentParser) -> None:
    command.add_argument("--kind", choices=get_args(RunKind))
    command.add_argument("--tag", metavar="TAG")
    command.add_argument("--limit", type=_count, default=20, metavar="N", help="(default: %(default)d)")


def _show(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN")
    _metric_option(command)


def _compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("base", metavar="BASE")
    command.add_argument("runs", metavar="RUN", nargs="+")
    _metric_option(command)
    _statistic_option(command)
    command.add_argument("--top", type=_count, metavar="K", help="only the K largest changes in percent")
    command.add_argument("--anyway", action="store_true", help="also runs on other machines, versions or flags")
    _json_option(command)


def _gate(command: argparse.ArgumentParser) -> None:
    command.add_argument("base", metavar="BASE")
    command.add_argument("run", metavar="RUN")
    command.add_argument(
        "--rule",
        type=_rule,
        action="append",
        required=True,
        metavar="METRIC:MAX_PCT:MAX_ABS:SEVERITY",
        help="how much larger the metric may be than the base's, +METRIC: how much smaller; an empty limit is none; "
        "METRIC may have * and ?; SEVERITY is error or warning",
    )
    _statistic_option(command)
    _json_option(command)


def _history(command: argparse.ArgumentParser) -> None:
    command.add_argument("metric", metavar="METRIC")
    _statistic_option(command)
    command.add_argument("--like", metavar="RUN", help="runs like this one, in place of the newest")
    command.add_argument("--window", choices=("quick", "full"), help="evaluations with --quick, or without")
    command.add_argument("--limit", type=_count, default=100, metavar="N", help="the newest N (default: %(default)d)")
    _json_option(command)


def _export(command: argparse.ArgumentParser) -> None:
    command.add_argument("runs", metavar="RUN", nargs="*", help="(default: every whole run)")
    command.add_argument("--format", required=True, choices=(*get_args(Format), "mlflow", "tensorboard"))
    command.add_argument("--values", action="store_true", help="every value at every step, in place of summaries")
    command.add_argument(
        "--output", required=True, metavar="PATH", help="a file; mlflow: a tracking URI; tensorboard: a folder"
    )


def _import(command: argparse.ArgumentParser) -> None:
    command.add_argument("files", type=Path, metavar="FILE", nargs="+", help="as those of evaluation/records")
    command.add_argument("--commit", metavar="SHA", help="that was measured: a record knows its trees by their hashes")
    command.add_argument("--tag", type=tag, action="append", default=[], metavar="TAG", help="of the runs")


def _prune(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--keep", type=_count, required=True, metavar="N", help="of the runs without a tag, the newest"
    )
    command.add_argument("--quarantined", action="store_true", help="also all that are partial or damaged")
    command.add_argument("--dry-run", action="store_true", help="only say what would be deleted")


def _tag(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN")
    command.add_argument("tags", type=tag, metavar="TAG", nargs="*")
    command.add_argument("--remove", action="append", default=[], metavar="TAG")


def _metric_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="only these; may have * and ?; may be repeated"
    )


def _statistic_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--statistic", choices=get_args(Statistic), default="p50", help="(default: %(default)s)")


def _json_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON of the schema in evaluation/schema")


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text!r}")
    return number


def tag(text: str) -> str:
    """An argparse type."""
    if not fullmatch(TAG, text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected {TAG}")
    return text


def _rule(text: str) -> Rule:
    try:
        return Rule.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
