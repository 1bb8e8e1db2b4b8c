"""What every lesson imports first: checks that explain themselves, and measurements.

Without a CUDA device this sets TRITON_INTERPRET=1, which counts only before triton is imported; so import it first.
"""

from lessons.kit.device import DEVICE  # isort: skip  # before triton

from lessons.kit.checks import Mismatch, check, expect, poisoned
from lessons.kit.compiled import Compiled, registers
from lessons.kit.measure import launches, peak_bytes, roofline, seconds
from lessons.kit.repository import repository

__all__ = [
    "DEVICE",
    "Compiled",
    "Mismatch",
    "check",
    "expect",
    "launches",
    "peak_bytes",
    "poisoned",
    "registers",
    "repository",
    "roofline",
    "seconds",
]
