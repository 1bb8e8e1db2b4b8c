"""The suite's own footing: the tree it grades, and memory that is poisoned until it is written."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.contract


def test_the_package_comes_from_the_tree_under_test(mmdit: ModuleType, tree: Path) -> None:
    assert Path(mmdit.__file__).resolve().is_relative_to(tree)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_unwritten_memory_is_nan(dtype: torch.dtype) -> None:
    like = torch.ones(3, dtype=dtype)
    unwritten = (torch.empty(3, dtype=dtype), torch.empty_like(like), like.new_empty(3), torch.zeros(0).resize_(3))
    assert all(t.isnan().all() for t in unwritten)
