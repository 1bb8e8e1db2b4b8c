"""How the inputs of the fused ops lie in memory, counted on request."""

import sys
from contextlib import contextmanager
from typing import Dict, Iterator, Optional

from torch import Tensor

_counts: Optional[Dict[str, int]] = None


@contextmanager
def count_layouts() -> Iterator[Dict[str, int]]:
    """Within, count the inputs of fused ops, from 0, as "OP.contiguous", "OP.strided" (read as they lie) and
    "OP.copied" (made contiguous first, as their last stride is not 1). A call that takes PyTorch's path, or replays a
    CUDA graph, counts nothing.
    """
    global _counts
    if _counts is not None:
        raise RuntimeError("count_layouts: expected a call outside another count_layouts, got a nested one")
    _counts = counts = {}
    try:
        yield counts
    finally:
        _counts = None


def note_layout(t: Tensor) -> None:
    """Count t as an input of the op whose function called this one's caller."""
    if _counts is not None:
        layout = "copied" if t.stride(-1) != 1 else "contiguous" if t.is_contiguous() else "strided"
        name = f"{_op_of(sys._getframe(2).f_globals['__name__'])}.{layout}"
        _counts[name] = _counts.get(name, 0) + 1


def _op_of(module: str) -> str:
    """mmdit.ops.norm_adaln.op is of norm_adaln; what decides for a whole stack, of stack."""
    return module.split(".")[2] if module.startswith("mmdit.ops.") else "stack"
