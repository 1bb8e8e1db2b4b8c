"""GPU times: contenders in turns, round by round, with triton.testing.do_bench underneath."""

from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import torch
from triton.testing import do_bench

COPY_BYTES = 1 << 29
SPAN_MS = 0.5  # long enough for an event's resolution, half a microsecond, not to matter


class Rounds(NamedTuple):
    """The median of each round in microseconds, and the calls timed over all rounds."""

    rounds_us: list[float]
    samples: int


def time_in_turns(
    calls: dict[str, Callable[[], object]], rounds: int, rep_ms: int, flush: bool = True
) -> dict[str, Rounds]:
    """Time each call in each round, every other round backwards: with the L2 flushed before each call, or, without
    flush, back to back.
    """
    medians: dict[str, list[float]] = {name: [] for name in calls}
    samples = dict.fromkeys(calls, 0)
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            if flush:
                times = do_bench(calls[name], warmup=max(1, rep_ms // 4), rep=rep_ms, return_mode="all")
                count = len(times)
            else:
                times, count = back_to_back(calls[name], rep_ms)
            medians[name].append(median(times) * 1e3)
            samples[name] += count
    return {name: Rounds(medians[name], samples[name]) for name in calls}


def back_to_back(call: Callable[[], object], rep_ms: int) -> tuple[list[float], int]:
    """Milliseconds a call takes, each the mean over a batch of about SPAN_MS, and the number of calls in all."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    for count in (3, 5):  # the first warms up
        events[0].record()
        for _ in range(count):
            call()
        events[1].record()
        events[1].synchronize()
    each = events[0].elapsed_time(events[1]) / 5
    batch = max(1, round(SPAN_MS / each))
    batches = max(5, round(rep_ms / (batch * each)))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(batches + 1)]
    events[0].record()
    for event in events[1:]:
        for _ in range(batch):
            call()
        event.record()
    events[-1].synchronize()
    times = [start.elapsed_time(end) / batch for start, end in pairwise(events)]
    return times, batch * batches


def copy_bandwidth() -> float:
    """Measured device-to-device copy bandwidth in GB/s, bytes read plus bytes written."""
    source = torch.randn(COPY_BYTES // 2, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / do_bench(lambda: target.copy_(source), return_mode="median") / 1e6
