"""What a call does besides taking time on the GPU: memory, kernels, the host's time."""

from collections import Counter
from collections.abc import Callable, Iterable
from statistics import median
from time import perf_counter

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from evaluation.bench.stack_record import Count
from evaluation.suite.result import short_line

HOST_ROUNDS = 25
HOST_CALLS = 8  # in a row, few enough that their launches fit the queue (1,024) and none of them waits


def peak_bytes(call: Callable[[], object]) -> int:
    """GPU memory that a call allocates at its peak; call it once before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def host_us(call: Callable[[], object]) -> float:
    """The median of the host's microseconds for a call, the GPU idle at first and never waited for."""
    times = []
    for _ in range(HOST_ROUNDS):
        torch.cuda.synchronize()
        start = perf_counter()
        for _ in range(HOST_CALLS):
            call()
        times.append((perf_counter() - start) / HOST_CALLS * 1e6)
    torch.cuda.synchronize()
    return median(times)


def gpu_kernels(call: Callable[[], object]) -> list[Count] | None:
    """The kernels and copies of a call by name; None where the profiler sees none, as without CUPTI."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    events = [event.name for event in profiler.events() if event.device_type == DeviceType.CUDA]
    return counted(short_line(name) for name in events) if events else None


def counted(names: Iterable[str]) -> list[Count]:
    """Each name once, with how often it came."""
    return [Count(name=name, count=count) for name, count in Counter(names).items()]
