"""One changed line of mathematics in repository_after is caught, by contract tests or, in kernels, by upgrade tests."""

import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from evaluation.suite.command import ROOT
from evaluation.suite.process import run_bounded
from evaluation.suite.pytest_report import read_pytest_report
from evaluation.suite.stage import child_environment

SECONDS = 120
ATTENTION, ROTARY, BLOCK, ADALN = "attention.py", "rotary.py", "block.py", "ops/norm_adaln/reference.py"
JOINT, ATTEND = "ops/joint_attention/reference.py", "ops/joint_attention/kernel.py"
STACK_ROWS, ROWS = "ops/stack_rows/kernel.py", "inference/rows.py"


class Mutant(NamedTuple):
    """`found_in` is a file whose tests of this `kind` are enough to catch it."""

    name: str
    found_in: str
    file: str
    old: str
    new: str
    kind: str = "contract"


MUTANTS = (
    Mutant("scale-for-shift", "functional", ADALN, "* (1 + scale) + shift)", "* (1 + shift) + scale)"),
    Mutant("eps-outside-the-root", "dtypes", "norm.py", "keepdim=True) + floor)", "keepdim=True)) / (1 + floor)"),
    Mutant(
        "norm-per-head",
        "mathematics",
        ATTENTION,
        "self.split_heads(self.rms_norm_q(q))",
        "F.rms_norm(self.split_heads(q), [self.dim // self.num_head])",
    ),
    Mutant(
        "value-bias-missing",
        "mathematics",
        ATTENTION,
        "self.rotary(k, start_pos), self.split_heads(v)",
        "self.rotary(k, start_pos), self.split_heads(v - self.to_qkv.bias[2 * self.dim :])",
    ),
    Mutant("softmax-scale-missing", "masks", JOINT, "attn_mask=mask | ~some)", "attn_mask=mask | ~some, scale=1.0)"),
    Mutant("empty-row-not-zero", "masks", JOINT, ".masked_fill(~some, 0.0)", ""),
    Mutant("context-columns-hidden", "masks", JOINT, "attn_mask.any(2, keepdim", "attn_mask.all(2, keepdim"),
    Mutant("context-key-normed-as-query", "mathematics", ATTENTION, "self.c_rms_norm_k(k)", "self.c_rms_norm_q(k)"),
    Mutant("linear-eps-of-one", "positions", ATTENTION, "(out[..., -1:] + eps)", "(out[..., -1:] + 1)"),
    Mutant("rotation-not-orthogonal", "mathematics", ROTARY, "even * cos - odd * sin", "even * cos + odd * sin"),
    Mutant("halves-rotated", "mathematics", ROTARY, "(-1, (-1, 2)).unbind(-1)", "(-1, (2, -1)).unbind(-2)"),
    Mutant("start-off-by-one", "positions", ROTARY, "position + start_pos", "position + start_pos + 1"),
    Mutant(
        "chunks-in-another-order",
        "positions",
        BLOCK,
        "scale_attn, shift_attn, gate_attn, scale_mlp, shift_mlp, gate_mlp = m",
        "scale_mlp, shift_mlp, gate_mlp, scale_attn, shift_attn, gate_attn = m",
    ),
    Mutant("gate-dropped", "positions", BLOCK, "x = x + m.gate_attn * h", "x = x + h"),
    Mutant("kernel-gate-dropped", "fused_tiles_tier", STACK_ROWS, "b_x += b_gate * (", "b_x += (", "upgrade"),
    Mutant("kernel-pad-in-the-sum", "fused_tiles_tier", ATTEND, "* BLOCK_K - L - C", "* BLOCK_K - L", "upgrade"),
    Mutant("another-layers-scale", "fused_rows_tier", ROWS, "[*modulations[1:], ", "[*modulations[:-1], ", "upgrade"),
)


def mutate(mutant: Mutant, folder: Path) -> Path:
    """A copy of repository_after with one place changed."""
    tree = Path(shutil.copytree(ROOT / "repository_after", folder, ignore=shutil.ignore_patterns("__pycache__")))
    file = tree / "mmdit" / mutant.file
    text = file.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.name}: {mutant.file} holds its line {text.count(mutant.old)} times"
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    return tree


def every_third_is_quick() -> list[Any]:
    marks = [() if n % 3 == 0 else pytest.mark.slow for n in range(len(MUTANTS))]
    return [pytest.param(mutant, id=mutant.name, marks=mark) for mutant, mark in zip(MUTANTS, marks, strict=True)]


@pytest.mark.parametrize("mutant", every_third_is_quick())
def test_a_test_fails_on_the_mutant(mutant: Mutant, tmp_path: Path):
    report_file = tmp_path / "pytest.json"
    done = run_bounded(
        [
            *(sys.executable, "-P", "-m", "pytest", f"tests/test_{mutant.found_in}.py"),
            *("-x", "-q", "-m", f"{mutant.kind} and not slow and not gpu", "-p", "no:cacheprovider"),
            *("--json-report", f"--json-report-file={report_file}"),
        ],
        cwd=ROOT,
        env=child_environment(tmp_path) | {"REPO_PATH": str(mutate(mutant, tmp_path / "tree")), "MMDIT_TEST_SEED": "0"},
        timeout=SECONDS,
    )
    assert done.return_code == 1, done.tail
    report = read_pytest_report(report_file)
    assert [test.outcome for test in report.tests][-1] == "failed", done.tail
    assert all(collector.outcome == "passed" for collector in report.collectors)
