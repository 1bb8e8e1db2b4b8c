"""Time a tree against itself, again and again: how often the same is called the same, as every interval promises.

Exits 1 where that is rarer than the intervals' confidence.
"""

import argparse
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

from rich.console import Console
from rich.progress import track

from evaluation.judge.speed import judge_speed
from evaluation.judge.speed_cases import BASELINES, plans
from evaluation.judge.speed_record import CONFIDENCE
from evaluation.suite.command import ROOT, tree_folder
from evaluation.suite.stage import staged


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.judge.same", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="how many (default: 20)")
    parser.add_argument("--full", action="store_true", help="all timed cases, not those of a quick run")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the tree runs")
    parser.add_argument(
        "--tree", type=tree_folder, default=ROOT / "repository_before", help="default: repository_before"
    )
    parser.add_argument("--timeout", type=float, default=900.0, metavar="SECONDS", help="of one worker in one run")
    parser.add_argument(
        "--baselines",
        type=_names,
        default=(),
        metavar="NAME,...",
        help="what the tree is timed as: eager, and on a GPU graph, compiled, compiled_graph, max_autotune, each of the"
        " last three compiled anew in each run (default: all of them)",
    )
    options = parser.parse_args(argv)
    if unknown := set(options.baselines) - set(BASELINES[options.device]):
        parser.error(f"--baselines: expected some of {', '.join(BASELINES[options.device])}, got {min(unknown)}")
    console, quiet = Console(width=160), Console(quiet=True)
    chosen = [replace(plan, baselines=options.baselines) for plan in plans(options.device, not options.full)]
    outcomes: Counter[tuple[str, str]] = Counter()
    for _ in track(range(options.runs), "runs", console=console):
        with ExitStack() as stack:
            trees = [stack.enter_context(staged(options.tree, role)) for role in ("before", "after")]
            speed, failures = judge_speed(*trees, chosen, options.timeout, options.device, quiet)
        for case in speed.cases:
            outcomes[case.name, "the same" if case.outcome == "inconclusive" else case.outcome] += 1
            told = failures[0].message if failures else f"{case.ratio}, where {case.noise_floor:.3g} may be noise"
            console.print(f"{case.name}: {case.outcome}: {told}", markup=False, highlight=False)
    for plan in chosen:
        same = outcomes[plan.case.name, "the same"]
        console.print(f"{plan.case.name}: the same in {same} of {options.runs} runs", highlight=False)
    return 0 if all(outcomes[plan.case.name, "the same"] >= CONFIDENCE * options.runs for plan in chosen) else 1


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    sys.exit(main())
