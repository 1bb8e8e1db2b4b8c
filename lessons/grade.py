"""Grade a learner's file: its solutions between the instructor's other cells, hidden tests included."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lessons.lesson import Cell, Lesson, learners_solutions, lesson_of
from lessons.session import TIMEOUT_S, play

EPILOG = """Only the solution cells of FILE are taken. Its copies of the test cells are not believed, and cells that
were added to it are not run: what a solution needs belongs into its cell.

exit status: 0 all points, 1 some are missing, 2 usage
"""


class Graded(NamedTuple):
    """Points of one test cell, of how many, and what went wrong (None: nothing)."""

    grade_id: str
    points: float
    possible: float
    problem: str | None


def grade(path: Path, timeout_s: int = TIMEOUT_S) -> Iterator[Graded]:
    """Each graded cell of the file's lesson, as it is run. Raises ValueError where the file is no lesson's."""
    solutions = learners_solutions(path)
    lesson = lesson_of(path, solutions)
    yield from grade_solutions(lesson, solutions, timeout_s)


def grade_solutions(lesson: Lesson, solutions: dict[str, str], timeout_s: int = TIMEOUT_S) -> Iterator[Graded]:
    """Each graded cell of the lesson, with the source of the solution cells from `solutions`, by grade_id."""
    missing = 'raise NotImplementedError("this cell is not in the file")'
    cells = [
        cell._replace(source=solutions.get(cell.grade_id, missing)) if cell.is_solution else cell
        for cell in lesson.cells
    ]
    last = max(place for place, cell in enumerate(cells) if cell.is_test)
    yet_to_come = {cell.grade_id: cell for cell in cells if cell.is_test}
    problem = None
    for outcome in play(cells[: last + 1], timeout_s=timeout_s):
        problem = outcome.error
        if outcome.cell.is_test:
            yield graded(yet_to_come.pop(outcome.cell.grade_id), problem)
    for cell in yet_to_come.values():
        yield graded(cell, f"not reached: {problem}")


def graded(cell: Cell, problem: str | None) -> Graded:
    possible = cell.grading["points"]
    return Graded(cell.grade_id, 0 if problem else possible, possible, problem)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m lessons.grade", None, __doc__, EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE", nargs="+", type=Path, help="a lesson that was worked on, .py or .ipynb")
    parser.add_argument("--timeout", type=int, default=TIMEOUT_S, help="seconds for one cell (default %(default)s)")
    options = parser.parse_args(arguments)
    full = True
    for path in options.file:
        if not path.is_file():
            parser.error(f"FILE: expected a file, got {path}")
        print(path)
        results = []
        try:
            for result in grade(path, options.timeout):
                results.append(result)
                print(f"  {result.points:5g} of {result.possible:<5g} {result.grade_id}")
                if result.problem:
                    print("      " + result.problem.strip().replace("\n", "\n      "))
        except ValueError as error:
            parser.error(str(error))
        points, possible = (sum(getattr(result, name) for result in results) for name in ("points", "possible"))
        full &= points == possible
        print(f"  {points:5g} of {possible:<5g} in all")
    return 0 if full else 1


if __name__ == "__main__":
    sys.exit(main())
