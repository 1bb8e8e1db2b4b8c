"""Grade the gallery, and print how many of each class were told for what they are."""

import argparse
import secrets
import shutil
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

from evaluation.judge.speed_cases import Device, Plan
from evaluation.tests.conftest import FAKE, Kata
from evaluation.tests.gallery import cheats, honest, wrong, wrong_blocks
from evaluation.tests.gallery.forgeries import FORGERIES, forge
from evaluation.tests.gallery.run import Gallery
from evaluation.tests.gallery.stopwatch import PLAN, judged, stopwatch
from evaluation.tests.gallery.timed import HONEST, TimedEntry, timed_entries
from evaluation.tests.gallery.timed_steps import HONEST_STEP, STEP_CHEATS, STEP_LOOK_ALIKES, STEP_PLAN

ENTRIES = (*wrong.ENTRIES, *wrong_blocks.ENTRIES, *cheats.ENTRIES, *honest.ENTRIES)


class Row(NamedTuple):
    """One graded entry: refused or not, whether as it should be, and what was told."""

    kind: str
    name: str
    refused: bool
    right: bool
    told: str


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.tests.gallery", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", default="", help="entries whose class and name hold TEXT")
    parser.add_argument("--verbose", action="store_true", help="print what was told of each")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where timed entries run; cuda adds those that need a GPU to act",
    )
    options = parser.parse_args(argv)
    console, rows = Console(), []
    steps = {"timed step, cheat": STEP_CHEATS, "timed step, honest": STEP_LOOK_ALIKES}
    timed, steps = (_chosen(found, options.only) for found in (timed_entries(options.device), steps))
    count = sum(options.only in name for name in _names()) + len(timed) + len(steps)
    calls = _timed(timed, options.device, PLAN, HONEST), _timed(steps, options.device, STEP_PLAN, HONEST_STEP)
    for row in track(chain(_graded(options.only), *calls), "gallery", total=count, console=console):
        rows.append(row)
        if options.verbose or not row.right:
            style = "" if row.right else "[bold red]not as it should be[/] "
            console.print(f"{style}{row.kind} {row.name}: ", end="")
            console.print(row.told, markup=False, highlight=False, soft_wrap=True)
    console.print(_table(rows))
    return 0 if all(row.right for row in rows) else 1


def _names() -> list[str]:
    return [*(f"forgery {name}" for name in FORGERIES), *(f"{entry.kind} {entry.name}" for entry in ENTRIES)]


def _chosen(entries: dict[str, tuple[TimedEntry, ...]], only: str) -> list[tuple[str, TimedEntry]]:
    return [(kind, each) for kind, found in entries.items() for each in found if only in f"{kind} {each.name}"]


def _graded(only: str) -> Iterator[Row]:
    for name, (code, kind, told) in FORGERIES.items():
        if only in f"forgery {name}":
            with TemporaryDirectory(prefix="gallery-") as folder:
                kata = Kata(Path(shutil.copytree(FAKE, Path(folder) / "kata")))
                failures = forge(kata, code)
            right = [failure.kind for failure in failures] == [kind] and told in failures[0].message
            yield Row("forgery", name, bool(failures), right, failures[0].message if failures else "passed")
    chosen = [entry for entry in ENTRIES if only in f"{entry.kind} {entry.name}"]
    gallery = Gallery(chosen) if chosen else None
    for entry in chosen:
        graded = gallery.grade(entry)
        yield Row(entry.kind, entry.name, graded.caught, graded.as_it_should_be, (*graded.told, "passed")[0])


def _timed(chosen: list[tuple[str, TimedEntry]], device: Device, plan: Plan, honest: str) -> Iterator[Row]:
    """A cheat is refused for what it is, or gains nothing by it; who is honest is not refused."""
    if not chosen:
        return
    seed = secrets.randbits(62)
    with TemporaryDirectory(prefix="gallery-") as folder, stopwatch(Path(folder), seed, device, plan, honest) as watch:
        for kind, entry in chosen:
            found, failures = judged(*watch.raw(entry.code), plan)
            told = failures[0].message if failures else f"passed, {found.cases[0].outcome}"
            right = entry.told in told if entry.told else not failures
            if kind == "timed, gains nothing":
                right = right and found.cases[0].outcome != "faster"
            yield Row(kind, entry.name, bool(failures), right, told)


def _table(rows: list[Row]) -> Table:
    table = Table("class", "entries", "refused", "for the right reason")
    for kind in dict.fromkeys(row.kind for row in rows):
        these = [row for row in rows if row.kind == kind]
        right = "" if "honest" in kind else str(sum(row.right for row in these))
        table.add_row(kind, str(len(these)), str(sum(row.refused for row in these)), right)
    return table


if __name__ == "__main__":
    sys.exit(main())
