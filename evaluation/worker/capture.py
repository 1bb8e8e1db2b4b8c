"""CUDA graphs of calls."""

from collections.abc import Callable
from typing import TypeVar

import torch

WARM_UPS = 3
T = TypeVar("T")


def capture(call: Callable[[], T]) -> Callable[[], T]:
    """A function that replays a CUDA graph of call() and returns what was captured, the same tensors each time.

    call is first run three times on a side stream. Where it cannot be captured, the current stream is what it was.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        captured = call()

    def replay() -> T:
        graph.replay()
        return captured

    return replay
