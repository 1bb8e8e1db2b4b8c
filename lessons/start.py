"""Make a starting repository_after: the vanilla tree with a seam where each lesson's kernels go."""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lessons.cuts import CUTS
from lessons.lesson import FOLDER, ROOT, Cell, Lesson, find_lessons, learners_solutions, lesson_of
from lessons.lift import lift

BEFORE = ROOT / "repository_before"
AFTER = ROOT / "repository_after"
TEMPLATE = FOLDER / "starting_tree"
RUNTIME = ("__init__.py", "dispatch.py", "architecture.py")  # the decision, and `explain`, as they are in after
# What each lesson's file of the seams, of the lesson's name, must hold; mmdit/seams/__init__.py says who calls it.
SEAMS: dict[str, tuple[str, ...]] = {
    "03_rmsnorm": ("rmsnorm",),
    "04_adaln": ("layernorm_adaln", "rmsnorm_adaln"),
    "05_backward": ("trainable_layernorm_adaln",),
    "06_online_softmax": ("attention",),
    "07_joint_attention": ("joint_attention",),
    "08_fused_branch": ("finish_branch",),
}
EPILOG = """examples:
  python -m lessons.start ~/after                      every seam empty: PyTorch's arithmetic throughout
  python -m lessons.start ~/after --fill ~/course/lessons/0[3-8]*/*.py
                                                       seams filled from lessons that you worked on
  python -m lessons.start ~/after --solved             seams filled from the instructor's lessons
then, for a verdict:
  python evaluation/evaluate.py --after ~/after
"""
EMPTY = '''"""{title}

It ends with {names}: put that here, with the kernels it launches.
"""
'''


def start(folder: Path) -> None:
    """Write a tree whose seams are empty. Raises FileExistsError where the folder has something in it."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"DEST: expected a new or empty folder, got {folder} with something in it")
    package = folder / "mmdit"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(BEFORE / "mmdit", package, ignore=ignored)
    shutil.copytree(TEMPLATE / "seams", package / "seams", ignore=ignored)
    (package / "runtime").mkdir()
    for name in RUNTIME:
        shutil.copy(AFTER / "mmdit/runtime" / name, package / "runtime" / name)
    for cut in CUTS:
        path = package / cut.file
        text = path.read_text()
        if text.count(cut.old) != 1:
            raise ValueError(f"mmdit/{cut.file}: expected once, got {text.count(cut.old)} times: {cut.old!r}")
        path.write_text(text.replace(cut.old, cut.new))
    for lesson, names in SEAMS.items():
        called = " and ".join(f"`{name}`" for name in names)
        seam_file(folder, lesson).write_text(EMPTY.format(title=title_of(lesson), lesson=lesson, names=called))


def fill(folder: Path, lesson: str, cells: Sequence[Cell]) -> None:
    """Write a seam's file from its lesson's cells. Raises ValueError where they do not define what it must hold."""
    seam_file(folder, lesson).write_text(lift(cells, SEAMS[lesson], title_of(lesson)))


def seam_file(folder: Path, lesson: str) -> Path:
    return folder / f"mmdit/seams/{lesson[3:]}.py"


def title_of(lesson: str) -> str:
    return f"The kernels of lesson {lesson}."


def with_solutions(lesson: Lesson, solutions: Mapping[str, str]) -> list[Cell]:
    """The lesson's cells with a learner's solutions in them."""
    return [c._replace(source=solutions.get(c.grade_id or "", c.source)) if c.is_solution else c for c in lesson.cells]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m lessons.start", None, __doc__, EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="DEST", type=Path, help="the tree to make: a new or empty folder")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--fill", metavar="FILE", nargs="+", type=Path, default=[], help="lessons 03 to 08, worked on")
    source.add_argument("--solved", action="store_true", help="fill all seams from the instructor's lessons")
    options = parser.parse_args(arguments)
    try:
        start(options.folder)
        for path in options.fill:
            solutions = learners_solutions(path)
            lesson = lesson_of(path, solutions)
            if lesson.name not in SEAMS:
                raise ValueError(f"FILE: expected a lesson with a seam, {', '.join(SEAMS)}, got {path}")
            fill(options.folder, lesson.name, with_solutions(lesson, solutions))
        for lesson in find_lessons(list(SEAMS)) if options.solved else ():
            fill(options.folder, lesson.name, lesson.cells)
    except (FileExistsError, ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{options.folder}: python evaluation/evaluate.py --after {options.folder} gives a verdict")
    return 0


if __name__ == "__main__":
    sys.exit(main())
