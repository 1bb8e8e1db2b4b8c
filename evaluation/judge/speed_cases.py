"""What is timed, on which machine, how often, and beside which baselines."""

from dataclasses import dataclass
from typing import Literal

from evaluation.bench.floor import count_bytes, count_operations
from evaluation.bench.stack_record import StackCase
from evaluation.judge.case import Case, Mode, Sizes
from evaluation.judge.speed_record import Rates, Work

Device = Literal["cpu", "cuda"]

# What before is timed as, and after: called as it is, captured in a CUDA graph, compiled.
BASELINES: dict[Device, tuple[str, ...]] = {
    "cpu": ("eager",),
    "cuda": ("eager", "graph", "compiled", "compiled_graph", "max_autotune"),
}
CONTENDERS: dict[Device, tuple[str, ...]] = {"cpu": ("eager",), "cuda": ("eager", "graph")}


@dataclass(frozen=True)
class Plan:
    """A case, the calls of a turn, the rounds of both phases, and what of BASELINES before is timed as: none, all."""

    case: Case
    calls: int
    rounds: int
    baselines: tuple[str, ...] = ()


def _stack(batch: int, dtype: Literal["float32", "bfloat16"], layers: int, mode: Mode = "inference") -> Case:
    return Case("stack", Sizes(batch, 186, 64, 8, 16, hidden=512, layers=layers), dtype, mode)


def plans(device: Device, quick: bool) -> tuple[Plan, ...]:
    """The target sizes, called without gradients, and in the mode "backward" a training step: forward and gradients.

    On a GPU a turn is long enough for the clock of the judge to tell it apart. A quick run on a CPU has no step.
    """
    if device == "cpu" and quick:
        return (Plan(_stack(1, "float32", 2), 2, 12),)
    if device == "cpu":
        return Plan(_stack(1, "float32", 12), 2, 20), Plan(_stack(1, "float32", 2, "backward"), 2, 12)
    small = Plan(_stack(1, "bfloat16", 12), 64, 20), Plan(_stack(1, "bfloat16", 12, "backward"), 32, 20)
    large = Plan(_stack(128, "bfloat16", 12), 16, 20), Plan(_stack(128, "bfloat16", 12, "backward"), 8, 20)
    return small if quick else small + large


def known_plans() -> dict[str, Plan]:
    """All there are, by the names of their cases."""
    return {plan.case.name: plan for device in BASELINES for quick in (True, False) for plan in plans(device, quick)}


def work_of(case: Case, rates: Rates) -> Work | None:
    """What a call cannot do without, on a machine of these rates; None: not known."""
    if case.kind != "stack" or case.mode == "autocast":
        return None
    sizes = case.sizes
    stack = StackCase(
        batch=sizes.batch,
        dtype=case.dtype,
        masked=case.mask != "none",
        length=sizes.length,
        context=sizes.context,
        dim=sizes.dim,
        heads=sizes.heads,
        feed_forward=sizes.feed_forward,
        layers=sizes.layers,
        backward=case.mode == "backward",
    )
    return Work(operations=count_operations(stack), moved_bytes=count_bytes(stack), rates=rates)
