"""A starting tree, empty and filled from the lessons alone: contracts are kept, and the lessons' kernels run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lessons import start
from lessons.lesson import ROOT, find_lessons
from lessons.lift import lift
from lessons.tests import filled_tree
from tests.interpreter import Interpreter

SEED = 20261121
CONTRACT_SAMPLE = ("tests/test_interface.py", "tests/test_functional.py")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree whose seams hold the lessons' code."""
    folder = tmp_path_factory.mktemp("start") / "filled"
    assert start.main([str(folder), "--solved"]) == 0
    return folder


@pytest.fixture(scope="module")
def interpreter(filled: Path) -> Iterator[Interpreter]:
    with Interpreter(filled) as worker:
        yield worker


def run_contract(tree: Path, *arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "contract", *arguments]
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables = {**inherited, "REPO_PATH": str(tree), **environment}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("mask", [None, "random"])
@pytest.mark.parametrize("name", filled_tree.INFERENCE)
def test_without_gradients_every_seam_takes_its_kernel_and_matches_the_oracle(
    interpreter: Interpreter, name: str, mask: str | None
):
    interpreter.run(filled_tree.inference_takes_only_the_lessons_kernels, name, mask, SEED)


def test_with_gradients_the_taught_backward_runs_and_matches_the_oracle(interpreter: Interpreter):
    interpreter.run(filled_tree.gradients_take_the_backward_that_was_taught_and_pytorch_beside_it, SEED)


def test_the_functional_rmsnorm_takes_its_kernel(interpreter: Interpreter):
    interpreter.run(filled_tree.rmsnorm_adaln_takes_its_kernel, SEED)


def test_a_seam_that_is_empty_or_broken_is_told_from_one_that_is_filled(filled: Path, tmp_path: Path):
    tree = tmp_path / "tree"
    shutil.copytree(filled, tree)
    (tree / "mmdit/seams/fused_branch.py").write_text("")
    broken = tree / "mmdit/seams/adaln.py"
    text = broken.read_text()
    assert text.count("if CENTER:") == 1
    broken.write_text(text.replace("if CENTER:", "if True:"))  # which LayerNorm does not notice
    with Interpreter(tree) as worker:
        with pytest.raises(AssertionError, match=r"fused_branch\.py::finish_branch"):
            worker.run(filled_tree.inference_takes_only_the_lessons_kernels, "block", None, SEED)
        with pytest.raises(AssertionError, match=r"error"):
            worker.run(filled_tree.rmsnorm_adaln_takes_its_kernel, SEED)


def test_the_filled_tree_passes_a_sample_of_the_contract_tests(filled: Path):
    run_contract(filled, *CONTRACT_SAMPLE)


@pytest.mark.slow
def test_the_filled_tree_passes_the_contract_tests(filled: Path):
    run_contract(filled, "tests")


@pytest.mark.slow
def test_the_filled_tree_passes_contract_tests_where_its_kernels_run(filled: Path):
    run_contract(filled, *CONTRACT_SAMPLE, TRITON_INTERPRET="1")


def test_seams_are_filled_from_a_learner_s_file(tmp_path: Path):
    (lesson,) = find_lessons(["03"])
    mine = tmp_path / "rmsnorm.py"
    mine.write_text(lesson.text.replace("def rmsnorm(", "MARK = 1\n\n\ndef rmsnorm(", 1))
    assert start.main([str(tmp_path / "tree"), "--fill", str(mine)]) == 0
    seams = tmp_path / "tree/mmdit/seams"
    assert "def rmsnorm(" in (seams / "rmsnorm.py").read_text()
    assert "MARK" not in (seams / "rmsnorm.py").read_text()
    assert "def " not in (seams / "adaln.py").read_text()


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "work.py").write_text("")
    with pytest.raises(SystemExit):
        start.main([str(tmp_path)])
    assert "new or empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["work.py"]


def test_what_is_not_there_or_needs_the_kit_is_not_lifted():
    cells = find_lessons(["03"])[0].cells
    with pytest.raises(ValueError, match=r"nonsense: expected it in the solution cells"):
        lift(cells, ["nonsense"], "")
    source = "from lessons.kit import DEVICE\n\ndef f(x):\n    return x.to(DEVICE)\n"
    with pytest.raises(ValueError, match=r"DEVICE of lessons\.kit"):
        lift([cells[0]._replace(kind="code", source=source)], ["f"], "")
