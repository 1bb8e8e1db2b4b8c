"""Write many runs of many values, and time what reads them: each command is a process of its own, its start included.

Every run has its values in 100 metrics of equal length. Times are CPU seconds: what the
clock shows where nothing else runs.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from rich.progress import track

from evaluation.store.store import Store
from evaluation.suite.command import ROOT
from evaluation.tests.stored_runs import HERE

METRICS = 100
MOST_SECONDS = 1.0
FEWEST_APPENDS = 50_000
MOST_GROWTH_MB = 50.0
COMMANDS = {
    "list": ("list",),
    "compare": ("compare", "latest~1", "latest"),
    "history": ("history", "metric/7"),
}


class Scale(NamedTuple):
    appended_per_s: float  # values, each in a write of its own
    seconds: dict[str, float]  # by command, after indexing
    grown_mb: float  # of the writer's and the indexer's memory, from the tenth run to the last
    index_s: float

    def problems(self) -> list[str]:
        slow = {name: s for name, s in self.seconds.items() if s >= MOST_SECONDS}
        found = [f"{name} took {s:.2f} s, {MOST_SECONDS:g} s are allowed" for name, s in slow.items()]
        if self.appended_per_s < FEWEST_APPENDS:
            found.append(f"{self.appended_per_s:,.0f} values a second were appended, {FEWEST_APPENDS:,} are the least")
        if self.grown_mb > MOST_GROWTH_MB:
            found.append(f"memory grew by {self.grown_mb:.0f} MB, {MOST_GROWTH_MB:g} MB are allowed")
        return found


def measure(root: Path, runs: int, values: int) -> Scale:
    store, early = Store(root), 0.0
    steps = values // METRICS
    for number in track(range(runs), description="writing runs", disable=not sys.stderr.isatty()):
        run = store.create("bench", HERE)
        if number == 0:
            rate = _append_singly(run, values)
        else:
            for step in range(steps):
                run.log(step, {f"metric/{n}": step + number / 7 + n for n in range(METRICS)})
        run.finish("success")
        if number == min(10, runs - 1):
            early = _peak_mb()
    start = time.monotonic()
    store.index().close()
    index_s = time.monotonic() - start
    seconds = {name: min(_seconds(root, command) for _ in range(3)) for name, command in COMMANDS.items()}
    return Scale(rate, seconds, _peak_mb() - early, index_s)


def _append_singly(run: object, values: int) -> float:
    start = time.process_time()
    for step in range(values):
        run.log(step // METRICS, {f"metric/{step % METRICS}": step / 7})
    return values / (time.process_time() - start)


def _seconds(root: Path, command: tuple[str, ...]) -> float:
    """Of a command, its start included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = [sys.executable, "-m", "evaluation.runs", "--store", str(root), *command]
    subprocess.run(whole, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.tests.store_scale", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, metavar="N", help="(default: %(default)d)")
    parser.add_argument("--values", type=int, default=100_000, metavar="N", help="in each run (default: %(default)d)")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where there is room (default: the temporary folder)"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder, "runs"), options.runs, options.values)
    print(f"{found.appended_per_s:,.0f} values/s appended one by one; indexed in {found.index_s:.1f} s; ", end="")
    print("; ".join(f"{name} {s:.2f} s" for name, s in found.seconds.items()), end="")
    print(f"; memory grew by {found.grown_mb:.0f} MB")
    problems = found.problems()
    print("".join(f"  {problem}\n" for problem in problems), end="")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
