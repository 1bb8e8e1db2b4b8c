"""The command line of the benchmarks."""

import argparse
import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from evaluation.bench.stack_record import Precision, StackCase, StackContender
from evaluation.suite.command import ROOT, tree_folder

DESCRIPTION = """\
Time the fused tree against vanilla PyTorch on this GPU, after checking every contender against fp64."""

OPS = """\
Time every fused op against vanilla PyTorch, eager and compiled, called eagerly and replayed from a CUDA graph, all
contenders of a case in turns. Outputs and gradients are checked against fp64 first."""

STACK = """\
Time the forward of the whole model, without gradients, all contenders of a case in turns:

  eager            the vanilla tree, called as is
  eager_graph      the same, replayed from a CUDA graph
  compiled         the vanilla tree under torch.compile, called as is
  compiled_graph   the same, replayed from a CUDA graph
  max_autotune     the vanilla tree under torch.compile, max-autotune, replayed from a CUDA graph
  fused            the fused tree, called as is
  fused_graph      the same, replayed from a CUDA graph

Weights and inputs are drawn fresh, and outputs checked against the vanilla tree in fp64 first. Recorded beside the
times are the errors, the peak memory of eager and fused, what fused chose and launched, and the floor: the least time
that a forward's operations, bytes and exponentials take. A contender that does not compile is named, with its reason.
There is a case for each batch and dtype; the record is written after each.

  python -m evaluation.bench stack --output stack.json
  python -m evaluation.bench stack --batch 1,128 --dtype bfloat16,tf32 --contenders max_autotune,fused_graph
  python -m evaluation.bench stack --batch 8 --masked --dim 256 --length 1024 --budget-s 300"""

OPS_SHORT = "the fused op is somewhere slower than torch.compile, or short of the copy bandwidth"
STACK_SHORT = "fused_graph is somewhere slower than compiled_graph or max_autotune, or less accurate than eager"

EXIT_CODES = """\
exit code:
  0    nowhere short
  1    {short};
       or a contender's outputs are wrong
  2    usage: a wrong option, or a tree or record that is not there
  3    nothing could be measured"""

SIZES = {  # the target's, and what each is
    "dim": (128, "model dimension"),
    "heads": (8, "attention heads"),
    "feed_forward": (512, "hidden size of the MLPs"),
    "layers": (12, "blocks"),
    "length": (186, "length of x"),
    "context": (64, "length of the context"),
}
NOT_MEASURED = ("command", "before", "after", "output", "budget_s")  # options that do not decide what is measured


def build_parser() -> argparse.ArgumentParser:
    """`ops`, `stack` and `table`."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.bench", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    ops = add_timing_command(commands, "ops", "time every fused op; needs an NVIDIA GPU", OPS, OPS_SHORT)
    ops.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")

    stack = add_timing_command(commands, "stack", "time the whole model; needs an NVIDIA GPU", STACK, STACK_SHORT)
    dtypes, contenders = get_args(Precision), get_args(StackContender)
    listed = {"metavar": "A,B,..."}
    stack.add_argument("--batch", type=positive_ints, default="1,8,32,128,512", help="default %(default)s", **listed)
    stack.add_argument(
        "--dtype",
        type=names_of(dtypes),
        default="bfloat16",
        help=f"of {', '.join(dtypes)}: tf32 is float32 with TF32 allowed, float32 is IEEE (default %(default)s)",
        **listed,
    )
    stack.add_argument(
        "--contenders", type=names_of(contenders), default=",".join(contenders), help="default all", **listed
    )
    stack.add_argument("--masked", action="store_true", help="with a random mask, and a start position for each sample")
    for name, (default, meaning) in SIZES.items():
        option = f"--{name.replace('_', '-')}"
        stack.add_argument(option, type=int, default=default, metavar="N", help=f"{meaning} (default {default})")
    stack.add_argument(
        "--budget-s",
        type=int_from(1),
        default=math.inf,
        metavar="SECONDS",
        help="begin no further case after so long; the record names those not begun (default: no limit)",
    )

    table = commands.add_parser("table", help="print the Markdown table of a record that ops or stack wrote")
    table.add_argument("record", type=Path)
    return parser


def add_timing_command(
    commands: argparse._SubParsersAction, name: str, help: str, description: str, short: str
) -> argparse.ArgumentParser:
    """A command with the options that both have; short: what makes its exit code 1."""
    command = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=EXIT_CODES.format(short=short),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--before", type=tree_folder, default=ROOT / "repository_before", help="the vanilla tree")
    command.add_argument("--after", type=tree_folder, default=ROOT / "repository_after", help="the fused tree")
    command.add_argument("--rounds", type=int_from(2), default=9, help="turns that each contender gets (default 9)")
    command.add_argument(
        "--rep", type=int_from(1), default=20, help="milliseconds that a contender is timed in a turn (default 20)"
    )
    command.add_argument("--output", type=Path, help="write the record to this JSON file")
    return command


def stack_cases(options: argparse.Namespace) -> tuple[StackCase, ...]:
    """The cases that `stack` was asked for. Raises ValueError for sizes that no model has."""
    shared = {name: getattr(options, name) for name in ("masked", *SIZES)}
    try:
        return tuple(StackCase(batch=b, dtype=d, **shared) for d, b in product(options.dtype, options.batch))
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"--{name}: ".replace("_", "-") for name in first["loc"])
        raise ValueError(where + first["msg"].removeprefix("Value error, ")) from error


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


def positive_ints(text: str) -> tuple[int, ...]:
    """An argparse type: ints of at least 1 between commas, each once."""
    return tuple(dict.fromkeys(map(int_from(1), text.split(","))))


def names_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """An argparse type: some of these names between commas, each once."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, got {name!r}")
        return names

    return parse


def int_from(least: int) -> Callable[[str], int]:
    """An argparse type: an int of at least `least`."""

    def parse(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
        return int(text)

    return parse
