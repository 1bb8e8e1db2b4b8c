"""The most that this machine does of operations and bytes, measured by the judge's own process, without a candidate."""

import os
import time

import torch

from evaluation.judge.case import Dtype
from evaluation.judge.speed_record import Rates

_GPU_SIZE, _CPU_SIZE = 8192, 256  # on a CPU within a slice of time, as other processes may be at work
_CPU_TRIALS = 100


def measure_rates(device: str, dtype: Dtype) -> Rates:
    """Of large matrix products, the best of several, and of copies; a CPU's, times its cores."""
    if device == "cuda":
        from triton.testing import do_bench

        from evaluation.bench.timing import copy_bandwidth

        square = torch.randn(_GPU_SIZE, _GPU_SIZE, device=device, dtype=getattr(torch, dtype))
        milliseconds = do_bench(lambda: square @ square, return_mode="min")
        rates = Rates(operations_per_s=2 * _GPU_SIZE**3 / (milliseconds / 1e3), bytes_per_s=copy_bandwidth() * 1e9)
        del square
        torch.cuda.empty_cache()  # the memory is the workers' from now on
        return rates
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        square = torch.randn(_CPU_SIZE, _CPU_SIZE, dtype=getattr(torch, dtype))
        seconds = []
        for _ in range(_CPU_TRIALS):
            start = time.perf_counter()
            square @ square
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return Rates(operations_per_s=(os.cpu_count() or 1) * 2 * _CPU_SIZE**3 / min(seconds), bytes_per_s=None)
