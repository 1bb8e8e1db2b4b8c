"""The linter: a lesson that keeps the rules passes, and each rule finds what breaks it."""

from pathlib import Path

import pytest

from lessons import check, lesson
from lessons.rules import RULES
from lessons.tests.tiny import DIAGRAM, TEXT, write_tiny

IMPORT = "from lessons.kit import check, expect, roofline\n"
VIOLATIONS = {
    "order": ("# ## Foundations\n", "# ## Background\n"),
    "summary-last": ("# ## Summary\n", "# ## Summary\n\n# %%\nprint(1)\n"),
    "versions": ("### v2: two", "### second: two"),
    "diagrams": ("#  x + n\n#   |\n# ```\n\n# %%\nfrom", f"#  {'x' * 78}\n#   |\n# ```\n\n# %%\nfrom"),
    "tested-at-once": ("x + 1\n    ### END SOLUTION\n", "x + 1\n    ### END SOLUTION\n\n# %%\nprint(1)\n"),
    "measured": ("print(roofline(1, 1))", "print(1)"),
    "taught": ("print(roofline(1, 1))", "print(roofline(1, 1), torch.autograd.Function)"),
    "imports": (IMPORT, "import numpy\n" + IMPORT),
    "no-hasattr": ("print(roofline(1, 1))", "print(roofline(1, 1), hasattr(torch, 'ones'))"),
    "grading": ('"grade_id": "03-tiny-two-test"', '"grade_id": "03-tiny-one-test"'),
    "length": ("# One? Two?", f"# {'One? ' * 30}Two?"),
    "links": ("norm.py::RMSNorm", "norm.py::RMSNormal"),
    "questions": ("# One? Two? Three?", "# One? Two."),
    "beside": ("return x + 1", "return 1 + x"),
}


def findings(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.setattr(lesson, "FOLDER", folder)
    write_tiny(folder, text)
    course = lesson.find_lessons()
    return {name for name, rule in RULES.items() for _ in rule(course[0], course)}


def test_every_rule_has_a_violation_here():
    assert list(VIOLATIONS) == list(RULES)


def test_a_lesson_that_keeps_the_rules_has_no_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert findings(tmp_path, TEXT, monkeypatch) == set()


@pytest.mark.parametrize("rule", VIOLATIONS)
def test_a_violation_is_found_by_its_rule_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str):
    old, new = VIOLATIONS[rule]
    assert TEXT.count(old) == 1
    assert findings(tmp_path, TEXT.replace(old, new), monkeypatch) == {rule}


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("diagrams", DIAGRAM + "\n\n# %%\nprint", "#\n\n# %%\nprint"),
        ("imports", IMPORT, IMPORT + "import lessons.lesson\n"),
        ("imports", IMPORT, IMPORT + "import urllib.request\n"),
        ("grading", '"points": 50', '"points": 60'),
        ("grading", '"schema_version": 3', '"schema_version": 2'),
        ("grading", "03-tiny", "04-tiny"),
        ("grading", "HIDDEN TESTS", "MORE TESTS"),
        ("grading", "### BEGIN SOLUTION", "### BEGIN"),
        ("length", "# A line.\n", ""),
        ("links", "`repository_after/mmdit/norm.py::RMSNorm`", "norm.py"),
        ("links", "mmdit/norm.py", "mmdit/norms.py"),
    ],
)
def test_other_violations_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, old: str, new: str):
    assert old in TEXT
    assert rule in findings(tmp_path, TEXT.replace(old, new), monkeypatch)


def test_the_command_names_file_line_and_rule_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    findings(tmp_path, TEXT.replace("print(roofline(1, 1))", "hasattr(roofline(1, 1), 'x')"), monkeypatch)
    assert check.main([]) == 1
    line = TEXT[: TEXT.index("print(roofline")].count("\n")
    assert f"tiny_dev.py:{line}: no-hasattr: expected no hasattr" in capsys.readouterr().out


def test_the_course_keeps_its_rules(capsys: pytest.CaptureFixture[str]):
    assert check.main([]) == 0, capsys.readouterr().out
