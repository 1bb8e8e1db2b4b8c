"""The contenders of `stack`: compiled, captured, and their outputs checked."""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch

from evaluation.bench.case import Outputs, poisoned_memory
from evaluation.bench.stack_case import StackSetup
from evaluation.bench.stack_record import Precision, StackContender, Unmeasured
from evaluation.bench.trees import LoadedTree
from evaluation.suite.result import short_line
from evaluation.worker.capture import capture

Call = Callable[[], Outputs]


class Family(NamedTuple):
    """Contenders that share a model, and its compilation: called as is, and replayed from a CUDA graph."""

    as_is: StackContender | None
    captured: StackContender


EAGER = Family("eager", "eager_graph")
COMPILED = Family("compiled", "compiled_graph")
MAX_AUTOTUNE = Family(None, "max_autotune")
FUSED = Family("fused", "fused_graph")
FAMILIES = (EAGER, COMPILED, MAX_AUTOTUNE, FUSED)
MODES = {COMPILED: "default", MAX_AUTOTUNE: "max-autotune-no-cudagraphs"}

LIMITS: dict[Precision, float] = {"bfloat16": 5e-2, "float16": 1e-2, "tf32": 1e-2, "float32": 1e-5}


class Contenders(NamedTuple):
    """Calls ready to be timed, their errors, and what is not ready and why; as_is: every family's plain call."""

    calls: dict[StackContender, Call]
    errors: dict[StackContender, float]
    unmeasured: list[Unmeasured]
    as_is: dict[Family, Call]


def make_ready(
    setup: StackSetup,
    before: LoadedTree,
    wanted: Collection[StackContender],
    dtype: Precision,
    say: Callable[[str], None],
) -> Contenders:
    """Make the contenders that are wanted, and check each against the oracle. Call it without gradients.

    What cannot be compiled, run or captured is unmeasured. Raises RuntimeError where outputs are wrong.
    """
    ready = Contenders({}, {}, [], {})
    for family in FAMILIES:
        names = [name for name in family if name in wanted]
        if not names:
            continue
        try:
            say(f"preparing {' and '.join(names)}")
            ready.as_is[family] = first_call(family, setup, before)
        except Exception as error:  # whatever a compiler raises
            ready.unmeasured.extend(unmeasured(name, error) for name in names)
            continue
        for name in names:
            try:
                call, outputs = run_once(family, name, ready.as_is[family])
            except Exception as error:
                ready.unmeasured.append(unmeasured(name, error))
                continue
            ready.calls[name], ready.errors[name] = call, checked(name, setup.error(outputs), dtype)
    return ready


def first_call(family: Family, setup: StackSetup, before: LoadedTree) -> Call:
    """The family's model on the inputs, compiled if it is to be, and called once."""
    model = setup.fused if family is FUSED else setup.vanilla
    if family in MODES:
        model = torch.compile(model, dynamic=False, mode=MODES[family])
    call = partial(setup.call, model)
    with before.importable() if family in MODES else nullcontext():
        call()
    return call


def run_once(family: Family, name: StackContender, as_is: Call) -> tuple[Call, Outputs]:
    """The contender, and its outputs where nothing that it leaves unwritten can pass for one.

    A compiled model is called in memory as it is: its buffers would not be poisoned, and it would be compiled anew.
    """
    if name == family.captured:
        replay = capture(as_is)
        for out in replay():
            out.fill_(torch.nan)
        return replay, replay()
    with nullcontext() if family in MODES else poisoned_memory():
        return as_is, as_is()


def checked(name: StackContender, error: float, dtype: Precision) -> float:
    if not error < LIMITS[dtype]:
        raise RuntimeError(f"{name}, {dtype}: expected an error below {LIMITS[dtype]}, got {error}")
    return error


def unmeasured(name: StackContender, error: Exception) -> Unmeasured:
    return Unmeasured(contender=name, reason=short_line(f"{type(error).__name__}: {error}"))
