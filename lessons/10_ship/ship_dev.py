# %% [markdown]
# # 10 · Shipping it, and reading the verdict
#
# ## Objectives
#
# - put your kernels behind seams of a real package, with PyTorch to fall back on, and prove which of them ran;
# - say what a verdict rests on, and judge two runs of a test suite yourself;
# - read a report that says no, and know what to do first.

# %%
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from lessons.kit import check, expect, repository, roofline

import torch

REPOSITORY = repository()


def python(*arguments: object, **environment: str) -> str:
    """What `python ARGUMENTS` prints, run in the repository. Raises RuntimeError with what it said where it fails."""
    command = [sys.executable, *map(str, arguments)]
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=REPOSITORY, env={**inherited, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    return done.stdout


# %% [markdown]
# ## Foundations
#
# A kernel that is right on your machine is not shipped. Shipped means: in the package that people import, with the
# same names, checkpoints and errors; the same numbers by PyTorch where a kernel cannot run (no GPU, no Triton); and
# checked by someone who does not trust you. That is `evaluation/evaluate.py`:
#
# ```text
#   repository_before        your tree
#    (the reference)        (your kernels)
#          |                      |
#          +----- one suite ------+          every test is declared:
#          |                      |          contract  passes on both
#       outcomes               outcomes      upgrade   fails before,
#          |                      |                    passes after
#          +--------> compare <---+
#                        |
#   secret inputs -> raw outputs of both -> fp64 oracle -> four times as far
#                        |                       as vanilla is too far
#                        v
#     correctness   deployability   speed   integrity   ->   exit code 0 or 1
# ```
#
# An upgrade test that passes on `before` proves nothing: it would pass without your work. That is why both trees run.
#
# ## Implementation
#
# ### v1: one test, two trees
#
# The table above as a function. An outcome is "passed", "failed", "error", "skipped", or None: not run.


# %% nbgrader={"grade": false, "grade_id": "10-ship-judge", "locked": false, "schema_version": 3, "solution": true, "task": false}
def judge(expectation: str, before: str | None, after: str | None) -> str | None:
    """What is wrong with a test's two outcomes, by the grader's names, or None.

    "missing_tests" (run on one tree only), "contract_failed" (on either), "upgrade_passed_on_before",
    "upgrade_failed_on_after"; where two apply, the first of these. Not run on either is not wrong, and no pass.
    """
    ### BEGIN SOLUTION
    if (before is None) != (after is None):
        return "missing_tests"
    if before is None:
        return None
    if expectation == "contract":
        return None if before == after == "passed" else "contract_failed"
    if before == "passed":
        return "upgrade_passed_on_before"
    return None if after == "passed" else "upgrade_failed_on_after"
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "10-ship-judge-test", "locked": true, "points": 25, "schema_version": 3, "solution": false, "task": false}
def test_judge() -> None:
    for expectation, before, after, wanted, because in (
        ("contract", "passed", "passed", None, "as it should be"),
        ("contract", "passed", "failed", "contract_failed", "you broke it"),
        ("contract", "passed", "skipped", "contract_failed", "only passed is a pass"),
        ("upgrade", "failed", "passed", None, "this is what you are here for"),
        ("upgrade", "passed", "passed", "upgrade_passed_on_before", "it passes without your work"),
        ("upgrade", "failed", "error", "upgrade_failed_on_after", "only passed is a pass"),
        ("upgrade", None, None, None, "needs a GPU, say: not run, and not counted"),
        ("contract", "passed", None, "missing_tests", "it ran on one tree only"),
    ):
        got = judge(expectation, before, after)
        expect(got == wanted, f"{expectation}, {before} then {after}: expected {wanted}, got {got} ({because})")
    ### BEGIN HIDDEN TESTS
    got = judge("contract", "error", "passed")
    expect(got == "contract_failed", f"the reference itself fails: expected contract_failed, got {got}")
    ### END HIDDEN TESTS


test_judge()

# %% [markdown]
# ### v2: read a report
#
# `evaluation/reports/latest.json` has everything. For you it comes down to the failures, in the order in which mending
# makes sense: first those of `before`, which say nothing about you; then what keeps the suite from running;
# then broken contracts, wrong numbers, and last what the upgrade lacks. One line each, `KIND on TREE: MESSAGE`, and
# below it, indented by two, the first test it names: `NAME: MESSAGE`, as that test has it.

