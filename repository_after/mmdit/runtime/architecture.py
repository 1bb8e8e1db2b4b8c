"""The key of the tuning tables: which entry a GPU takes, and whether its tiles were measured on such a one.

The tables are fixed, never tuned at a user's call. `python -m evaluation.bench tune` times other tiles beside theirs.
"""

from contextlib import contextmanager
from functools import cache
from typing import Dict, Iterator, NamedTuple, Optional, Tuple

import torch
from torch import Tensor


class Architecture(NamedTuple):
    """capability: the least compute capability that takes this entry. Not measured: the kernels were compiled for it
    with these tiles, and fit, but were never timed on it.
    """

    name: str
    capability: Tuple[int, int]
    measured: bool
    multiprocessors: int  # of its largest GPU

    def __str__(self) -> str:
        return self.name if self.measured else f"{self.name}, not measured"


ARCHITECTURES = (
    Architecture("sm_80", (8, 0), measured=False, multiprocessors=108),
    Architecture("sm_90", (9, 0), measured=True, multiprocessors=132),
    Architecture("sm_100", (10, 0), measured=False, multiprocessors=148),
)

_capabilities: Dict[int, Tuple[int, int]] = {-1: (0, 0)}  # by device, -1: the CPU, or a meta tensor's
_planned: Optional[Architecture] = None


def capability(x: Tensor) -> Tuple[int, int]:
    """The compute capability of x's device, (0, 0) on the CPU."""
    device = x.get_device()
    if device not in _capabilities:
        _capabilities[device] = torch.cuda.get_device_capability(device)
    return _capabilities[device]


def on_gpu(x: Tensor) -> bool:
    """Whether x lies on a GPU, or is a meta tensor that stands for one that does."""
    return x.is_cuda or (x.is_meta and _planned is not None)


def multiprocessors(x: Tensor) -> int:
    if x.is_meta and _planned is not None:
        return _planned.multiprocessors
    return torch.cuda.get_device_properties(x.device).multi_processor_count


@contextmanager
def meta_stands_for(gpu: Architecture) -> Iterator[None]:
    """Meta tensors take the paths that those of such a GPU would."""
    global _planned
    _planned, _capabilities[-1] = gpu, gpu.capability
    try:
        yield
    finally:
        _planned, _capabilities[-1] = None, (0, 0)


@cache
def architecture(version: Tuple[int, int]) -> Architecture:
    """The newest entry that a GPU of this compute capability takes; the oldest for the interpreter's (0, 0)."""
    return next((entry for entry in reversed(ARCHITECTURES) if entry.capability <= version), ARCHITECTURES[0])


def table_key(x: Tensor) -> str:
    """The name of the entry for x's device."""
    return architecture(capability(x)).name
