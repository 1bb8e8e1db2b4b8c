"""GPU times: contenders in turns, round by round, with triton.testing.do_bench underneath."""

from collections.abc import Callable, Iterator
from statistics import median

import torch
from triton.testing import do_bench

COPY_BYTES = 1 << 29


def capture(call: Callable[[], object]) -> Callable[[], None]:
    """The replay of a CUDA graph of call(), which is first run three times on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def time_in_turns(calls: dict[str, Callable[[], object]], rounds: int, rep_ms: int) -> Iterator[tuple[str, float, int]]:
    """Yield (name, median in microseconds, samples) for each call in each round; every other round goes backwards."""
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            times = do_bench(calls[name], warmup=max(1, rep_ms // 4), rep=rep_ms, return_mode="all")
            yield name, median(times) * 1e3, len(times)


def copy_bandwidth() -> float:
    """Measured device-to-device copy bandwidth in GB/s, bytes read plus bytes written."""
    source = torch.randn(COPY_BYTES // 2, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / do_bench(lambda: target.copy_(source), return_mode="median") / 1e6
