"""A worker's raw tensors against the oracle: errors by name, and what is wrong beside numbers."""

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from evaluation.judge.bounds import NEGLIGIBLE, allowed, kind_of
from evaluation.judge.case import FUNCTIONS
from evaluation.judge.draw import Call, Drawn
from evaluation.judge.oracle import oracle
from evaluation.judge.plan import CaseFacts
from evaluation.judge.record import CaseNumbers, Measure

Tensors = Mapping[str, Tensor]
_SHOWN = 6
_STREAMS = {"x_out": "x", "context_out": "context"}


def truth_of(drawn: Drawn) -> dict[str, Tensor]:
    """Every output and gradient of every call in fp64, by the worker's names: "0.x_out", "0.d.x", "0.d.w.NAME"."""
    found: dict[str, Tensor] = {}
    for number, call in enumerate(drawn.calls):
        found.update({f"{number}.{name}": t for name, t in _call_truth(drawn, number, call).items()})
    return found


def _call_truth(drawn: Drawn, number: int, call: Call) -> dict[str, Tensor]:
    recorded = bool(drawn.cotangents)
    inputs = {name: t.double().requires_grad_(recorded) for name, t in call.inputs.items()}
    weights = {name: t.double().requires_grad_(recorded) for name, t in drawn.weights[call.weights].items()}
    outputs = oracle(drawn.case, weights, inputs, call.attn_mask, call.start_pos)
    found = {name: t.detach() for name, t in outputs.items()}
    if recorded:
        asked = inputs | {f"w.{name}": t for name, t in weights.items()}
        cotangents = [drawn.cotangents[number][name].double() for name in outputs]
        gradients = torch.autograd.grad(
            list(outputs.values()), list(asked.values()), cotangents, allow_unused=True, materialize_grads=True
        )
        found |= {f"d.{name}": gradient for name, gradient in zip(asked, gradients, strict=True)}
    return found


def rounding_of(drawn: Drawn) -> str:
    return "bfloat16" if drawn.case.mode == "autocast" else drawn.case.dtype


def errors(truth: Tensors, got: Tensors) -> dict[str, float]:
    """Relative L2 error of every output, of its worst row, and of every gradient, where the shape is right."""
    squares: dict[str, list[Tensor]] = {}
    for name, want in truth.items():
        if ".d." in name:
            squares.setdefault(name.split(".")[0], []).append(want.square().flatten())
    typical = {number: torch.cat(parts).mean().sqrt().item() for number, parts in squares.items()}
    found = {}
    for name, want in truth.items():
        if name not in got or got[name].shape != want.shape:
            continue
        difference = got[name].double() - want
        if ".d." in name:
            floor = NEGLIGIBLE * typical[name.split(".")[0]] * want.numel() ** 0.5
            found[name] = _ratio(difference.norm(), want.norm().clamp(min=floor))
        else:
            found[name] = _ratio(difference.norm(), want.norm())
            rms = want.norm() / want[..., 0].numel() ** 0.5
            rows = difference.norm(dim=-1) / want.norm(dim=-1).clamp(min=NEGLIGIBLE * rms.item())
            found[f"{name} row"] = _ratio(rows.nan_to_num(nan=torch.inf).max(), torch.ones(()))
    return found


def _ratio(error: Tensor, size: Tensor) -> float:
    return 0.0 if error.item() == 0 else (error / size).item() if error.isfinite() else float("nan")


def judge_case(
    drawn: Drawn,
    truth: Tensors,
    told: CaseFacts | None,
    got: Tensors,
    vanilla: Mapping[str, float] | None,
    device: str = "cpu",
) -> CaseNumbers:
    """Whether a tree's tensors are what they must be; `vanilla`: the errors of before, None for before itself."""
    if told is None or told.error is not None:
        why = "the worker did not come to this case" if told is None else f"raised {told.error}"
        return CaseNumbers(name=drawn.case.name, status="fail", worst=None, problems=(why,))
    found = errors(truth, got)
    measures = []
    for name, error in found.items():
        bound = allowed(name, rounding_of(drawn), None if vanilla is None else vanilla.get(name))
        measures.append(Measure(name=name, error=error if error == error and error < 1e300 else None, bound=bound))
    problems = [*_form(drawn, truth, told, got, device), *_unchanged(drawn, told)]
    beyond = [m for m in measures if m.error is None or m.error > m.bound]
    problems += [
        _tell(m, got[m.name.removesuffix(" row")]) for m in beyond if kind_of(m.name) != "row" or _alone(m, beyond)
    ]
    problems += _laws(drawn, got, vanilla)
    worst = max(measures, key=lambda m: float("inf") if m.error is None else m.error / m.bound, default=None)
    shown = problems if len(problems) <= _SHOWN else [*problems[:_SHOWN], f"and {len(problems) - _SHOWN} more"]
    return CaseNumbers(name=drawn.case.name, status="fail" if problems else "pass", worst=worst, problems=tuple(shown))


