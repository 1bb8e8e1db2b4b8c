"""One benchmark run of the ops, on the current GPU."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import get_args

import torch
from rich.progress import Progress
from torch import Tensor

from evaluation.bench.case import Case, poisoned_memory
from evaluation.bench.joint_attention import attention_cases
from evaluation.bench.machine import describe_machine
from evaluation.bench.norm_adaln import norm_cases
from evaluation.bench.provenance import provenance
from evaluation.bench.record import BenchRecord, Contender, Direction, Mode, Timing
from evaluation.bench.timing import time_in_turns
from evaluation.bench.trees import load_tree
from evaluation.worker.capture import capture

# a few roundings of each dtype; vanilla's own error in bf16 is 3e-3
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def time_ops(before: Path, after: Path, dtype: torch.dtype, rounds: int, rep_ms: int, command: str) -> BenchRecord:
    """Check and time every op, shape, direction and mode with every contender in turns.

    Raises RuntimeError where a contender's numbers are wrong, or the fused tree does not launch its kernels.
    """
    torch.manual_seed(torch.seed())
    run = provenance(before, after, command)
    vanilla, fused = load_tree(before), load_tree(after)
    machine = describe_machine()
    timings = []
    with Progress() as progress:
        for case in progress.track([*norm_cases(dtype), *attention_cases(dtype)], description="ops"):
            torch.compiler.reset()
            functions = case.functions(vanilla, fused)
            path = fused.explain(case.call(functions["fused"], "forward")).path
            if path != "fused":
                raise RuntimeError(f"{case.op}: expected the fused path at {case.shape}, got {path}")
            for direction, mode in product(case.directions, get_args(Mode)):
                timings += time_case(case, functions, direction, mode, rounds, rep_ms)
    return BenchRecord(**run, machine=machine, timings=timings)


def time_case(
    case: Case,
    functions: dict[Contender, Callable[..., Tensor]],
    direction: Direction,
    mode: Mode,
    rounds: int,
    rep_ms: int,
) -> list[Timing]:
    """A Timing for each contender, after its outputs have been checked on memory poisoned with NaN."""
    calls = {name: case.call(function, direction) for name, function in functions.items()}
    errors = {}
    for name, call in calls.items():
        with poisoned_memory():
            errors[name] = case.error(call())
        if not errors[name] < LIMITS[case.dtype]:
            raise RuntimeError(
                f"{case.op} {direction}, {name}: expected an error below {LIMITS[case.dtype]}, got {errors[name]}"
            )
    if mode == "graph":
        calls = {name: capture(call) for name, call in calls.items()}
    times = time_in_turns(calls, rounds, rep_ms)
    return [
        Timing(
            op=case.op,
            shape=case.shape,
            dtype=str(case.dtype).removeprefix("torch."),
            direction=direction,
            mode=mode,
            contender=name,
            rounds_us=times[name].rounds_us,
            samples=times[name].samples,
            floor_bytes=case.floor_bytes(direction),
            error=errors[name],
        )
        for name in functions
    ]
