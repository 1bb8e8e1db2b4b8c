"""Measure how far from the oracle the vanilla tree is, over many seeds: what the table in bounds.py rests on.

Also how much further than vanilla another honest tree is: the largest ratio that MULTIPLE has to leave room for.
"""

import argparse
import secrets
from collections import defaultdict
from contextlib import ExitStack
from statistics import median

from rich.console import Console
from rich.progress import track
from rich.table import Table

from evaluation.judge.bounds import BOUNDS, kind_of
from evaluation.judge.cases import cases
from evaluation.judge.compare import errors, rounding_of, truth_of
from evaluation.judge.draw import draw
from evaluation.judge.numerics import run_worker
from evaluation.suite.command import ROOT, tree_folder
from evaluation.suite.stage import staged


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evaluation.judge.calibrate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="how many fresh seeds (default: 10)")
    parser.add_argument("--quick", action="store_true", help="the cases of a quick run only")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the trees run")
    parser.add_argument("--other", type=tree_folder, default=ROOT / "repository_after", help="the other honest tree")
    options = parser.parse_args(argv)
    vanilla: dict[tuple[str, str], list[float]] = defaultdict(list)
    ratios: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    chosen = cases(options.quick)
    with ExitStack() as stack:
        trees = [
            stack.enter_context(staged(ROOT / "repository_before", "before")),
            stack.enter_context(staged(options.other, "after")),
        ]
        for _ in track(range(options.seeds), "seeds"):
            drawn = [draw(case, secrets.randbits(62)) for case in chosen]
            runs = [run_worker(tree, drawn, 600.0, options.device) for tree in trees]
            for number, each in enumerate(drawn):
                truth = truth_of(each)
                base, other = (errors(truth, run.results[number][1]) for run in runs)
                for name, error in base.items():
                    key = rounding_of(each), kind_of(name)
                    vanilla[key].append(error)
                    ratios[key].append((other[name] / max(error, BOUNDS[key].floor), f"{each.case.name}: {name}"))
    _show(vanilla, ratios)


def _show(vanilla: dict[tuple[str, str], list[float]], ratios: dict[tuple[str, str], list[tuple[float, str]]]) -> None:
    table = Table(
        "rounding", "measure", "values", "median", "99 %", "largest", "largest of other / max(vanilla, floor)"
    )
    for key, found in vanilla.items():
        ordered = sorted(found)
        tail = ordered[int(0.99 * (len(ordered) - 1))]
        numbers = (f"{each:.1e}" for each in (median(ordered), tail, ordered[-1]))
        ratio, where = max(ratios[key])
        table.add_row(*key, str(len(ordered)), *numbers, f"{ratio:.2f} ({where})")
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
