"""Every lesson: its instructor's version passes, its blank version fails each graded cell, wrong answers are named."""

import pytest

from lessons.grade import grade_solutions
from lessons.lesson import Lesson, find_lessons
from lessons.run import run_notebook
from lessons.tests.played import blank_cells, played

LESSONS = find_lessons()
every_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
QUICK_NOTEBOOK = "03"


@every_lesson
def test_the_instructors_version_passes_from_top_to_bottom(lesson: Lesson):
    outcomes = played(lesson).instructor
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert len(outcomes) == sum(cell.kind == "code" for cell in lesson.cells)


@every_lesson
def test_a_graded_cell_fails_where_its_solution_alone_is_blank(lesson: Lesson):
    blank = played(lesson).blank
    assert blank
    assert [name for name, outcome in blank.items() if not (outcome.error and outcome.cell.grade_id == name)] == []


@every_lesson
def test_the_blank_version_gets_no_points(lesson: Lesson):
    solutions = {cell.grade_id: cell.source for cell in blank_cells(lesson) if cell.is_solution}
    results = list(grade_solutions(lesson, solutions))
    assert sum(result.possible for result in results) == 100
    assert [result.grade_id for result in results if result.points] == []


@every_lesson
def test_a_wrong_answer_fails_its_cell_by_the_name_of_its_mistake(lesson: Lesson):
    wrong = played(lesson).wrong
    assert len(wrong) == len(lesson.wrong) >= 4
    for entry in lesson.wrong:
        outcome = wrong[entry.mistake]
        assert (entry.mistake, outcome.cell.grade_id) == (entry.mistake, entry.fails)
        assert entry.says in (outcome.message or "nothing was raised"), entry.mistake


@pytest.mark.parametrize(
    "lesson",
    [
        pytest.param(lesson, id=lesson.name, marks=[] if lesson.number == QUICK_NOTEBOOK else pytest.mark.slow)
        for lesson in LESSONS
    ],
)
def test_the_notebook_runs(lesson: Lesson):
    assert run_notebook(Lesson(lesson.path)) is None
