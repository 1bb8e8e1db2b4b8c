"""The numeric cases on whole trees, each in a worker of its own, and every way in which one can fail to do its work."""

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from evaluation.judge.case import Case, Sizes
from evaluation.judge.cases import QUICK
from evaluation.judge.numerics import judge_numerics
from evaluation.judge.record import Numerics
from evaluation.suite.command import ROOT
from evaluation.suite.result import Failure, FailureKind
from evaluation.suite.stage import staged

NORM = """
from torch.nn.functional import layer_norm

def layernorm_adaln(x, scale, shift, eps=1e-6):
    return layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale[:, None]) + shift[:, None]
"""
CASES = (Case("layernorm_adaln", Sizes(2, 5, 1, 2, 4)), Case("layernorm_adaln", Sizes(1, 3, 1, 2, 8)))


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A tree of one function, which needs no second to import."""
    for role in ("before", "after"):
        (tmp_path / role / "mmdit").mkdir(parents=True)
        (tmp_path / role / "mmdit" / "__init__.py").write_text(NORM)
    return tmp_path


def judge(
    folder: Path, cases: tuple[Case, ...] = CASES, timeout: float = 60, after: str = "after"
) -> tuple[Numerics, tuple[Failure, ...]]:
    with ExitStack() as stack:
        trees = [
            stack.enter_context(staged(folder / name, role)) for name, role in (("before", "before"), (after, "after"))
        ]
        return judge_numerics(*trees, cases, timeout, "cpu", Console(quiet=True))


def test_two_right_trees_pass(fake: Path):
    numerics, failures = judge(fake)
    assert failures == ()
    assert [case.status for case in (*numerics.before.cases, *numerics.after.cases)] == ["pass"] * 4


BROKEN = {
    "hangs": ("while True: pass", FailureKind.WORKER_TIMEOUT, "did not end within 25 s, first not done: layernorm"),
    "dies": ("import os; os.kill(os.getpid(), 11)", FailureKind.WORKER_CRASHED, "ended by signal 11"),
    "exits-0": ("import os; os._exit(0)", FailureKind.WORKER_NO_RESULT, "ended with exit code 0, first not done"),
    "exits-1": ("import sys; sys.exit(1)", FailureKind.WORKER_NO_RESULT, "ended with exit code 1, first not done"),
    "raises": ("1 / 0", FailureKind.NUMERICS_WRONG, "raised ZeroDivisionError: division by zero (mmdit/__init__.py:6)"),
    "wrong": ("return layer_norm(x, x.shape[-1:])", FailureKind.NUMERICS_WRONG, "relative L2 error"),
    "stale": (
        "global kept; kept = globals().get('kept', x * (1 + scale[:, None]) * shift[:, None]); return kept",
        FailureKind.NUMERICS_WRONG,
        "relative L2 error",
    ),
}


@pytest.mark.parametrize(("code", "kind", "message"), BROKEN.values(), ids=BROKEN)
def test_a_worker_that_does_not_do_its_work_is_named(fake: Path, code: str, kind: FailureKind, message: str):
    body = NORM.replace("    return", f"    if True:\n        {code}\n    return")
    (fake / "after" / "mmdit" / "__init__.py").write_text(body)
    (failure,) = judge(fake, timeout=25 if kind is FailureKind.WORKER_TIMEOUT else 60)[1]
    assert (failure.kind, failure.tree) == (kind, "after")
    assert message in failure.message


def test_a_candidate_finds_nothing_of_the_other_tree_or_of_the_oracle(fake: Path):
    told = fake / "told"
    code = f"""
import sys
from pathlib import Path
cases = Path(sys.argv[2])
names = sorted(each.name.split(".", 1)[1] for each in cases.parent.rglob("*.*"))
Path({str(told)!r}).write_text(" ".join(names))
"""
    (fake / "after" / "mmdit" / "__init__.py").write_text(NORM + code)
    assert judge(fake)[1] == ()
    assert told.read_text() == "json safetensors safetensors"


SAMPLE = tuple(case for case in QUICK if case.kind in ("cross", "stack") and case.sizes.length < 60)[::3]


def test_both_trees_of_the_kata_pass():
    numerics, failures = judge_trees("repository_after")
    assert failures == ()
    assert len(numerics.after.cases) == len(SAMPLE) >= 8


def judge_trees(after: str) -> tuple[Numerics, tuple[Failure, ...]]:
    with ExitStack() as stack:
        before = stack.enter_context(staged(ROOT / "repository_before", "before"))
        return judge_numerics(
            before, stack.enter_context(staged(ROOT / after, "after")), SAMPLE, 120, "cpu", Console(quiet=True)
        )


def test_a_tree_that_is_wrong_only_for_the_judge_is_refused(tmp_path: Path):
    """It computes what it is asked wherever the suite can see it, and a stale output elsewhere."""
    tree = shutil.copytree(ROOT / "repository_after", tmp_path / "after", ignore=shutil.ignore_patterns("__pycache__"))
    with (tree / "mmdit" / "__init__.py").open("a", encoding="utf-8") as file:
        file.write(
            "\nimport sys\nif 'run_cases' in sys.argv[0]:\n    forward, kept = MMDiT.forward, {}\n"
            "    MMDiT.forward = lambda *a, **k: kept.setdefault(tuple(a[0].layers), forward(*a, **k))\n"
        )
    (failure,) = judge_trees(str(tree))[1]
    assert failure.kind is FailureKind.NUMERICS_WRONG
