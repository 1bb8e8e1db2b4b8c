"""Train before, after or both on the same data from the same weights, and say what they learn, and whether the same.

Tasks:
  flow            digits of a class out of noise: flow matching on scikit-learn's digits, conditioned on time and class,
                  with the letters of the class's name as context; measured by a classifier that learned from other
                  images, and by the distance of what it says of samples and of images
  classification  which digit an image shows; measured on images held out
  regression      tokens that a fixed attention mixes, a synthetic task, of any length, with a context if asked for;
                  measured on data held out

Each tree has a process of its own, each run a folder. With --tree both, at several seeds: a curve is a run's loss,
averaged in 20 windows of steps; after's mean over the seeds has to stay as near to before's as the spread over before's
seeds allows (evaluation/training/parity.py has the bound).

  python -m evaluation.training --tree before                            # on a CPU: digits, in a minute or two
  python -m evaluation.training --steps 100 --layers 2 --dim 32          # both trees at four seeds
  python -m evaluation.training --tree after --output FOLDER --trace     # metrics, checkpoint, samples, timelines
  python -m evaluation.training --device cuda --dtype bfloat16 --dropout 0,0.1 --task regression   # the target sizes

Of a run that stopped, --resume goes on from its last checkpoint, to the same bits as if it had not stopped.
"""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import get_args

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from evaluation.bench.option_types import int_from, numbers_from
from evaluation.bench.provenance import provenance
from evaluation.config_file import add_config_option, parse_with_config
from evaluation.report.write import write_record
from evaluation.suite.command import ROOT, tree_folder
from evaluation.training.config import Dtype, Schedule, TaskName, TrainingConfig
from evaluation.training.parity import ParityRecord, compare
from evaluation.training.plot import plot
from evaluation.training.tables import tables

EXIT_CODES = """\
exit code:
  0    every run ended, and both trees, where both were trained, learn the same at every dropout
  1    somewhere they do not, or a run failed
  2    usage: a wrong option, or a tree that is not there
  130  stopped by Ctrl-C"""
