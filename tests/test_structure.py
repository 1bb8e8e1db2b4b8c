"""SPEC K2, K5 and the house rules: what the tree's files look like, and what importing the package takes."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

MAX_LINES = 300
HIDE_TRITON = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ImportError("triton is hidden")

sys.meta_path.insert(0, Hidden())
"""
FORWARD = """
import torch, mmdit
block = mmdit.MMDiTBlock(16, 2, dim_feedforward=32, conditioning=True, use_cross_attn=True)
explanation = mmdit.explain(block, torch.ones(2, 7, 16), torch.ones(2, 16), context=torch.ones(2, 5, 16))
assert explanation.decisions, "the block made no decision"
assert (explanation.path, explanation.launches) == ("pytorch", ()), explanation
"""


def run_python(code: str, tree: Path, **environment: str) -> None:
    """Run code in a fresh interpreter that finds mmdit in tree, as a user's would; fail with what it printed."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "MMDIT_FUSED")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**inherited, "PYTHONPATH": str(tree), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def python_files(tree: Path) -> list[Path]:
    files = sorted(tree.rglob("*.py"))
    assert files
    return files


@pytest.mark.contract
def test_every_file_has_at_most_300_lines(tree: Path) -> None:
    lengths = {str(f.relative_to(tree)): len(f.read_text().splitlines()) for f in python_files(tree)}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


@pytest.mark.contract
def test_every_import_is_absolute(tree: Path) -> None:
    relative = [
        f"{file.relative_to(tree)}:{node.lineno}"
        for file in python_files(tree)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert relative == []


@pytest.mark.upgrade
def test_triton_is_imported_only_where_kernels_are_defined_or_compiled_ahead_of_time(tree: Path) -> None:
    importers = {
        file.relative_to(tree / "mmdit")
        for file in python_files(tree)
        for node in ast.parse(file.read_text()).body
        if "triton" in imported_packages(node)
    }
    assert importers
    others = [path for path in importers if not path.name.startswith("kernel") and path.parent != Path("deploy")]
    assert others == []


def imported_packages(node: ast.stmt) -> set[str]:
    """First parts of the names of what an import statement imports."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return {name.partition(".")[0] for name in names}


@pytest.mark.upgrade
def test_importing_the_package_and_asking_explain_does_not_import_triton(tree: Path) -> None:
    run_python("import sys, mmdit\nassert mmdit.explain\nassert 'triton' not in sys.modules", tree)


@pytest.mark.upgrade
def test_without_triton_the_package_works_and_explain_says_why(tree: Path) -> None:
    hidden = HIDE_TRITON + FORWARD + "assert 'triton' in explanation.decisions[0].reason, explanation"
    run_python(hidden, tree, TRITON_INTERPRET="1")


@pytest.mark.upgrade
def test_mmdit_fused_0_turns_fusion_off_and_explain_says_so(tree: Path) -> None:
    code = FORWARD + "assert 'MMDIT_FUSED' in explanation.decisions[0].reason, explanation"
    run_python(code, tree, TRITON_INTERPRET="1", MMDIT_FUSED="0")


@pytest.mark.upgrade
def test_a_cpu_tensor_takes_pytorch_and_explain_says_so(tree: Path) -> None:
    run_python(FORWARD + "assert 'CPU' in explanation.decisions[0].reason, explanation", tree)