def _alone(row: Measure, beyond: list[Measure]) -> bool:
    return row.name.removesuffix(" row") not in {m.name for m in beyond}


def _tell(measure: Measure, got: Tensor) -> str:
    """What is wrong with a tensor, by the plainest of the reasons."""
    if not got.isfinite().all():
        what = "NaN" if got.isnan().any() else "infinity"
        return f"{measure.name} holds {what}"
    if not got.any():
        return f"{measure.name} is all zeros"
    if got.numel() > 1 and bool((got == got.flatten()[0]).all()):
        return f"{measure.name} is one constant"
    told = "not a number" if measure.error is None else f"{measure.error:.1e}"
    return f"{measure.name}: relative L2 error {told}, allowed {measure.bound:.1e}"


def _form(drawn: Drawn, truth: Tensors, told: CaseFacts, got: Tensors, device: str) -> list[str]:
    """Type, dtype, device, shape and contiguity of what came back."""
    wrong = [f"{name} did not come back" for name in truth if name not in got]
    wrong += [f"{name} came back, which nobody asked for" for name in got if name not in truth]
    dtype = getattr(torch, drawn.case.dtype)
    for name, want in truth.items():
        if name not in got:
            continue
        t = got[name]
        dtypes = {dtype, torch.bfloat16} if drawn.case.mode == "autocast" and ".d." not in name else {dtype}
        if t.shape != want.shape:
            wrong.append(f"{name} has shape {tuple(t.shape)}, expected {tuple(want.shape)}")
        if t.dtype not in dtypes:
            wrong.append(f"{name} is {t.dtype}, expected {dtype}")
    for number in map(str, range(len(drawn.calls))):
        if number not in told.facts:
            wrong.append(f"call {number} told nothing")
            continue
        fact = told.facts[number]
        if drawn.case.kind not in FUNCTIONS and fact.fields != ["x_out", "context_out"]:
            wrong.append(f"call {number} gave a {fact.result}, expected the named tuple (x_out, context_out)")
        for name, each in fact.outputs.items():
            if each.type != "torch.Tensor":
                wrong.append(f"{number}.{name} is a {each.type}, expected torch.Tensor")
            if each.device != device:
                wrong.append(f"{number}.{name} is on {each.device}, expected {device}")
            if not each.contiguous:
                wrong.append(f"{number}.{name} is not contiguous")
            if f"{number}.{name}" in got and each.digest != digest(got[f"{number}.{name}"]):
                wrong.append(f"{number}.{name} changed after it was returned")
    return wrong


def _unchanged(drawn: Drawn, told: CaseFacts) -> list[str]:
    """Inputs and weights that are not what they were before the calls, by their hashes."""
    wrong = []
    for number, call in enumerate(drawn.calls):
        given = dict(call.inputs) | ({} if call.attn_mask is None else {"attn_mask": call.attn_mask})
        after = told.facts[str(number)].inputs if str(number) in told.facts else {}
        wrong += [
            f"call {number} changed its input {name}" for name, t in given.items() if after.get(name) != digest(t)
        ]
    weights = drawn.weights[drawn.calls[-1].weights]
    wrong += [
        f"the calls changed the weight {name}" for name, t in weights.items() if told.weights.get(name) != digest(t)
    ]
    return wrong


def digest(t: Tensor) -> str:
    """As the worker takes it: of the bytes in their order."""
    return hashlib.sha256(t.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def _laws(drawn: Drawn, got: Tensors, vanilla: Mapping[str, float] | None) -> list[str]:
    """Laws between calls that do not hold. Both sides may be off by the bound."""
    wrong = []
    if drawn.case.scenario == "zero-modulation":
        pairs = ((got.get(f"0.{out}"), drawn.calls[0].inputs.get(name)) for out, name in _STREAMS.items())
        wrong += ["a modulation of zero is not the identity" for out, given in pairs if not _same(out, given)]
    for law in drawn.laws:
        for output in law.outputs:
            sides = [_side(got, output, side) for side in (law.got, law.want)]
            if sides[0] is None or sides[1] is None or sides[0].shape != sides[1].shape:
                continue  # told already
            left, right = sides
            if law.exact:
                if not torch.equal(left, right):
                    wrong.append(f"{output}: {law.name} does not hold bit for bit")
                continue
            name = f"{law.want[0]}.{output}"
            bound = 2 * allowed(name, rounding_of(drawn), None if vanilla is None else vanilla.get(name))
            error = _ratio((left.double() - right.double()).norm(), right.double().norm())
            if not error <= bound:
                wrong.append(f"{output}: {law.name} does not hold: relative L2 {error:.1e}, allowed {bound:.1e}")
    return wrong


def _side(got: Tensors, output: str, side: tuple[int, Callable[[str, Tensor], Tensor]]) -> Tensor | None:
    number, part = side
    out = got.get(f"{number}.{output}")
    return None if out is None else part(output, out)


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    return left is right is None or (left is not None and right is not None and torch.equal(left, right))
