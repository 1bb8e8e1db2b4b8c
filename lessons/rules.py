"""The rules that a lesson keeps, each a function that tells, by line, where it does not."""

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from lessons.lesson import FOLDER, ROOT, Cell, Lesson

SECTIONS = (
    "Objectives",
    "Foundations",
    "Implementation",
    "Systems analysis",
    "Production context",
    "Thinking questions",
    "Summary",
)
LINES = range(150, 301)
COLUMNS = 120
DIAGRAM_COLUMNS = 78
DIAGRAM_LINES = 4
POINTS = 100
WRONG_ANSWERS = 4
MEASUREMENTS = ("peak_bytes", "launches", "registers", "roofline", "seconds")
NETWORK = {"requests", "urllib", "socket", "http", "httpx", "urllib3"}
LINK = re.compile(r"`(repository_after/[\w/]+\.py)::([\w.]+)`")

Finding = tuple[int, str]
Rule = Callable[[Lesson, Sequence[Lesson]], Iterator[Finding]]


def sections(lesson: Lesson) -> list[tuple[str, list[Cell]]]:
    """The title of each H2 heading, and the cells from it on."""
    found: list[tuple[str, list[Cell]]] = []
    for cell in lesson.cells:
        parts = re.split(r"(?m)^## (.+)$", without_fences(cell.source)) if cell.kind == "markdown" else [cell.source]
        if found and (parts[0].strip() or len(parts) == 1):
            found[-1][1].append(cell)
        found += [(title.strip(), [cell]) for title in parts[1::2]]
    return found


def text_of(lesson: Lesson, section: str) -> str:
    return "\n".join(cell.source for title, cells in sections(lesson) for cell in cells if title == section)


def without_fences(markdown: str) -> str:
    return re.sub(r"(?ms)^```.*?^```$", "", markdown)


def code_cells(lesson: Lesson) -> list[Cell]:
    return [cell for cell in lesson.cells if cell.kind == "code"]


def order(lesson: Lesson, _: Sequence[Lesson]) -> Iterator[Finding]:
    """one H1 first, then the H2 headings of every lesson, spelled and ordered alike"""
    if not lesson.cells[0].source.startswith("# "):
        yield 1, "expected the title as an H1 heading first"
    titles = tuple(title for title, _ in sections(lesson))
    if titles != SECTIONS:
        yield 1, f"expected the sections {', '.join(SECTIONS)}, got {', '.join(titles)}"


def summary_last(lesson: Lesson, _: Sequence[Lesson]) -> Iterator[Finding]:
    """nothing comes after the summary"""
    if "## Summary" not in lesson.cells[-1].source:
        yield lesson.cells[-1].line, "expected the last cell to be the one with `## Summary`"


def versions(lesson: Lesson, _: Sequence[Lesson]) -> Iterator[Finding]:
    """the implementation goes from v1 to v2, as H3 headings"""
    headings = re.findall(r"(?m)^### (.+)$", "\n".join(cell.source for cell in lesson.cells if cell.kind == "markdown"))
    for version in ("v1", "v2"):
        if not any(version in heading for heading in headings):
            yield 1, f"expected an H3 heading with {version}, got {headings}"


def diagrams(lesson: Lesson, _: Sequence[Lesson]) -> Iterator[Finding]:
    """a diagram in a text fence in Foundations and in Systems analysis, none wider than 78 columns"""
    for title, cells in sections(lesson):
        drawn = [d for cell in cells for d in re.findall(r"(?ms)^```text\n(.*?)^```$", cell.source)]
        if title in ("Foundations", "Systems analysis") and not any(d.count("\n") >= DIAGRAM_LINES for d in drawn):
            yield cells[0].line, f"{title}: expected a ```text diagram of {DIAGRAM_LINES} lines or more, got none"
        for diagram in drawn:
            widest = max(map(len, diagram.splitlines()), default=0)
            if widest > DIAGRAM_COLUMNS:
                yield cells[0].line, f"{title}: expected a diagram of {DIAGRAM_COLUMNS} columns, got one of {widest}"


def tested_at_once(lesson: Lesson, _: Sequence[Lesson]) -> Iterator[Finding]:
    """each solution is followed at once by its graded test"""
    for cell, following in zip(lesson.cells, [*lesson.cells[1:], None], strict=True):
        if cell.is_solution and (following is None or not following.is_test):
            yield cell.line, f"{cell.grade_id}: expected its test cell next"


def measured(lesson: Lesson, _: Sequence[Lesson]) -> Iterator[Finding]:
    """Systems analysis measures, by the kit"""
    code = text_of(lesson, "Systems analysis")
    if not any(re.search(rf"\b{name}\(", code) for name in MEASUREMENTS):
        yield 1, f"expected a call of one of {', '.join(MEASUREMENTS)} in Systems analysis"


def taught(lesson: Lesson, _: Sequence[Lesson]) -> Iterator[Finding]:
    """nothing is used in code before the lesson that teaches it (taught.toml)"""
    for term, number in terms().items():
        for cell in code_cells(lesson):
            if lesson.number < number and re.search(rf"(?<!\w){re.escape(term)}(?!\w)", cell.source):
                yield cell.line, f"{term} is taught in lesson {number}"


@cache
def terms() -> dict[str, str]:
    return tomllib.loads((FOLDER / "taught.toml").read_text())["terms"]


