"""What the grader's commands share: options, their checks, and the meaning of how they end."""

import argparse
import math
import secrets
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from evaluation.suite.process import Interrupted, stop_signals_raise
from evaluation.suite.result import GraderError
from evaluation.suite.run import Settings

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "tests"
TIMEOUT_SECONDS = 1800.0

EXIT_CODES = """\
exit code:
  0    success: every tree did exactly what was declared for it
  1    a tree failed; the reason names the tree and the cause
  2    usage: a wrong option, or a tree that is not there
  3    the grader itself could not do its work, which says nothing about a candidate;
       so ends a run that breaks on before, since nothing is left to grade against
  130  stopped by Ctrl-C (143 by SIGTERM, 129 by SIGHUP); no process and no report is left"""


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how the suite runs; `settings_from` reads them."""
    parser.add_argument("--quick", action="store_true", help="leave out the tests marked slow, and say so")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="time limit of the suite on one tree; a tree that exceeds it fails (default: %(default)g)",
    )
    parser.add_argument(
        "--seed",
        type=_seed,
        metavar="N",
        help="seed of the tests' random inputs, to repeat a run (default: drawn fresh, and reported)",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="cpu leaves out the tests that need a GPU, cuda insists on one, auto takes what is there",
    )
    parser.add_argument(
        "--processes",
        type=_count,
        default=0,
        metavar="N",
        help="processes that share the suite of a tree (default: one for each core, at most 4, that memory has room "
        "for; one alone on a GPU)",
    )
    parser.add_argument(
        "--isolation",
        choices=("process", "docker"),
        default="process",
        help="docker: each process of a tree in a container of its own, without network (after docker compose build)",
    )


def settings_from(options: argparse.Namespace, suite: Path) -> Settings:
    return Settings(
        suite=suite,
        quick=options.quick,
        timeout=options.timeout,
        seed=secrets.randbelow(2**31) if options.seed is None else options.seed,
        device=options.device,
        keep=getattr(options, "bundle", None),
        processes=options.processes,
        isolation=options.isolation,
    )


def tree_folder(text: str) -> Path:
    """An argparse type: the folder of a tree, which must be there. What is in it is the run's to judge."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is {'not a folder' if path.exists() else 'not there'}")
    return path.resolve()


def run_guarded(work: Callable[[], int], refused: str = "the grader could not do its work") -> int:
    """Do the work and return its exit code; whatever stops it becomes an exit code with a reason on stderr, which for a
    GraderError begins with `refused`.
    """
    try:
        with stop_signals_raise():
            return work()
    except Interrupted as stop:
        print(f"stopped by {stop}: the run's processes are gone and there is no report", file=sys.stderr)
        return stop.exit_code
    except GraderError as error:
        print(f"{refused}: {error}", file=sys.stderr)
    except Exception:
        traceback.print_exc()
        print("the grader could not do its work: the error above is its own", file=sys.stderr)
    return 3


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (math.isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes, or 0 for the default")
    return count


def _seed(text: str) -> int:
    seed = int(text)
    if not 0 <= seed < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not in 0 .. 2**63 - 1")
    return seed
