"""Deploy every public module and op in every way, and print what came of it as a Markdown table.

    python -m mmdit.deploy.table                                  # all of it, minutes
    python -m mmdit.deploy.table --module MMDiT --column "ONNX 23"

A number is the worst relative L2 error of any output against the module in fp64, at three sizes of batch, length and
context, two of which were not exported with; masks and positions are inputs wherever a module takes them. Artifacts of
script, trace, export and AOTInductor run in a process that never imports mmdit. Exit code 1 if any cell fails.
"""

import argparse
import logging
import sys
import warnings
from typing import Callable, List, Sequence

import torch
from rich.console import Console
from rich.progress import track

from mmdit.deploy.columns import BY_NAME as COLUMNS
from mmdit.deploy.columns import Column, jobs
from mmdit.deploy.subjects import BY_NAME as SUBJECTS
from mmdit.deploy.subjects import Subject

NO_GPU = "no GPU"


def tell(cell: Callable[[Subject, Column], float], subject: Subject, column: Column) -> str:
    """A cell's text: its error, or "FAIL" and why, or NO_GPU."""
    if column.cuda and not torch.cuda.is_available():
        return NO_GPU
    try:
        error = cell(subject, column)
    except Exception as problem:
        return f"FAIL {type(problem).__name__}: {' '.join(str(problem).split())[:80]}"
    return f"{error:.1e}" if error <= column.tolerance else f"FAIL {error:.1e}, of at most {column.tolerance:.0e}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m mmdit.deploy.table", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--module", action="append", choices=SUBJECTS, help="repeatable (default: all)")
    parser.add_argument("--column", action="append", choices=COLUMNS, help="repeatable (default: all)")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # of TorchScript's and the exporters' own
    logging.getLogger("torch").setLevel(logging.ERROR)
    subjects = [SUBJECTS[name] for name in given.module or SUBJECTS]
    columns = [COLUMNS[name] for name in given.column or COLUMNS]
    console = Console(stderr=True)
    rows: List[List[str]] = []
    with jobs() as cell:
        wanted = [(subject, column) for subject in subjects for column in columns]
        found = [tell(cell, *pair) for pair in track(wanted, console=console, disable=not console.is_terminal)]
    for i, subject in enumerate(subjects):
        rows.append([subject.name, *found[i * len(columns) : (i + 1) * len(columns)]])
    head = ["", *[column.name for column in columns]]
    print("\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)))
    if NO_GPU in found:
        print(f"\n{NO_GPU}: not run, as torch finds no CUDA device here.")
    return int(any(text.startswith("FAIL") for text in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