def imports(lesson: Lesson, _: Sequence[Lesson]) -> Iterator[Finding]:
    """lessons.kit is imported before torch and triton; no other lesson is, and nothing that goes to the network"""
    found = [
        (cell.line, name)
        for cell in code_cells(lesson)
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    ]
    installed = [(line, name) for line, name in found if name.split(".")[0] not in sys.stdlib_module_names]
    if not installed or installed[0][1] != "lessons.kit":
        yield installed[0][0] if installed else 1, "expected `from lessons.kit import ...` before torch and triton"
    for line, name in found:
        if name.startswith("lessons") and name != "lessons.kit":
            yield line, f"expected no import of the course beside lessons.kit, got {name}"
        if name.split(".")[0] in NETWORK:
            yield line, f"expected no network, got an import of {name}"


def no_hasattr(lesson: Lesson, _: Sequence[Lesson]) -> Iterator[Finding]:
    """no hasattr: what a thing is, is known"""
    for cell in code_cells(lesson):
        if re.search(r"\bhasattr\b", cell.source):
            yield cell.line, "expected no hasattr"


def grading(lesson: Lesson, course: Sequence[Lesson]) -> Iterator[Finding]:
    """ids begin with the lesson's number and are unique in the course; points make 100; solutions have regions"""
    ids = [cell.grade_id for other in course for cell in other.cells if cell.grade_id]
    for cell in lesson.cells:
        if not cell.grading:
            continue
        if cell.grading.get("schema_version") != 3:
            yield cell.line, f"{cell.grade_id}: expected schema_version 3"
        if not (cell.grade_id or "").startswith(f"{lesson.number}-"):
            yield cell.line, f"expected a grade_id that begins with {lesson.number}-, got {cell.grade_id}"
        if ids.count(cell.grade_id) != 1:
            yield cell.line, f"{cell.grade_id}: expected each grade_id once in the course"
        if cell.is_solution == cell.is_test:
            yield cell.line, f"{cell.grade_id}: expected either a solution or a test"
        if cell.is_solution and "### BEGIN SOLUTION" not in cell.source:
            yield cell.line, f"{cell.grade_id}: expected a region `### BEGIN SOLUTION`"
    points = sum(cell.grading.get("points", 0) for cell in lesson.cells if cell.is_test)
    if points != POINTS:
        yield 1, f"expected {POINTS} points in all, got {points}"
    if not any("### BEGIN HIDDEN TESTS" in cell.source for cell in lesson.cells if cell.is_test):
        yield 1, "expected hidden tests in some test cell"


def length(lesson: Lesson, _: Sequence[Lesson]) -> Iterator[Finding]:
    """150 to 300 lines, each of at most 120 columns but for cells' headers"""
    lines = lesson.text.splitlines()
    if len(lines) not in LINES:
        yield len(lines), f"expected {LINES.start} to {LINES.stop - 1} lines, got {len(lines)}"
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS and not line.startswith("# %%"):
            yield number, f"expected at most {COLUMNS} columns, got {len(line)}"


def links(lesson: Lesson, _: Sequence[Lesson]) -> Iterator[Finding]:
    """Production context names the code that does it for real, and all such names exist"""
    production = text_of(lesson, "Production context")
    if not LINK.search(production):
        yield 1, "expected a `repository_after/FILE.py::NAME` in Production context"
    for number, line in enumerate(lesson.text.splitlines(), 1):
        for path, name in LINK.findall(line):
            if not (ROOT / path).is_file():
                yield number, f"expected an existing file, got {path}"
            elif name not in names_in(path):
                yield number, f"{path}: expected one of its names, got {name}"


@cache
def names_in(path: str) -> set[str]:
    """Functions, classes, methods as Class.method, and constants, that a file defines."""
    names: set[str] = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def questions(lesson: Lesson, _: Sequence[Lesson]) -> Iterator[Finding]:
    """Thinking questions asks at least three"""
    asked = text_of(lesson, "Thinking questions")
    if asked.count("?") < 3:
        yield 1, f"expected at least 3 thinking questions, got {asked.count('?')}"


def beside(lesson: Lesson, _: Sequence[Lesson]) -> Iterator[Finding]:
    """a README and a gallery of at least 4 wrong answers lie beside it, each of which fits"""
    for name in ("README.md", "wrong.py"):
        if not lesson.path.with_name(name).is_file():
            yield 1, f"expected {name} beside it"
            return
    if len(lesson.wrong) < WRONG_ANSWERS:
        yield 1, f"expected {WRONG_ANSWERS} wrong answers, got {len(lesson.wrong)}"
    graded = {cell.grade_id for cell in lesson.cells if cell.is_test}
    for wrong in lesson.wrong:
        if lesson.text.count(wrong.old) != 1:
            yield 1, f"wrong.py, {wrong.mistake!r}: expected `old` once, got it {lesson.text.count(wrong.old)} times"
        if wrong.fails not in graded:
            yield 1, f"wrong.py, {wrong.mistake!r}: expected a graded cell, got {wrong.fails}"


RULES: dict[str, Rule] = {
    rule.__name__.replace("_", "-"): rule
    for rule in (
        order,
        summary_last,
        versions,
        diagrams,
        tested_at_once,
        measured,
        taught,
        imports,
        no_hasattr,
        grading,
        length,
        links,
        questions,
        beside,
    )
}
