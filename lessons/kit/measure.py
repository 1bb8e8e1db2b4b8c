"""Memory, launches and time of a call, and the least time that its work can take on an H200."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch.profiler import ProfilerActivity, profile
from triton.runtime.interpreter import GridExecutor
from triton.runtime.jit import JITFunction
from triton.testing import do_bench

from lessons.kit.device import DEVICE

# H200: copy bandwidth and dense bf16 products as measured on one; exponentials of 132 SMs at 1.98 GHz, 16 a clock.
BYTES_PER_S = 4.15e12
OPERATIONS_PER_S = 750e12
EXPONENTIALS_PER_S = 16 * 132 * 1.98e9


def peak_bytes(call: Callable[..., Any], *args: Any) -> int:
    """The most bytes of tensors that call(*args) held at once, beyond those there before, by torch's profiler.

    What Python's tracemalloc would say is nothing: it does not see tensors.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])]
    recorded = profile(activities=activities, profile_memory=True)
    with quiet_stderr():
        recorded.start()
    try:
        result = call(*args)  # held until the end: an output counts
    finally:
        with quiet_stderr():
            recorded.stop()
    del result
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]" and event.device_type().name == DEVICE.upper():
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Without what libraries write to file descriptor 2: the profiler reports its own start and stop."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def launches(call: Callable[..., Any], *args: Any) -> list[str]:
    """Names of the Triton kernels that call(*args) launches, in order."""
    names: list[str] = []
    executor, method = (JITFunction, "run") if DEVICE == "cuda" else (GridExecutor, "__call__")
    launch = getattr(executor, method)

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(self.fn.__name__)
        return launch(self, *args, **kwargs)

    with patch.object(executor, method, noted):
        call(*args)
    return names


def seconds(call: Callable[..., Any], *args: Any) -> float | None:
    """Median seconds of call(*args) on a GPU. On a CPU None, and a line that says so: the interpreter's time says
    nothing about a kernel's.
    """
    if DEVICE == "cpu":
        print("not measured: times on a CPU, in the interpreter, mean nothing")
        return None
    return do_bench(lambda: call(*args), return_mode="median") / 1e3


def roofline(bytes: float, operations: float, exponentials: float = 0) -> dict[str, float]:
    """Microseconds that an H200 needs at the least for each kind of work; the largest of them is the floor.

    Args:
        bytes: read from and written to memory, each once.
        operations: of matrix products in bf16, two for each multiply-add.
        exponentials: of a softmax or a SiLU.
    """
    return {
        "bytes": bytes / BYTES_PER_S * 1e6,
        "operations": operations / OPERATIONS_PER_S * 1e6,
        "exponentials": exponentials / EXPONENTIALS_PER_S * 1e6,
    }
