"""The outputs of timed calls: what was handed out afterwards is what was summed in time, and it is right."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from evaluation.judge.bounds import allowed
from evaluation.judge.case import JOINT
from evaluation.judge.compare import errors, truth_of
from evaluation.judge.draw import Drawn
from evaluation.judge.speed_cases import Plan
from evaluation.judge.speed_record import Turn
from evaluation.judge.turns import Tensors, Values
from evaluation.suite.result import FailureKind

SUM_TOLERANCE = 1e-9  # of the sum of magnitudes: fp64, in whatever order
_MAX_BYTES = 1 << 30
Problem = tuple[FailureKind, str]


def check_turn(
    turn: Turn, plan: Plan, weights: Mapping[str, Tensor], seed: int, keep: Path, device: str
) -> tuple[Problem | None, dict[str, float]]:
    """What is wrong with a turn's outputs beside their numbers, and how far from the oracle those are."""
    values = Values.draw(plan, seed, turn.part)
    names = ["x_out", "context_out"] if plan.case.kind in JOINT else ["x_out"]
    if wrong := form_problem(turn, plan, values, names, device):
        return (FailureKind.TIMED_OUTPUT_WRONG, wrong), {}
    try:
        got = _read(keep / turn.file(plan.case), names)
    except (OSError, ValueError, SafetensorError) as error:
        return (FailureKind.TIMED_OUTPUT_WRONG, f"outputs of a timed call cannot be read: {error}"), {}
    if wrong := sum_problem(turn, values, got):
        return wrong, {}
    return None, errors_of(values, weights, got)


def form_problem(turn: Turn, plan: Plan, values: Values, names: Sequence[str], device: str) -> str | None:
    """Numbers and forms of what a turn gave."""
    streams = [values.calls[0].inputs[name.replace("x_out", "x").replace("_out", "")] for name in names]
    forms = {f"torch.Tensor {t.dtype} {tuple(t.shape)} {device}" for t in streams}
    if len(turn.seconds) != plan.calls or [len(each) for each in turn.sums] != [len(names)] * plan.calls:
        return f"a turn of {plan.calls} calls gave {len(turn.seconds)} times and {len(turn.sums)} outputs"
    if set(turn.forms) != forms:
        return f"a timed call gave {', '.join(sorted(set(turn.forms) - forms)) or 'too little'}"
    if any(each is None for sums in turn.sums for each in sums):
        return "an output of a timed call holds NaN or infinity"
    return None


def sum_problem(turn: Turn, values: Values, got: Tensors) -> Problem | None:
    """Outputs that were not there yet when the turn's time ended, or that changed since."""
    for number, t in enumerate(got.values()):
        signed = t.double() * values.flips.double()
        told = turn.sums[values.checked][number]
        if t.shape[-1] != len(values.flips) or told is None:
            return FailureKind.TIMED_OUTPUT_WRONG, f"an output handed out has shape {tuple(t.shape)}"
        if not abs(float(signed.sum()) - told) <= SUM_TOLERANCE * float(signed.abs().sum()):
            why = "outputs of a timed call are not those that were there when its time ended"
            return FailureKind.SPEED_FORGED, why
    return None


def errors_of(values: Values, weights: Mapping[str, Tensor], got: Tensors) -> dict[str, float]:
    """By the names of compare.errors."""
    truth = truth_of(Drawn(values.case, (weights,), (values.looked_at(),), ()))
    kept = list(values.samples)
    return errors(truth, {f"0.{name}": t[kept] if len(t) == values.case.sizes.batch else t for name, t in got.items()})


def error_problem(found: Mapping[str, float], vanilla: Mapping[str, float] | None, rounding: str) -> str | None:
    """An output further from the oracle than it may be."""
    for name, error in found.items():
        bound = allowed(name, rounding, None if vanilla is None else vanilla.get(name))
        if not error <= bound:
            return f"{name[2:]} of a timed call: relative L2 error {error:.1e}, allowed {bound:.1e}"
    return None if found else "no output of a timed call has the right shape"


def _read(file: Path, names: Sequence[str]) -> Tensors:
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError("larger than any is")
    found = load_file(file)
    if sorted(found) != [str(n) for n in range(len(names))]:
        raise ValueError(f"expected {len(names)} tensors, got {len(found)}")
    return {name: found[str(n)] for n, name in enumerate(names)}
