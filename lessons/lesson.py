"""A lesson as its file has it: where it lies, and its cells."""

import re
import runpy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jupytext
from nbformat import NotebookNode

if TYPE_CHECKING:
    from lessons.kit.wrong import Wrong  # lessons.kit loads torch

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
FORMAT = "py:percent"


class Cell(NamedTuple):
    """kind is "code" or "markdown"; line is that of the header in the file; grading is nbgrader's metadata."""

    kind: str
    source: str
    line: int
    grading: dict[str, Any]

    @property
    def grade_id(self) -> str | None:
        return self.grading.get("grade_id")

    @property
    def is_solution(self) -> bool:
        return bool(self.grading.get("solution"))

    @property
    def is_test(self) -> bool:
        return bool(self.grading.get("grade"))


class Lesson:
    """The lesson in `path`, a NN_name/name_dev.py, or in `text` where that differs from the file's."""

    def __init__(self, path: Path, text: str | None = None) -> None:
        self.path = path
        self.text = path.read_text() if text is None else text

    @property
    def name(self) -> str:
        return self.path.parent.name

    @property
    def number(self) -> str:
        return self.name[:2]

    @cached_property
    def notebook(self) -> NotebookNode:
        """The instructor's notebook. Its cells' ids are their places, so that it is the same each time."""
        notebook = jupytext.reads(self.text, fmt=FORMAT)
        for place, cell in enumerate(notebook.cells):
            cell.id = f"cell-{place}"
        return notebook

    @cached_property
    def cells(self) -> list[Cell]:
        lines = [n for n, line in enumerate(self.text.splitlines(), 1) if re.match(r"# %%( |$)", line)]
        return [
            Cell(cell.cell_type, cell.source, line, dict(cell.metadata.get("nbgrader", {})))
            for cell, line in zip(self.notebook.cells, lines, strict=True)
        ]

    @cached_property
    def wrong(self) -> "tuple[Wrong, ...]":
        """The gallery of wrong answers in wrong.py beside the lesson."""
        return runpy.run_path(str(self.path.with_name("wrong.py")))["WRONG"]

    def place(self, grade_id: str) -> int:
        """Where in `cells` the cell of that id is. Raises ValueError where there is none."""
        return [cell.grade_id for cell in self.cells].index(grade_id)


def find_lessons(names: list[str] | None = None) -> list[Lesson]:
    """All lessons in order, or those whose names begin with one of `names` ("03", "03_rmsnorm").

    Raises ValueError for a name that no lesson has.
    """
    lessons = [Lesson(path) for path in sorted(FOLDER.glob("[0-9][0-9]_*/*_dev.py"))]
    for name in names or ():
        if not any(lesson.name.startswith(name) for lesson in lessons):
            known = ", ".join(lesson.name for lesson in lessons)
            raise ValueError(f"lesson: expected one of {known}, got {name!r}")
    return [lesson for lesson in lessons if not names or lesson.name.startswith(tuple(names))]


def learners_solutions(path: Path) -> dict[str, str]:
    """Source of each solution cell of a .py or .ipynb file, by grade_id. Raises ValueError for what is neither."""
    if path.suffix not in (".py", ".ipynb"):
        raise ValueError(f"FILE: expected a .py or .ipynb, got {path}")
    cells = jupytext.read(path).cells
    grading = [(cell.metadata.get("nbgrader", {}), cell.source) for cell in cells]
    return {meta["grade_id"]: source for meta, source in grading if meta.get("solution")}


def lesson_of(path: Path, solutions: dict[str, str]) -> Lesson:
    """The lesson whose solution cells a file has. Raises ValueError where that is none."""
    for lesson in find_lessons():
        if any(grade_id.startswith(f"{lesson.number}-") for grade_id in solutions):
            return lesson
    raise ValueError(
        f"FILE: expected a lesson with its cells' nbgrader metadata, got {path} without any known grade_id"
    )