SIZES = {
    "cpu": {"steps": 800, "batch": 64, "dim": 64, "heads": 4, "feed_forward": 128, "layers": 3},
    "cuda": {"steps": 2000, "batch": 128, "dim": 128, "heads": 8, "feed_forward": 512, "layers": 12},
}
REGRESSION = {"cpu": {}, "cuda": {"length": 186, "context": 64}}  # images have their own
RATES = {"cpu": 2e-3, "cuda": 5e-4}
SEEDS = {"before": 1, "after": 1, "both": 4}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.training",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", choices=get_args(TaskName), default="flow", help="default flow")
    parser.add_argument("--tree", choices=tuple(SEEDS), default="both", help="default both")
    parser.add_argument("--before", type=tree_folder, default=ROOT / "repository_before", help="the vanilla tree")
    parser.add_argument("--after", type=tree_folder, default=ROOT / "repository_after", help="the other tree")
    for name, small in SIZES["cpu"].items():
        text = f"default {small}, on a GPU {SIZES['cuda'][name]}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int_from(1), metavar="N", help=text)
    parser.add_argument(
        "--length", type=int_from(1), metavar="N", help="regression's tokens (default 16, on a GPU 186)"
    )
    parser.add_argument("--context", type=int_from(0), metavar="N", help="and its context's (default 0, on a GPU 64)")
    parser.add_argument("--accumulate", type=int_from(1), default=1, metavar="N", help="take a batch in N parts")
    parser.add_argument("--seeds", type=int_from(1), metavar="N", help="how many, from 0 (default 4, of one tree 1)")
    parser.add_argument("--dropout", type=numbers_from(0.0, 0.99), default="0", metavar="P,...", help="default 0")
    parser.add_argument("--learning-rate", type=float, metavar="R", help="at its highest (default 2e-3, on a GPU 5e-4)")
    parser.add_argument("--schedule", choices=get_args(Schedule), default="cosine", help="default cosine")
    parser.add_argument("--clip", type=float, default=1.0, metavar="NORM", help="of the gradient (default 1)")
    parser.add_argument("--ema", type=float, default=0.99, metavar="DECAY", help="of averaged weights (default 0.99)")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="float32", help="default float32")
    parser.add_argument("--start", metavar="FILE", help="begin with the weights of this checkpoint")
    parser.add_argument("--deterministic", action="store_true", help="the same bits from the same command")
    parser.add_argument("--device", choices=tuple(SIZES), default="cpu", help="default cpu")
    parser.add_argument("--threads", type=int_from(1), metavar="N", help="of the CPU, that torch may use")
    parser.add_argument("--samples", type=int_from(0), default=500, metavar="N", help="to measure by (default 500)")
    parser.add_argument("--checkpoint-every", type=int_from(1), default=100, metavar="N", help="steps (default 100)")
    parser.add_argument("--trace", action="store_true", help="leave timelines of two steps, for ui.perfetto.dev")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="keep the record, a plot, and each run's folder")
    parser.add_argument(
        "--at-once", type=int_from(1), default=1, metavar="N", help="runs side by side; their times then say less"
    )
    parser.add_argument("--resume", action="store_true", help="go on with what is in --output's folder")
    parser.add_argument("--store", type=Path, metavar="ROOT", help="put each run into the store of runs at ROOT")
    add_config_option(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    options = parse_with_config(parser, words)
    try:
        configs = resolve(options)
    except ValidationError as error:
        first = error.errors()[0]
        parser.error(
            "".join(f"--{n}: ".replace("_", "-") for n in first["loc"]) + first["msg"].removeprefix("Value error, ")
        )
    except ValueError as error:
        parser.error(str(error))
    console = Console()
    run = provenance(options.before, options.after, " ".join(["python -m evaluation.training", *words]))
    with ExitStack() as stack:
        output = options.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            record = train_all(options, configs, output, run, console)
        except KeyboardInterrupt:
            console.print(f"stopped{f'; --output {output} --resume goes on' if options.output else ''}", markup=False)
            return 130
        except Exception as error:  # a tree's own, out of its process
            console.print(f"a run failed: {type(error).__name__}: {error}", markup=False)
            return 1
        if options.output:
            write_record(record, output / "record.json")
            plot(record, output / "curves.png")
    for table in tables(record):
        console.print(table)
    return 0 if all(result.same for result in record.results) else 1


def resolve(options: argparse.Namespace) -> list[TrainingConfig]:
    """A configuration for each dropout and seed. Raises ValueError for options that do not go together."""
    folder = options.output
    if options.resume and not folder:
        raise ValueError("--resume: expected --output with the folder of the runs to go on with")
    if folder and folder.exists() and any(folder.iterdir()) and not options.resume:
        raise ValueError(f"--output: {folder} is not empty; --resume goes on with what is there")
    if options.trace and not (options.output or options.store):
        raise ValueError("--trace: expected --output or --store, to leave the timelines in")
    if options.trace and (options.steps or SIZES[options.device]["steps"]) < 3:
        raise ValueError(f"--trace: expected at least 3 --steps, of which it sees two, got {options.steps}")
    seeds = options.seeds or SEEDS[options.tree]
    if options.tree == "both" and seeds < 2:
        raise ValueError("--seeds: expected at least 2 to compare both trees, got 1")
    sizes = SIZES[options.device] | {"learning_rate": RATES[options.device]}
    sizes |= REGRESSION[options.device] if options.task == "regression" else {}
    given = {name: value for name, value in vars(options).items() if name in TrainingConfig.model_fields}
    sizes |= {name: value for name, value in given.items() if value is not None and name != "dropout"}
    return [TrainingConfig(**sizes, dropout=p, seed=s) for p, s in product(options.dropout, range(seeds))]


def train_all(
    options: argparse.Namespace, configs: list[TrainingConfig], output: Path, run: dict, console: Console
) -> ParityRecord:
    """Every configuration on each tree, in turns, --at-once at a time."""
    from evaluation.training.keep import Keeper  # slow to import, as what follows
    from evaluation.training.runs import How, Job, name, run_all

    fixed = {name: getattr(options, name) for name in ("device", "threads", "checkpoint_every", "samples", "trace")}
    roles = ("before", "after") if options.tree == "both" else (options.tree,)
    jobs = [
        Job(role, getattr(options, role), config, How(output / name(role, config), **fixed))
        for config, role in product(configs, roles)
    ]
    keeper = Keeper(options.store, options.device) if options.store else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    runs = []
    with Progress(*columns, console=console) as progress:
        for job, found in zip(jobs, run_all(jobs, options.at_once, progress), strict=True):
            runs.append(found)
            if keeper:
                progress.print(f"stored as {keeper.keep(found, job.how.folder)}")
    results = compare(runs) if len(roles) == 2 else []
    return ParityRecord(**run, machine=describe(options.device), at_once=options.at_once, runs=runs, results=results)


def describe(device: str) -> str:
    import torch

    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return f"{where}, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