# %%
REPORT = json.loads("""{"success": false, "failures": [
  {"kind": "upgrade_failed_on_after", "tree": "after", "message": "2 failed", "nodeids": ["t.py::fused", "t.py::u"]},
  {"kind": "contract_failed", "tree": "after", "message": "1 failed", "nodeids": ["t.py::mask"]},
  {"kind": "numerics_wrong", "tree": "after", "message": "1 of 74 cases", "nodeids": ["block-bf16"]}
], "results": {"after": {"tests": [
  {"nodeid": "t.py::fused", "outcome": "failed", "message": "AssertionError: path: pytorch"},
  {"nodeid": "t.py::mask", "outcome": "failed", "message": "NaN in row 3"}
]}}}""")
LAST = ("contract_failed", "numerics_wrong", "upgrade_failed_on_after")  # in this order; all other kinds before them


# %% nbgrader={"grade": false, "grade_id": "10-ship-read", "locked": false, "schema_version": 3, "solution": true, "task": false}
def read(report: dict) -> list[str]:
    """Lines about a report's failures, those to mend first at the top; ["success"] where there are none."""

    ### BEGIN SOLUTION
    def urgency(failure: dict) -> tuple[bool, int]:
        mine = failure["tree"] == "after"
        return mine, LAST.index(failure["kind"]) if failure["kind"] in LAST else -1

    messages = {test["nodeid"]: test.get("message") for test in report["results"]["after"]["tests"]}
    lines = []
    for failure in sorted(report["failures"], key=urgency):
        lines.append(f"{failure['kind']} on {failure['tree']}: {failure['message']}")
        for name in failure["nodeids"][:1]:
            lines.append(f"  {name}: {messages.get(name) or ''}".rstrip(": "))
    return lines or ["success"]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "10-ship-read-test", "locked": true, "points": 25, "schema_version": 3, "solution": false, "task": false}
def test_read() -> None:
    lines = read(REPORT)
    print("\n".join(lines))
    order = [line.split(" on ")[0] for line in lines if not line.startswith(" ")]
    wanted = ["contract_failed", "numerics_wrong", "upgrade_failed_on_after"]
    expect(order == wanted, f"what to mend first: expected {wanted}, got {order}")
    expect("  t.py::mask: NaN in row 3" in lines, f"the first test and its message: expected NaN in row 3, got {lines}")
    expect("  block-bf16" in lines, f"a numeric case has no test of its name: expected it alone, got {lines}")
    expect(read({**REPORT, "failures": []}) == ["success"], "no failure: expected success")
    ### BEGIN HIDDEN TESTS
    reference = {"kind": "import_error", "tree": "before", "message": "no torch", "nodeids": []}
    first = read({**REPORT, "failures": [*REPORT["failures"], reference]})[0]
    expect(
        first == "import_error on before: no torch", f"not your fault, and first: expected import_error, got {first}"
    )
    ### END HIDDEN TESTS


test_read()

# %% [markdown]
# ### production: your kernels in a tree of their own
#
# `python -m lessons.start DEST` makes a `repository_after` to begin with: the vanilla tree, and in `mmdit/seams/` an
# empty file for each of lessons 03 to 08. `--fill FILE...` takes the functions out of lessons that you worked on. Each
# module asks its seam first: `if kernel := seam("rmsnorm", x, self.weight): return kernel(...)`, and goes on in
# PyTorch where there is none. `mmdit.explain(call, ...)` runs a call and tells which ops took what, and why.

# %%
PROBE = """
import json, torch, mmdit
torch.manual_seed(10)
block = mmdit.MMDiTBlock(24, 2, dim_feedforward=48, conditioning=True, use_cross_attn=True).eval()
inputs = torch.randn(2, 13, 24), torch.randn(2, 24), None, torch.randn(2, 5, 24)
with torch.no_grad():
    explained = mmdit.explain(block, *inputs)
    print(json.dumps({
        "paths": {decision.op: decision.path for decision in explained.decisions},
        "launches": list(explained.launches),
        "x_out": block(*inputs).x_out.flatten().tolist(),
    }))
"""
MY_LESSONS = sorted(REPOSITORY.glob("lessons/0[3-8]_*/*_dev.py"))  # the instructor's: put your own files here


# %% nbgrader={"grade": false, "grade_id": "10-ship-tree", "locked": false, "schema_version": 3, "solution": true, "task": false}
def ship(folder: Path, lessons: list[Path]) -> None:
    """Make a starting tree in folder, its seams filled from these lessons (none: empty)."""
    ### BEGIN SOLUTION
    python("-m", "lessons.start", folder, *(["--fill", *lessons] if lessons else []))
    ### END SOLUTION


