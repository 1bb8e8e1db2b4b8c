"""Make notebooks of the lessons: the learner's, without solutions and hidden tests, or the instructor's."""

import argparse
import copy
import shutil
import sys
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbgrader.preprocessors import (
    CheckCellMetadata,
    ClearHiddenTests,
    ClearMarkScheme,
    ClearOutput,
    ClearSolutions,
    ComputeChecksums,
    LockCells,
)

from lessons.kit.repository import NOTE
from lessons.lesson import FOLDER, FORMAT, ROOT, Lesson, find_lessons
from lessons.run import run_notebook

EPILOG = """examples:
  python -m lessons.build student ~/course       a folder to learn in: each lesson as .py and .ipynb (edit either)
  python -m lessons.build student ~/course 03    lesson 03 alone
  python -m lessons.build notebook ~/solved      the instructor's notebooks; --execute: with their outputs
"""
PREPROCESSORS = (
    ClearOutput,
    CheckCellMetadata,
    LockCells,
    ClearSolutions,
    ClearHiddenTests,
    ClearMarkScheme,
    ComputeChecksums,
    CheckCellMetadata,
)
README = """# The course, to be worked through

In each folder under `lessons/` one lesson lies twice, as a script and as a notebook; edit either. From this folder:

    PYTHONPATH=. python lessons/03_rmsnorm/rmsnorm.py    # runs until the first cell that is not right yet
    PYTHONPATH=. jupyter lab                             # or as notebooks

From the repository that this was made from, `python -m lessons.grade FILE` gives points for one, hidden tests included.
"""


def student_notebook(lesson: Lesson) -> NotebookNode:
    """The lesson without solutions and hidden tests, by nbgrader's own preprocessors."""
    notebook, resources = copy.deepcopy(lesson.notebook), {}
    for preprocessor in PREPROCESSORS:
        notebook, resources = preprocessor().preprocess(notebook, resources)
    return notebook


def student_files(lessons: list[Lesson]) -> dict[str, str]:
    """What a learner works on, and its README's, by path below the folder: as script and as notebook."""
    files = {"README.md": README}
    for lesson in lessons:
        stem = f"lessons/{lesson.name}/{lesson.path.stem.removesuffix('_dev')}"
        notebook = student_notebook(lesson)
        files[f"{stem}.ipynb"] = nbformat.writes(notebook) + "\n"
        files[f"{stem}.py"] = jupytext.writes(notebook, fmt=FORMAT)
        files[f"lessons/{lesson.name}/README.md"] = lesson.path.with_name("README.md").read_text()
    return files


def build_student(lessons: list[Lesson], folder: Path, force: bool) -> None:
    """Write a folder to learn in. Raises FileExistsError, before writing anything, where that would replace work."""
    files = student_files(lessons)
    worked_on = [folder / name for name, text in files.items() if differs(folder / name, text)]
    if worked_on and not force:
        names = "\n  ".join(map(str, worked_on))
        raise FileExistsError(f"these are there and would be replaced (--force does it):\n  {names}")
    for name, text in files.items():
        write(folder / name, text)
    shutil.copytree(FOLDER / "kit", folder / "lessons/kit", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__*__"))
    for package in ("__init__.py", "kit/__init__.py"):
        shutil.copy(FOLDER / package, folder / "lessons" / package)
    write(folder / "lessons/kit" / NOTE, f"{ROOT}\n")


def differs(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() != text


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def build_notebooks(lessons: list[Lesson], folder: Path, execute: bool) -> None:
    """Write the instructor's notebooks. Raises RuntimeError where one that shall be executed fails."""
    for lesson in lessons:
        problem = run_notebook(lesson) if execute else None
        if problem:
            raise RuntimeError(f"{lesson.name} fails:\n{problem}")
        path = folder / lesson.name / f"{lesson.path.stem.removesuffix('_dev')}.ipynb"
        write(path, nbformat.writes(lesson.notebook) + "\n")
        print(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m lessons.build", None, __doc__, EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("student", "notebook"))
    parser.add_argument("folder", metavar="DEST", type=Path, help="folder to write into; made where it is not there")
    parser.add_argument("lesson", nargs="*", help="number or name of a lesson; none: all of them")
    parser.add_argument("--force", action="store_true", help="student: replace work that is there")
    parser.add_argument("--execute", action="store_true", help="notebook: run them, and keep their outputs")
    options = parser.parse_args(arguments)
    try:
        lessons = find_lessons(options.lesson)
        if options.kind == "student":
            build_student(lessons, options.folder, options.force)
            print(f"{len(lessons)} lessons in {options.folder}; its README.md says how to begin")
        else:
            build_notebooks(lessons, options.folder, options.execute)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
