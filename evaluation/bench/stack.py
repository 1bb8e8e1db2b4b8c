"""One run of `stack`: the forward of the fused model against the vanilla one's, on the current GPU."""

import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Literal

import torch
from rich.progress import Progress

from evaluation.bench.contenders import EAGER, FUSED, Call, make_ready, unmeasured
from evaluation.bench.floor import floor_of
from evaluation.bench.machine import ask_nvidia_smi, describe_machine
from evaluation.bench.observe import counted, gpu_kernels, host_us, peak_bytes
from evaluation.bench.provenance import provenance
from evaluation.bench.stack_case import StackSetup, matmul_precision
from evaluation.bench.stack_record import (
    CountedDecision,
    FusedCall,
    StackCase,
    StackContender,
    StackMachine,
    StackRecord,
    StackResult,
    StackTiming,
)
from evaluation.bench.timing import time_in_turns
from evaluation.bench.trees import LoadedTree

DEVICE = "cuda"


@dataclass(frozen=True)
class StackPlan:
    """What to time, and how: so many rounds of rep_ms milliseconds for each contender. A case that fails ends `stack`,
    but not `sizes`.
    """

    benchmark: Literal["stack", "sizes"]
    before: Path
    after: Path
    cases: tuple[StackCase, ...]
    contenders: tuple[StackContender, ...]
    rounds: int
    rep_ms: int


def time_stack(plan: StackPlan, budget_s: float, command: str) -> Iterator[StackRecord]:
    """Yield the record as it stands after each case; none but the first begins after budget_s seconds.

    Raises RuntimeError where a contender's outputs are wrong, in `stack`.
    """
    begun = monotonic()
    run = provenance(plan.before, plan.after, command)
    torch.seed()
    silence_autotuning()
    before = LoadedTree.load(plan.before)
    after = LoadedTree.load(plan.after)  # last: it imports its kernels when they are first called
    machine = describe_stack_machine()
    results: list[StackResult] = []
    with Progress() as progress:
        task = progress.add_task("", total=len(plan.cases))
        for case in plan.cases:
            if results and monotonic() - begun > budget_s:
                return

            def say(what: str, case: StackCase = case) -> None:
                progress.update(task, description=f"{case}: {what}")

            try:
                results.append(time_case(case, before, after, machine, plan, say))
            except RuntimeError as error:
                if plan.benchmark == "stack":
                    raise
                results.append(failed(case, plan, error))
            progress.advance(task)
            yield StackRecord(
                benchmark=plan.benchmark,
                **run,
                machine=machine,
                results=list(results),
                not_begun=list(plan.cases[len(results) :]),
            )


@torch.no_grad()
def time_case(
    case: StackCase,
    before: LoadedTree,
    after: LoadedTree,
    machine: StackMachine,
    plan: StackPlan,
    say: Callable[[str], None],
) -> StackResult:
    """Check and time the contenders in turns, then observe the fused model."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()  # the last case's
    with matmul_precision(case.dtype):
        say("drawing weights, computing the oracle")
        setup = StackSetup.draw(case, before.mmdit, after.mmdit, DEVICE)
        ready = make_ready(setup, before, plan.contenders, case.dtype, say)
        say("timing")
        times = time_in_turns(ready.calls, plan.rounds, plan.rep_ms, flush=False)
        eager, fused = ready.as_is.get(EAGER), ready.as_is.get(FUSED)
        return StackResult(
            case=case,
            timings=[
                StackTiming(
                    contender=name,
                    rounds_us=times[name].rounds_us,
                    samples=times[name].samples,
                    error=ready.errors[name],
                )
                for name in ready.calls
            ],
            unmeasured=ready.unmeasured,
            floor=floor_of(case, machine),
            eager_peak_bytes=peak_bytes(eager) if eager else None,
            fused=observe_fused(case, fused, after) if fused else None,
        )


def failed(case: StackCase, plan: StackPlan, error: RuntimeError) -> StackResult:
    """The result of a case of which nothing came."""
    missing = [unmeasured(name, error) for name in plan.contenders]
    return StackResult(case=case, timings=[], unmeasured=missing, floor=None, eager_peak_bytes=None, fused=None)


def observe_fused(case: StackCase, call: Call, after: LoadedTree) -> FusedCall:
    """What one call of the fused model does; the profiler comes last, as it may slow the host down."""
    explanation = after.mmdit.explain(call)
    decisions = explanation.decisions
    return FusedCall(
        path=explanation.path,
        decisions=[
            CountedDecision(**decision._asdict(), count=decisions.count(decision))
            for decision in dict.fromkeys(decisions)
        ],
        launches=counted(explanation.launches),
        peak_bytes=peak_bytes(call),
        host_us=host_us(call) if case.batch == 1 else None,
        kernels=gpu_kernels(call),
    )


def describe_stack_machine() -> StackMachine:
    return StackMachine(
        **describe_machine().model_dump(),
        sms=torch.cuda.get_device_properties(DEVICE).multi_processor_count,
        sm_clock_mhz=int(ask_nvidia_smi("clocks.max.sm")),
    )


def silence_autotuning() -> None:
    """Keep max-autotune from printing a table for each matrix product, and each configuration that does not fit."""
    from torch._inductor import config, select_algorithm  # here, as it is slow to import

    select_algorithm.PRINT_AUTOTUNE = False
    config.max_autotune_report_choices_stats = False
    logging.getLogger(select_algorithm.__name__).setLevel(logging.CRITICAL)