def probe(tree: Path) -> dict:
    """What PROBE prints of a tree, with kernels on (in the interpreter, where there is no GPU)."""
    ### BEGIN SOLUTION
    return json.loads(python("-c", PROBE, PYTHONPATH=str(tree), TRITON_INTERPRET="1").splitlines()[-1])
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "10-ship-tree-test", "locked": true, "points": 50, "schema_version": 3, "solution": false, "task": false}
def test_ship(work: Path) -> None:
    empty, filled = work / "empty", work / "filled"
    ship(empty, [])
    ship(filled, MY_LESSONS)
    first, mine = probe(empty), probe(filled)
    expect(
        set(first["paths"].values()) == {"pytorch"}, f"seams without kernels: expected pytorch, got {first['paths']}"
    )
    fused = sorted(op for op, path in mine["paths"].items() if path == "fused")
    wanted = ["finish_branch", "joint_attention", "layernorm_adaln"]
    expect(set(wanted) <= set(fused), f"seams filled: expected {wanted} among the fused, got {fused}")
    expect(len(mine["launches"]) >= 7, f"kernels that really ran: expected 7 or more, got {mine['launches']}")
    hint = "same weights, same inputs: see which op differs by emptying one seam after the other"
    check("a block of your kernels", torch.tensor(mine["x_out"]), torch.tensor(first["x_out"]), hint=hint)


work = tempfile.TemporaryDirectory(prefix="lesson10-")
test_ship(Path(work.name))

# %% [markdown]
# ## Systems analysis
#
# A sample of the real suite on two trees, judged by your own `judge`; then what the seams save.

# %%
SAMPLE = (
    "tests/test_functional.py::test_eps_is_added_under_the_root",
    "tests/test_fused.py::test_two_runs_give_the_same_bits_forward_and_backward[layernorm_adaln]",
)


def outcomes(tree: Path) -> dict[str, tuple[str, str]]:
    report = Path(work.name, "pytest.json")
    options = ("-q", "-p", "no:cacheprovider", "--json-report", f"--json-report-file={report}")
    with suppress(RuntimeError):  # some test failed, as the report says
        python("-m", "pytest", *SAMPLE, *options, REPO_PATH=str(tree))
    tests = json.loads(report.read_text())["tests"]
    return {test["nodeid"]: (test["metadata"]["expectation"], test["outcome"]) for test in tests}


before, after = outcomes(REPOSITORY / "repository_before"), outcomes(Path(work.name, "filled"))
for name, (kind, outcome) in before.items():
    wrong = judge(kind, outcome, after[name][1])
    print(f"{kind:8} {outcome} -> {after[name][1]}  {wrong or 'as declared'}  {name.split('::')[1]}")

# %% [markdown]
# ```text
#   one block, both streams: what is written to memory between kernels
#
#   vanilla   norm . mul . add . qkv . norm . rope . attn . proj . norm . gate
#                ^     ^     ^     ^      ^      ^      ^      ^      ^
#   seams     norm+mul+add . qkv . norm . rope . attn . proj+norm+gate+residual
#                          ^     ^      ^      ^      ^
#   after     all of a row in one kernel (^), attention in another (^)
# ```

# %%
row = 128 * 2  # bytes of a row of x in bf16, at the target's 186 + 64 rows and batch 32
for name, passes in (("vanilla", 2 * 9), ("seams", 2 * 5), ("after", 2 * 2)):
    print(
        f"{name:8} {roofline(passes * 32 * 250 * row, 0)['bytes']:6.2f} us of memory traffic for a block, at the least"
    )

# %% [markdown]
# ## Production context
#
# The verdict itself: `python evaluation/evaluate.py --quick --after TREE`, and in plain words
# `python evaluation/evaluate.py explain evaluation/reports/latest.json`. Your filled tree keeps every contract, and its
# first upgrade tests pass. What is left to a success is named test by test, and done here:
#
# - TorchScript, ONNX, any axes: `repository_after/mmdit/norm.py::RMSNorm`.
# - torch.compile and gradcheck: `repository_after/mmdit/runtime/custom_op.py::register_op`, as in lesson 09.
# - attention's backward: `repository_after/mmdit/ops/joint_attention/op.py::joint_attention`.
# - whole layers in two kernels: `repository_after/mmdit/ops/stack_rows/op.py`; the decision between them
#   `repository_after/mmdit/runtime/dispatch.py::takes_fused`.
#
# ## Thinking questions
#
# 1. A kernel reads the test's name out of the environment and answers from a table. Which part of the verdict sees it?
# 2. Your tree is a tenth of a percent off in bf16. Is it refused? What is "four times as far" measured against?
# 3. Why is "not run" neither a pass nor a failure, and what would go wrong with either?
#
# ## Summary
#
# - A seam has a kernel where there is one and PyTorch's arithmetic where not, and can say which it took and why.
# - A verdict compares two trees: kept promises, and promises that only the new one keeps.
# - Mend in order: what keeps the suite from running, contracts, numbers, upgrades. Then make it fast.
