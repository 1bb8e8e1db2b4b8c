"""One run of a lesson that answers all tests of it: the instructor's cells in order, and beside them, in forks, each
graded cell with its own solution blank, and each wrong answer.
"""

from collections import defaultdict
from functools import cache
from typing import NamedTuple

from lessons.build import student_notebook
from lessons.kit.wrong import Wrong
from lessons.lesson import Cell, Lesson
from lessons.session import Branch, Outcome, play

TIMEOUT_S = 600  # for a cell; lesson 10's run a suite, and a busy machine may be ten times as slow


class Played(NamedTuple):
    """Outcomes of the instructor's cells; of each graded cell with its solution blank, by grade_id; of each wrong
    answer's graded cell, by its mistake.
    """

    instructor: list[Outcome]
    blank: dict[str, Outcome]
    wrong: dict[str, Outcome]


def solution_place(lesson: Lesson, grade_id: str) -> int:
    """Where the solution is that a graded cell tests: the last before it."""
    return max(place for place in range(lesson.place(grade_id)) if lesson.cells[place].is_solution)


def blank_cells(lesson: Lesson) -> list[Cell]:
    sources = [cell.source for cell in student_notebook(lesson).cells]
    return [cell._replace(source=source) for cell, source in zip(lesson.cells, sources, strict=True)]


def blank_branch(lesson: Lesson, grade_id: str) -> tuple[int, Branch]:
    start, end = solution_place(lesson, grade_id), lesson.place(grade_id)
    return start, Branch(f"blank {grade_id}", [blank_cells(lesson)[start], *lesson.cells[start + 1 : end + 1]])


def wrong_branch(lesson: Lesson, wrong: Wrong) -> tuple[int, Branch]:
    """Raises ValueError where the entry does not fit the lesson."""
    found = lesson.text.count(wrong.old)
    if found != 1:
        raise ValueError(f"{lesson.name}, {wrong.mistake!r}: expected `old` once in the lesson, got it {found} times")
    changed = Lesson(lesson.path, lesson.text.replace(wrong.old, wrong.new))
    places = [place for place, pair in enumerate(zip(lesson.cells, changed.cells, strict=True)) if differ(*pair)]
    end = lesson.place(wrong.fails)
    if len(places) != 1 or not lesson.cells[places[0]].is_solution or places[0] > end:
        raise ValueError(f"{lesson.name}, {wrong.mistake!r}: expected one solution cell to change before {wrong.fails}")
    return places[0], Branch(f"wrong {wrong.mistake}", changed.cells[places[0] : end + 1])


def differ(mine: Cell, other: Cell) -> bool:
    return mine.source != other.source


@cache
def played(lesson: Lesson) -> Played:
    branches = defaultdict(list)
    graded = [cell.grade_id for cell in lesson.cells if cell.is_test]
    for place, branch in [blank_branch(lesson, name) for name in graded] + [
        wrong_branch(lesson, wrong) for wrong in lesson.wrong
    ]:
        branches[place].append(branch)
    outcomes = list(play(lesson.cells, branches, TIMEOUT_S))
    last = {outcome.branch: outcome for outcome in outcomes}
    return Played(
        [outcome for outcome in outcomes if outcome.branch is None],
        {name: last[f"blank {name}"] for name in graded},
        {wrong.mistake: last[f"wrong {wrong.mistake}"] for wrong in lesson.wrong},
    )
