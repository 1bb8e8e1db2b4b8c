"""Grading believes solutions only where the instructor's tests pass them; building leaves nothing of a solution."""

from pathlib import Path

import pytest

from lessons import build, grade, lesson
from lessons.tests.tiny import TEXT, write_tiny

CHECK_ONE = 'check("x + 1", add_one(torch.ones(3)), torch.full((3,), 2.0), hint="one is 1")'


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A course of the tiny lesson; its file."""
    monkeypatch.setattr(lesson, "FOLDER", tmp_path / "course")
    return write_tiny(tmp_path / "course")


def graded(folder: Path, text: str, name: str = "mine.py") -> tuple[int, dict[str, tuple[float, str]]]:
    """Exit status, and points and problem of each graded cell, of a learner's file."""
    path = folder / name
    path.write_text(text)
    results = {result.grade_id: (result.points, result.problem or "") for result in grade.grade(path)}
    return grade.main([str(path)]), results


def test_right_solutions_get_all_points(course: Path, tmp_path: Path):
    status, results = graded(tmp_path, TEXT)
    assert (status, [points for points, _ in results.values()]) == (0, [50, 50])


def test_a_planted_failure_loses_its_cell_s_points_though_the_copy_of_the_test_says_nothing(
    course: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    planted = TEXT.replace("return x + 1", "return x + 9").replace(CHECK_ONE, "print('all right')")
    status, results = graded(tmp_path, planted)
    assert status == 1
    assert results["03-tiny-one-test"][0] == 0
    assert "one is 1" in results["03-tiny-one-test"][1]
    assert results["03-tiny-two-test"] == (50, "")
    assert "50 of 100" in capsys.readouterr().out


def test_hidden_tests_count(course: Path, tmp_path: Path):
    status, results = graded(tmp_path, TEXT.replace("return x + 2", "return x + 2 if type(x) is not int else 0"))
    assert status == 1
    assert "seen by hidden tests only" in results["03-tiny-two-test"][1]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("import os; os._exit(0)", "ended with status 0"),
        ("raise SystemExit(0)", "SystemExit"),
        ("global check; check = print; return x", "one is 1"),
    ],
)
def test_answers_that_evade_the_test_get_nothing(course: Path, tmp_path: Path, answer: str, says: str):
    status, results = graded(tmp_path, TEXT.replace("return x + 1", answer))
    assert status == 1
    assert results["03-tiny-one-test"][0] == 0
    assert says in results["03-tiny-one-test"][1]


def test_an_answer_that_hangs_is_stopped(course: Path, tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(TEXT.replace("return x + 1", "\n        while True: pass".lstrip()))
    first = next(grade.grade(path, timeout_s=1))
    assert first.points == 0
    assert "more than 1 s" in first.problem


def test_a_cell_that_is_not_there_is_named(course: Path, tmp_path: Path):
    start, end = TEXT.index("# %% nbgrader"), TEXT.index("# %% [markdown]\n# ### v2")
    status, results = graded(tmp_path, TEXT[:start] + TEXT[end:])
    assert status == 1
    assert results["03-tiny-one-test"][0] == 0
    assert results["03-tiny-two-test"][0] == 50


def test_a_file_of_no_lesson_is_refused(course: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "mine.py"
    path.write_text("print(1)\n")
    with pytest.raises(SystemExit) as stopped:
        grade.main([str(path)])
    assert stopped.value.code == 2
    assert "grade_id" in capsys.readouterr().err


def test_the_student_s_version_has_no_solution_no_hidden_test_and_no_point(course: Path, tmp_path: Path):
    assert build.main(["student", str(tmp_path / "student")]) == 0
    folder = tmp_path / "student/lessons/03_tiny"
    for name in ("tiny.py", "tiny.ipynb"):
        text = (folder / name).read_text()
        assert "raise NotImplementedError()" in text
        for gone in ("x + 2", "BEGIN SOLUTION", "HIDDEN", "seen by hidden tests only"):
            assert gone not in text.replace('check(\\"x + 2\\"', "").replace('check("x + 2"', "")
        results = list(grade.grade(folder / name))
        assert [result.points for result in results] == [0, 0]
    assert (tmp_path / "student/lessons/kit/repository.txt").read_text().strip() == str(lesson.ROOT)


def test_a_solved_notebook_is_graded_like_a_script(course: Path, tmp_path: Path):
    assert build.main(["notebook", str(tmp_path / "solved")]) == 0
    assert grade.main([str(tmp_path / "solved/03_tiny/tiny.ipynb")]) == 0


def test_a_learner_s_work_is_not_overwritten_unless_told(
    course: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    build.main(["student", str(tmp_path)])
    mine = tmp_path / "lessons/03_tiny/tiny.py"
    mine.write_text(mine.read_text().replace("raise NotImplementedError()", "return x + 1"))
    with pytest.raises(SystemExit):
        build.main(["student", str(tmp_path)])
    assert str(mine) in capsys.readouterr().err
    assert "return x + 1" in mine.read_text()
    assert build.main(["student", str(tmp_path), "--force"]) == 0
    assert "return x + 1" not in mine.read_text()
