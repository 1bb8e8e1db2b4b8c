"""The command line of the benchmarks."""

import argparse
import math
from itertools import product
from pathlib import Path
from typing import get_args

from evaluation.bench import help_texts
from evaluation.bench.grid import AXES, MASKED
from evaluation.bench.option_types import int_from, ints_from, make_case, names_of
from evaluation.bench.stack_record import Precision, Recompute, StackCase, StackContender
from evaluation.bench.tune_record import TunedOp
from evaluation.runs.options import tag
from evaluation.suite.command import ROOT, tree_folder

MODEL_SIZES = {  # the target's, and what each is
    "dim": (128, "model dimension"),
    "heads": (8, "attention heads"),
    "feed_forward": (512, "hidden size of the MLPs"),
    "layers": (12, "blocks"),
    "length": (186, "length of x"),
    "context": (64, "length of the context, 0 for a model without"),
}
# options that do not decide what is measured
NOT_MEASURED = ("command", "before", "after", "output", "store", "tag", "budget_s")
LISTED = {"metavar": "A,B,..."}
DTYPES = get_args(Precision)
OF_DTYPES = f"of {', '.join(DTYPES)}: tf32 is float32 with TF32 allowed, float32 is IEEE (default %(default)s)"


def build_parser() -> argparse.ArgumentParser:
    """`ops`, `stack`, `sizes`, `tune` and `table`."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.bench", description=help_texts.DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    ops = add_timing_command(commands, "ops", "time every fused op")
    ops.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")

    stack = add_timing_command(commands, "stack", "time the whole model")
    contenders = get_args(StackContender)
    stack.add_argument(
        "--contenders", type=names_of(contenders), default=",".join(contenders), help="default all", **LISTED
    )
    add_case_options(stack)
    stack.add_argument("--backward", action="store_true", help="with the gradients of all inputs and weights")
    stack.add_argument(
        "--recompute",
        choices=get_args(Recompute),
        default="none",
        help="what the fused model's backward computes again rather than keeps (default none)",
    )
    add_budget(stack, "begin no further case after so long; the record names those not begun")

    sizes = add_timing_command(commands, "sizes", "time models of many sizes")
    add_grid_options(sizes)
    add_budget(sizes, "begin no further cell after so long; the record names those not begun")

    tune = add_timing_command(commands, "tune", "time other tiles beside those of the tuning tables")
    tuned = get_args(TunedOp)
    tune.add_argument(
        "--op", type=names_of(tuned), default=",".join(tuned), help=f"of {', '.join(tuned)} (default all)", **LISTED
    )
    add_case_options(tune)
    add_budget(tune, "share so long among the cases, and try no further tiles of a case after its share")

    table = commands.add_parser("table", help="print the Markdown table of a record that one of the others wrote")
    table.add_argument("record", type=Path)
    return parser


def add_timing_command(commands: argparse._SubParsersAction, name: str, what: str) -> argparse.ArgumentParser:
    """A command with the options that all have which time."""
    command = commands.add_parser(
        name,
        help=f"{what}; needs an NVIDIA GPU",
        description=getattr(help_texts, name.upper()),
        epilog=help_texts.EXIT_CODES.format(short=help_texts.SHORT[name]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--before", type=tree_folder, default=ROOT / "repository_before", help="the vanilla tree")
    command.add_argument("--after", type=tree_folder, default=ROOT / "repository_after", help="the fused tree")
    command.add_argument("--rounds", type=int_from(2), default=9, help="turns that each contender gets (default 9)")
    command.add_argument(
        "--rep", type=int_from(1), default=20, help="milliseconds that a contender is timed in a turn (default 20)"
    )
    command.add_argument("--output", type=Path, help="write the record to this JSON file")
    command.add_argument(
        "--store", type=Path, metavar="ROOT", help="keep the run in this store, for python -m evaluation.runs"
    )
    command.add_argument("--tag", type=tag, action="append", default=[], metavar="TAG", help="of the run that is kept")
    return command


def add_case_options(command: argparse.ArgumentParser) -> None:
    """What model_cases reads."""
    command.add_argument("--batch", type=ints_from(1), default="1,8,32,128,512", help="default %(default)s", **LISTED)
    command.add_argument("--dtype", type=names_of(DTYPES), default="bfloat16", help=OF_DTYPES, **LISTED)
    command.add_argument(
        "--masked", action="store_true", help="with a random mask, and a start position for each sample"
    )
    for name, (default, meaning) in MODEL_SIZES.items():
        option = f"--{name.replace('_', '-')}"
        command.add_argument(option, type=int, default=default, metavar="N", help=f"{meaning} (default {default})")


def add_grid_options(command: argparse.ArgumentParser) -> None:
    """What grid.cells reads."""
    kinds = {"context": ints_from(0), "dtype": names_of(DTYPES), "masked": names_of(list(MASKED))}
    for name, (values, meaning) in AXES.items():
        command.add_argument(
            f"--{name.replace('_', '-')}",
            type=kinds.get(name, ints_from(1)),
            default=",".join(map(str, values)),
            help=f"{meaning} (default %(default)s)",
            **LISTED,
        )
    command.add_argument("--layers", type=int_from(1), default=2, metavar="N", help="blocks (default 2)")
    command.add_argument("--cells", type=int_from(1), default=64, metavar="N", help="cells at most (default 64)")


def add_budget(command: argparse.ArgumentParser, meaning: str) -> None:
    help = f"{meaning} (default: no limit)"
    command.add_argument("--budget-s", type=int_from(1), default=math.inf, metavar="SECONDS", help=help)


def model_cases(options: argparse.Namespace) -> tuple[StackCase, ...]:
    """The cases that were asked for. Raises ValueError for sizes that no model has."""
    shared = {name: getattr(options, name) for name in ("masked", *MODEL_SIZES)}
    shared |= {name: value for name, value in vars(options).items() if name in ("backward", "recompute")}
    return tuple(make_case(batch=b, dtype=d, **shared) for d, b in product(options.dtype, options.batch))


def command_line(options: argparse.Namespace) -> str:
    """The command with every option that decides what is measured, the defaults too."""
    words = ["python -m evaluation.bench", options.command]
    for name, value in vars(options).items():
        if name in NOT_MEASURED or value is False:
            continue
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        option = f"--{name.replace('_', '-')}"
        words += [option] if value is True else [option, text]
    return " ".join(words)
