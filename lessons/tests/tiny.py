"""A tiny lesson that keeps all rules, for tests to break."""

from pathlib import Path

SOLUTION = (
    '{"grade": false, "grade_id": "03-tiny-%s", "locked": false, "schema_version": 3, "solution": true, "task": false}'
)
TEST = (
    '{"grade": true, "grade_id": "03-tiny-%s-test", "locked": true, "points": 50, "schema_version": 3, '
    '"solution": false, "task": false}'
)
DIAGRAM = "# ```text\n#   x\n#   |\n#  x + n\n#   |\n# ```"
TEXT = (
    f"""# %% [markdown]
# # 03 · Tiny
#
# ## Objectives
#
# ## Foundations
#
{DIAGRAM}

# %%
from lessons.kit import check, expect, roofline

import torch

# %% [markdown]
# ## Implementation
#
# ### v1: one

# %% nbgrader={SOLUTION % "one"}
def add_one(x):
    ### BEGIN SOLUTION
    return x + 1
    ### END SOLUTION

# %% nbgrader={TEST % "one"}
check("x + 1", add_one(torch.ones(3)), torch.full((3,), 2.0), hint="one is 1")

# %% [markdown]
# ### v2: two

# %% nbgrader={SOLUTION % "two"}
def add_two(x):
    ### BEGIN SOLUTION
    return x + 2
    ### END SOLUTION

# %% nbgrader={TEST % "two"}
check("x + 2", add_two(torch.ones(3)), torch.full((3,), 3.0), hint="two is 2")
### BEGIN HIDDEN TESTS
expect(add_two(1) == 3, f"expected 3, got {{add_two(1)}}, seen by hidden tests only")
### END HIDDEN TESTS

# %% [markdown]
# ## Systems analysis
#
{DIAGRAM}

# %%
print(roofline(1, 1))

# %% [markdown]
# ## Production context
#
# `repository_after/mmdit/norm.py::RMSNorm`
{"#" + chr(10)}# ## Thinking questions
#
# One? Two? Three?
#
{"# A line." + chr(10)}"""
    + "# A line.\n" * 80
    + "# ## Summary\n"
)
WRONG = """from lessons.kit.wrong import Wrong

WRONG = tuple(
    Wrong(f"adds {n}", old="return x + 1", new=f"return x + {n}", fails="03-tiny-one-test", says="one is 1")
    for n in (0, 2, 3, 4)
)
"""


def write_tiny(folder: Path, text: str = TEXT) -> Path:
    """Make folder a course of this one lesson; its file."""
    path = folder / "03_tiny/tiny_dev.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.with_name("README.md").write_text("Tiny.\n")
    path.with_name("wrong.py").write_text(WRONG)
    return path
