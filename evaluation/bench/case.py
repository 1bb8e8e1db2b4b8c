"""What every benchmarked op provides."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from evaluation.bench.record import Contender, Direction

Outputs = tuple[Tensor, ...]


class Case(Protocol):
    """One op on one set of fresh random inputs."""

    op: str
    directions: tuple[Direction, ...]

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def functions(self, vanilla: ModuleType, fused: ModuleType) -> dict[Contender, Callable[..., Tensor]]:
        """The contenders: vanilla PyTorch eager and compiled, and the fused op."""

    def call(self, function: Callable[..., Tensor], direction: Direction) -> Callable[[], Outputs]:
        """A call of function that gives the output, and the inputs' gradients where direction has a backward."""

    def floor_bytes(self, direction: Direction) -> int:
        """Each input read once, each output written once."""

    def error(self, outputs: Outputs) -> float:
        """The worst relative L2 error of outputs, each against fp64; NaN if any is."""


def worst_error(outputs: Outputs, expected: Outputs) -> float:
    errors = [(out.double() - e).norm() / e.norm() for out, e in zip(outputs, expected, strict=False)]
    return torch.stack(errors).max().item()


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within, torch.empty and its like are filled with NaN, so that an output left unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
