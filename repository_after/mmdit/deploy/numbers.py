"""How far outputs are from those of the module itself."""

from typing import Any, List, Sequence

from torch import Tensor


def present(outputs: Any) -> List[Tensor]:
    """A module's outputs without those that are None, as a list."""
    return [t for t in (outputs if isinstance(outputs, (tuple, list)) else (outputs,)) if t is not None]


def worst_error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The largest relative L2 error of any output; ValueError where their number, shapes or finiteness differ."""
    if [t.shape for t in got] != [t.shape for t in want]:
        raise ValueError(f"outputs: expected shapes {[*map(_size, want)]}, got {[*map(_size, got)]}")
    errors = [((g.double() - w.double()).norm() / w.double().norm()).item() for g, w in zip(got, want, strict=True)]
    if any(error != error for error in errors):
        raise ValueError("outputs: expected finite numbers, got NaN")
    return max(errors)


def _size(t: Tensor) -> tuple:
    return tuple(t.shape)
