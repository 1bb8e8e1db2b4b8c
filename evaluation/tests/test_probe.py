"""Every way in which `import mmdit` can fail has a name of its own, and is found quickly."""

import os
import time
from pathlib import Path

import pytest

from evaluation.suite import probe
from evaluation.suite.probe import check_import, describe_machine
from evaluation.suite.result import FailureKind, GraderError, TreeProblem
from evaluation.suite.stage import staged
from evaluation.tests.conftest import Kata

BROKEN = {
    "syntax": ("def area(:", FailureKind.SYNTAX_ERROR, "invalid syntax (mmdit/__init__.py:11)"),
    "indentation": (
        "  area = 1",
        FailureKind.SYNTAX_ERROR,
        "unindent does not match any outer indentation level (mmdit/__init__.py:11)",
    ),
    "raises": ("raise OSError('no\\nway')", FailureKind.IMPORT_ERROR, "OSError: no (mmdit/__init__.py:11)"),
    "lacks": ("import no_such_thing", FailureKind.IMPORT_ERROR, "No module named 'no_such_thing'"),
    "hangs": ("while True: pass", FailureKind.IMPORT_HANG, "did not return within 1 s"),
    "exits": ("import os; os._exit(0)", FailureKind.IMPORT_EXIT, "ended the process (exit code 0)"),
    "sys-exits": ("raise SystemExit(0)", FailureKind.IMPORT_EXIT, "ended the process (exit code 0)"),
    "claims": (
        "import os, sys; open(sys.argv[1], 'w').write('{\"nonce\": \"\"}'); os._exit(0)",
        FailureKind.IMPORT_EXIT,
        "ended the process (exit code 0)",
    ),
    "dies": ("import os; os.kill(os.getpid(), 11)", FailureKind.IMPORT_CRASHED, "signal 11 (Segmentation fault)"),
}


def test_a_hang_costs_no_more_than_the_limit(kata: Kata):
    kata.append("after/mmdit/__init__.py", "while True: pass")
    started = time.monotonic()
    problem_of(kata.after, timeout=0.5)
    assert time.monotonic() - started < 30


def problem_of(tree: Path, timeout: float = 30) -> TreeProblem:
    with pytest.raises(TreeProblem) as caught, staged(tree, "after") as stage:
        check_import(stage, timeout)
    return caught.value


@pytest.mark.parametrize(("code", "kind", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_import_is_named(kata: Kata, code: str, kind: FailureKind, message: str):
    kata.append("after/mmdit/__init__.py", code)
    problem = problem_of(kata.after, timeout=1 if kind is FailureKind.IMPORT_HANG else 30)
    assert problem.kind is kind
    assert message in problem.message


def test_a_good_import_says_nothing(kata: Kata):
    kata.append("after/mmdit/__init__.py", "print('chatter')")
    with staged(kata.after, "after") as stage:
        assert check_import(stage, 30) is None


def test_an_empty_folder_holds_no_package(tmp_path: Path):
    problem = problem_of(tmp_path)
    assert problem.kind is FailureKind.NO_PACKAGE
    assert "holds no mmdit/__init__.py" in problem.message


def test_a_tree_that_cannot_be_copied_is_named(kata: Kata):
    os.mkfifo(kata.after / "pipe")
    assert problem_of(kata.after).kind is FailureKind.UNREADABLE_TREE


def test_the_machine_is_described():
    machine = describe_machine("auto")
    assert machine.torch_version


def test_a_machine_without_torch_is_the_graders_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "describe_machine.py").write_text("import no_such_torch")
    monkeypatch.setattr(probe, "_WORKERS", tmp_path)
    with pytest.raises(GraderError, match="No module named 'no_such_torch'"):
        describe_machine("auto")


def test_insisting_on_a_gpu_that_is_not_there_is_the_graders_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "describe_machine.py").write_text("import sys; open(sys.argv[1], 'w').write('{\"gpus\": []}')")
    monkeypatch.setattr(probe, "_WORKERS", tmp_path)
    with pytest.raises(GraderError, match="no GPU"):
        describe_machine("cuda")
