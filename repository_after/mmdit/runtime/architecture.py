"""The key of the tuning tables: which entry a GPU takes, and whether its tiles were measured on such a one.

The tables are fixed, never tuned at a user's call. `python -m evaluation.bench tune` times other tiles beside theirs.
"""

from functools import cache
from typing import Dict, NamedTuple, Tuple

import torch
from torch import Tensor


class Architecture(NamedTuple):
    """capability: the least compute capability that takes this entry. Not measured: the kernels were compiled for it
    with these tiles, and fit, but were never timed on it.
    """

    name: str
    capability: Tuple[int, int]
    measured: bool

    def __str__(self) -> str:
        return self.name if self.measured else f"{self.name}, not measured"


ARCHITECTURES = (
    Architecture("sm_80", (8, 0), measured=False),
    Architecture("sm_90", (9, 0), measured=True),
    Architecture("sm_100", (10, 0), measured=False),
)

_capabilities: Dict[int, Tuple[int, int]] = {}


def capability(x: Tensor) -> Tuple[int, int]:
    """The compute capability of x's device, (0, 0) on the CPU."""
    device = x.get_device()
    if device not in _capabilities:
        _capabilities[device] = torch.cuda.get_device_capability(device) if device >= 0 else (0, 0)
    return _capabilities[device]


@cache
def architecture(version: Tuple[int, int]) -> Architecture:
    """The newest entry that a GPU of this compute capability takes; the oldest for the interpreter's (0, 0)."""
    return next((entry for entry in reversed(ARCHITECTURES) if entry.capability <= version), ARCHITECTURES[0])


def table_key(x: Tensor) -> str:
    """The name of the entry for x's device."""
    return architecture(capability(x)).name
