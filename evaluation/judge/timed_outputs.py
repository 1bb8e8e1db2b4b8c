"""The outputs of timed calls: what was handed out afterwards is what was summed in time, and it is right.

Of a training step the gradients are outputs as well: of each input by its name, of all weights one after the other.
"""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from evaluation.judge.bounds import allowed
from evaluation.judge.case import JOINT, Case
from evaluation.judge.compare import errors, truth_of
from evaluation.judge.draw import rng_of
from evaluation.judge.layout import layout
from evaluation.judge.speed_cases import Plan
from evaluation.judge.speed_record import Turn
from evaluation.judge.turns import Tensors, Values
from evaluation.suite.result import FailureKind

SUM_TOLERANCE = 1e-9  # of the sum of magnitudes: fp64, in whatever order
WEIGHTS = "d.w"
_MAX_BYTES = 1 << 30
_CHUNK = 8  # samples that the oracle differentiates at once
Problem = tuple[FailureKind, str]


def check_turn(
    turn: Turn, plan: Plan, weights: Mapping[str, Tensor], seed: int, keep: Path, device: str
) -> tuple[Problem | None, dict[str, float]]:
    """What is wrong with a turn's outputs beside their numbers, and how far from the oracle those are."""
    values = Values.draw(plan, seed, turn.part)
    shapes = shapes_of(values)
    if wrong := form_problem(turn, plan, shapes, device):
        return (FailureKind.TIMED_OUTPUT_WRONG, wrong), {}
    given = [name for name in shapes if name != WEIGHTS or with_weights(plan, seed, turn.round)]
    try:
        got = _read(keep / turn.file(plan.case), given)
    except (OSError, ValueError, SafetensorError) as error:
        return (FailureKind.TIMED_OUTPUT_WRONG, f"outputs of a timed call cannot be read: {error}"), {}
    if wrong := sum_problem(turn, values, got, shapes):
        return wrong, {}
    return None, errors_of(values, weights, got)


def with_weights(plan: Plan, seed: int, number: int) -> bool:
    """Whether the gradients of a step's weights are handed out in a round, and compared: in each where the batch is
    small, else, as they take the oracle the whole batch, in one that only the seed tells.
    """
    if plan.case.sizes.batch <= _CHUNK:
        return True
    rng = rng_of(seed, plan.case, ":weights")
    return number == int(torch.randint(plan.rounds, (), generator=rng))


def shapes_of(values: Values) -> dict[str, tuple[int, ...]]:
    """Of all that a call gives, in the order in which it is told."""
    case, inputs = values.case, values.calls[0].inputs
    streams = {"x_out": "x"} | ({"context_out": "context"} if case.kind in JOINT else {})
    found = {name: tuple(inputs[stream].shape) for name, stream in streams.items()}
    if values.cotangents:
        found |= {f"d.{name}": tuple(inputs[name].shape) for name in sorted(inputs)}
        found |= {WEIGHTS: (sum(_sizes(case).values()),)} if layout(case) else {}
    return found


def form_problem(turn: Turn, plan: Plan, shapes: Mapping[str, tuple[int, ...]], device: str) -> str | None:
    """Numbers and forms of what a turn gave."""
    forms = {f"torch.Tensor torch.{plan.case.dtype} {shape} {device}" for shape in shapes.values()}
    if len(turn.seconds) != plan.calls or [len(each) for each in turn.sums] != [len(shapes)] * plan.calls:
        return f"a turn of {plan.calls} calls gave {len(turn.seconds)} times and {len(turn.sums)} outputs"
    if set(turn.forms) != forms:
        return f"a timed call gave {', '.join(sorted(set(turn.forms) - forms)) or 'too little'}"
    if any(each is None for sums in turn.sums for each in sums):
        return "an output of a timed call holds NaN or infinity"
    return None


def sum_problem(turn: Turn, values: Values, got: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> Problem | None:
    """Outputs that were not there yet when the turn's time ended, or that changed since."""
    for told, (name, shape) in zip(turn.sums[values.checked], shapes.items(), strict=True):
        if name not in got:
            continue
        t, flips = got[name], values.flips.double()
        if tuple(t.shape) != shape or told is None:
            return FailureKind.TIMED_OUTPUT_WRONG, f"an output handed out has shape {tuple(t.shape)}"
        signed = t.double() * flips.repeat(-(-shape[-1] // len(flips)))[: shape[-1]]
        if not abs(float(signed.sum()) - told) <= SUM_TOLERANCE * float(signed.abs().sum()):
            why = "outputs of a timed call are not those that were there when its time ended"
            return FailureKind.SPEED_FORGED, why
    return None


def errors_of(values: Values, weights: Mapping[str, Tensor], got: Tensors) -> dict[str, float]:
    """By the names of compare.errors. Weights' gradients are of the whole batch, all else of the samples."""
    kept, batch = list(values.samples), values.case.sizes.batch
    truth = truth_of(values.looked_at(weights, kept))
    found = {f"0.{name}": t[kept] if len(t) == batch else t for name, t in got.items() if name != WEIGHTS}
    if batch > len(kept):
        truth = {name: t for name, t in truth.items() if ".d.w." not in name}
    if WEIGHTS in got:
        sizes = _sizes(values.case)
        parts = zip(sizes, got[WEIGHTS].split(list(sizes.values())), strict=True)
        found |= {f"0.d.w.{name}": t.reshape(layout(values.case)[name]) for name, t in parts}
        truth |= _weights_truth(values, weights) if batch > len(kept) else {}
    return errors(truth, found)


def _sizes(case: Case) -> dict[str, int]:
    """Elements of each weight, in the order of their names."""
    return {name: prod(shape) for name, shape in sorted(layout(case).items())}


def _weights_truth(values: Values, weights: Mapping[str, Tensor]) -> Tensors:
    """Gradients of the weights by the oracle, summed over the batch some samples at a time."""
    total: Tensors = {}
    for samples in torch.arange(values.case.sizes.batch).split(_CHUNK):
        for name, t in truth_of(values.looked_at(weights, samples.tolist())).items():
            if ".d.w." in name:
                total[name] = total[name] + t if name in total else t
    return total


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
