"""Train before and after on the same data from the same weights, at several seeds, and say whether they learn the same.

The task is flow matching on scikit-learn's digits, conditioned on time and class. Each run has a process of its own.
A curve is a run's loss, averaged in 20 windows of steps; after's mean over the seeds has to stay as near to before's as
the spread over before's seeds allows (evaluation/training/parity.py has the bound).

  python -m evaluation.training --steps 100 --layers 2 --dim 32                    # on a CPU, a minute or two
  python -m evaluation.training --device cuda --dtype bfloat16 --output FILE       # the target sizes, on a GPU
"""

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from evaluation.bench.option_types import int_from, numbers_from
from evaluation.bench.provenance import provenance
from evaluation.report.write import write_record
from evaluation.suite.command import ROOT, tree_folder
from evaluation.training.config import TrainingConfig
from evaluation.training.parity import ParityRecord, ParityRun, compare, in_windows
from evaluation.training.plot import plot

EXIT_CODES = """\
exit code:
  0    at every dropout the trees learn the same
  1    somewhere they do not, or a run failed
  2    usage: a wrong option, or a tree that is not there"""
SIZES = {"steps": 2000, "batch": 128, "dim": 128, "heads": 8, "feed_forward": 512, "layers": 12}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.training",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--before", type=tree_folder, default=ROOT / "repository_before", help="the vanilla tree")
    parser.add_argument("--after", type=tree_folder, default=ROOT / "repository_after", help="the other tree")
    for name, default in SIZES.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int_from(1), default=default, metavar="N", help=f"default {default}")
    parser.add_argument("--seeds", type=int_from(2), default=4, metavar="N", help="how many, from 0 (default 4)")
    parser.add_argument(
        "--dropout", type=numbers_from(0.0, 0.99), default="0,0.1", metavar="P,...", help="default 0,0.1"
    )
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="at its highest (default 5e-4)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="write the record to this JSON file, and a plot beside it as PNG")
    return parser


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    options = parser.parse_args(words)
    sizes = {name: getattr(options, name) for name in (*SIZES, "learning_rate", "dtype")}
    try:
        configs = [
            TrainingConfig(dropout=p, seed=s, **sizes) for p, s in product(options.dropout, range(options.seeds))
        ]
    except ValueError as error:
        parser.error(str(error))
    console = Console()
    run = provenance(options.before, options.after, " ".join(["python -m evaluation.training", *words]))
    try:
        runs = run_all(options, configs)
    except Exception as error:  # a tree's own, out of its process
        console.print(f"a run failed: {type(error).__name__}: {error}", markup=False)
        return 1
    record = ParityRecord(**run, machine=describe(options.device), runs=runs, results=compare(runs))
    if options.output:
        write_record(record, options.output)
        plot(record, options.output.with_suffix(".png"))
    console.print(table(record))
    return 0 if all(result.same for result in record.results) else 1


def run_all(options: argparse.Namespace, configs: list[TrainingConfig]) -> list[ParityRun]:
    """Every configuration on both trees, in turns, one at a time."""
    from evaluation.training.trainer import train_tree  # slow to import

    runs = []
    with tempfile.TemporaryDirectory() as folder, Progress() as progress:
        jobs = [(role, config) for config in configs for role in ("before", "after")]
        for role, config in progress.track(jobs, description="training"):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                metrics = Path(folder, "metrics.jsonl")
                found = pool.submit(train_tree, getattr(options, role), config, options.device, metrics).result()
            kept = found.model_dump(exclude={"losses"})
            runs.append(ParityRun(role=role, config=config, windows=in_windows(found.losses), **kept))
    return runs


def describe(device: str) -> str:
    import torch

    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return f"{where}, torch {torch.__version__}"


def table(record: ParityRecord) -> Table:
    """A row for each dropout."""
    found = Table(title=record.machine)
    for heading in ("dropout", "first loss", "last loss: before", "after", "furthest, of what is allowed", "verdict"):
        found.add_column(heading)
    for result in record.results:
        first, last = (result.windows[0], result.windows[-1]) if result.windows else (None, None)
        numbers = [f"{v:.4f}" for v in (first.before, last.before, last.after)] if first else ["", "", ""]
        verdict = "the same" if result.same else result.problem or "not the same"
        found.add_row(f"{result.dropout:g}", *numbers, f"{result.worst:.2f}", verdict)
    return found


if __name__ == "__main__":
    sys.exit(main())
