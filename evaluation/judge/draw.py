"""Draws what a case is computed on: weights, inputs, masks, positions, cotangents, from one seed by the case's name."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from evaluation.judge import oracle
from evaluation.judge.case import CONDITIONED, JOINT, LINEAR, MAX_POSITION, Case
from evaluation.judge.layout import layout

TILE_EDGES = (0, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
NEEDLE_GAIN = 1.3  # of both norms: the needle's logit is sqrt(Dh) * gain**2
KINK = 1e-5  # ten times what fp32 rounds a normalised query or key by

MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda mask: mask,
    "random": lambda mask: mask,
    "causal": lambda mask: torch.ones_like(mask).tril(),
    "empty-rows": lambda mask: mask.index_fill(1, torch.tensor([0, mask.shape[1] - 1]), False),
    "empty-columns": lambda mask: mask.index_fill(2, torch.tensor([1, mask.shape[2] - 1]), False),
    "padding": lambda mask: mask & _kept(mask)[None, :, None] & _kept(mask)[None, None, :],
    "all-empty": torch.zeros_like,
    "float": lambda mask: mask * -0.25,
}


def _kept(mask: Tensor) -> Tensor:
    return torch.arange(mask.shape[1]) < mask.shape[1] - mask.shape[1] // 3


@dataclass(frozen=True)
class Call:
    """One call: tensors by their argument's name, with the number of the weights that are in place by then."""

    inputs: Mapping[str, Tensor]
    weights: int = 0
    attn_mask: Tensor | None = None
    start_pos: int | Tensor | None = None


@dataclass(frozen=True)
class Law:
    """Between outputs: the part `got` takes of one call's output is what `want` takes of another's."""

    name: str
    got: tuple[int, Callable[[str, Tensor], Tensor]]
    want: tuple[int, Callable[[str, Tensor], Tensor]]
    outputs: tuple[str, ...]
    exact: bool = False


@dataclass(frozen=True)
class Drawn:
    """A case with its values. Weights and inputs are in the case's dtype, fp32 under autocast."""

    case: Case
    weights: tuple[Mapping[str, Tensor], ...]
    calls: tuple[Call, ...]
    cotangents: tuple[Mapping[str, Tensor], ...]
    laws: tuple[Law, ...] = field(default=())


def draw(case: Case, seed: int) -> Drawn:
    """All values of a case; other cases of the same seed get others."""
    rng = rng_of(seed, case)
    dtype = getattr(torch, case.dtype)
    weights = [_weights(case, rng) for _ in range(2 if case.scenario.startswith("other-weights") else 1)]
    calls = [_call(case, rng)]
    while case.kind in LINEAR and case.mode == "backward" and _near_a_kink(case, weights[0], calls[0]):
        calls = [_call(case, rng)]
    calls, laws = _scenario(case, calls[0], rng)
    if case.scenario == "zero-modulation":
        weights = [{key: t * (0.0 if "adaLN" in key else 1.0) for key, t in weights[0].items()}]
    rounded = tuple({key: t.to(dtype) for key, t in each.items()} for each in weights)
    calls = [Call({k: t.to(dtype) for k, t in c.inputs.items()}, c.weights, c.attn_mask, c.start_pos) for c in calls]
    cotangents = tuple(draw_cotangents(case, call, rng) for call in calls) if case.mode != "inference" else ()
    return Drawn(case, rounded, tuple(calls), cotangents, laws)


def draw_call(case: Case, rng: Generator) -> Call:
    """One more call of a case, in its dtype."""
    call, dtype = _call(case, rng), getattr(torch, case.dtype)
    return Call({key: t.to(dtype) for key, t in call.inputs.items()}, 0, call.attn_mask, call.start_pos)


def rng_of(seed: int, case: Case, part: str = "") -> Generator:
    """For a case's values, or for one part of what is drawn for it."""
    name = f"{seed}:{case.name}{part}".encode()
    return Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:7]))


def _weights(case: Case, rng: Generator) -> dict[str, Tensor]:
    """Values that matter: norms' weights in [0.5, 1.5), biases away from zero."""
    found = {}
    for key, size in layout(case).items():
        if len(size) > 1:
            found[key] = torch.randn(size, generator=rng) / size[-1] ** 0.5
        elif key.endswith("weight"):
            found[key] = 0.5 + torch.rand(size, generator=rng)
        else:
            found[key] = 0.3 * torch.randn(size, generator=rng)
            if case.values == "tiny" and "to_qkv" in key:
                found[key] *= 1e-4  # so that queries and keys are as small as the eps of their norm
    if case.values == "needles":
        _point_at_needles(case, found)
    return found


def _point_at_needles(case: Case, weights: dict[str, Tensor]) -> None:
    """Queries: a constant along each head's slowest pair. Keys: feature 0 of a token goes there and nowhere else."""
    sizes = case.sizes
    slowest = torch.arange(sizes.dim) % sizes.dim_head == sizes.dim_head - 2
    for prefix in ("", "c_"):
        query, key, _ = weights[f"{prefix}to_qkv.weight"].chunk(3)
        query.zero_()
        key[:, 0] = slowest.float()
        key[slowest, 1:] = 0.0
        weights[f"{prefix}to_qkv.bias"][: 2 * sizes.dim] = torch.cat((slowest, torch.zeros(sizes.dim)))
        for norm in ("rms_norm_q", "rms_norm_k"):
            weights[f"{prefix}{norm}.weight"].fill_(NEEDLE_GAIN)


def needles(case: Case) -> list[int]:
    """Where they lie, one a sample: at every tile's edge, at the streams' boundary, at the end."""
    boundary, end = case.sizes.length, case.sizes.length + case.sizes.context
    return sorted(n for n in {*TILE_EDGES, boundary - 1, boundary, boundary + 1, end - 1} if n < end)


def _call(case: Case, rng: Generator) -> Call:
    sizes = case.sizes
    batch = len(needles(case)) if case.values == "needles" else sizes.batch
    inputs = {"x": _tokens(case, (batch, sizes.length, sizes.dim), rng)}
    if case.kind in CONDITIONED:
        inputs["y"] = torch.randn(batch, sizes.dim, generator=rng)
    if case.kind in JOINT:
        inputs["context"] = _tokens(case, (batch, sizes.context, sizes.dim), rng)
    if case.kind.endswith("_adaln"):
        inputs |= {name: torch.randn(batch, sizes.dim, generator=rng) for name in ("scale", "shift")}
    if case.kind == "rmsnorm_adaln":
        inputs["weight"] = 0.5 + torch.rand(sizes.dim, generator=rng)
    if case.values == "needles":
        for sample, index in enumerate(needles(case)):
            for stream in ("x", "context"):
                inputs[stream][sample, :, 0] = 0.0
            own, row = ("x", index) if index < sizes.length else ("context", index - sizes.length)
            inputs[own][sample, row, 0] = 50.0
    return Call(inputs, 0, _mask(case, batch, rng), _start(case, batch, rng))


def _tokens(case: Case, size: tuple[int, int, int], rng: Generator) -> Tensor:
    normal = torch.randn(size, generator=rng)
    if case.values == "large":
        return normal * 300
    if case.values == "tiny":
        return normal * 1e-4
    if case.values == "constant-rows":  # quarters, so that no mean is rounded
        return (torch.randint(-8, 9, (*size[:2], 1), generator=rng) * 0.25).expand(size).clone()
    if case.values == "outliers":
        normal[..., torch.randperm(size[2], generator=rng)[:3]] *= 50
    return normal


def _mask(case: Case, batch: int, rng: Generator) -> Tensor | None:
    if case.mask == "none":
        return None
    length = case.sizes.length
    half = torch.rand((batch, length, length), generator=rng) < 0.5
    return MASKS[case.mask](half | torch.eye(length, dtype=torch.bool)).contiguous()


def _start(case: Case, batch: int, rng: Generator) -> int | Tensor | None:
    last = MAX_POSITION - case.sizes.length
    if case.start == "tensor":
        return torch.randint(0, last + 1, (batch,), generator=rng)
    drawn = int(torch.randint(1, last + 1, (), generator=rng))
    return {"none": None, "int": drawn, "last": last}[case.start]


def _near_a_kink(case: Case, weights: Mapping[str, Tensor], call: Call) -> bool:
    """Whether rounding might turn a relu of linear attention on or off, and its gradient with it."""
    state = {key: t.double() for key, t in weights.items()}
    found = []
    for prefix, stream in (("", "x"), ("c_", "context")):
        if stream in call.inputs:
            qk = oracle.projected(state, prefix, call.inputs[stream].double(), case.sizes.heads)[:2]
            found += [oracle.rotated(t, call.start_pos) if stream == "x" else t for t in qk]
    return bool(torch.cat([t.flatten() for t in found]).abs().min() < KINK)


def draw_cotangents(case: Case, call: Call, rng: Generator) -> dict[str, Tensor]:
    """Of each output of a call, in its dtype."""
    streams = {"x_out": call.inputs["x"]} | (
        {"context_out": call.inputs["context"]} if "context" in call.inputs else {}
    )
    return {name: torch.randn(t.shape, generator=rng).to(t.dtype) for name, t in streams.items()}


def _scenario(case: Case, base: Call, rng: Generator) -> tuple[list[Call], tuple[Law, ...]]:
    """The calls that follow the first, and what must hold between their outputs."""
    outputs = ("x_out", "context_out") if case.kind in JOINT else ("x_out",)
    same = _whole
    match case.scenario:
        case "once":
            return [base], ()
        case "other-values-in-the-same-memory":
            laws = (Law("the same call gives the same bits", (2, same), (0, same), outputs, exact=True),)
            return [base, _call(case, rng), base], laws
        case "other-weights-in-the-same-memory":
            return [base, Call(base.inputs, 1, base.attn_mask, base.start_pos)], ()
        case "permuted-context":
            order = torch.randperm(base.inputs["context"].shape[1], generator=rng)
            other = dict(base.inputs) | {"context": base.inputs["context"][:, order]}

            def permute(name: str, out: Tensor) -> Tensor:
                return out[:, order] if name == "context_out" else out

            laws = (Law("permuting the context permutes its output and leaves x", (1, same), (0, permute), outputs),)
            return [base, Call(other, 0, base.attn_mask, base.start_pos)], laws
        case "shifted-start":
            moved = Call(base.inputs, 0, base.attn_mask, 1 + int(torch.randint(0, 2000, (), generator=rng)))
            return [base, moved], (Law("shifting start_pos changes nothing within x", (1, same), (0, same), outputs),)
        case "one-sample-alone":
            alone = Call({name: t[1:2].clone() for name, t in base.inputs.items()}, 0)
            laws = (Law("a sample does not depend on its batch", (1, same), (0, _second_sample), outputs),)
            return [base, alone], laws
        case "doubled-batch":
            twice = Call({name: torch.cat((t, t)) for name, t in base.inputs.items()}, 0)
            laws = (
                Law("a batch twice gives its output twice", (1, _first_half), (0, same), outputs),
                Law("both halves of a doubled batch agree", (1, _second_half), (1, _first_half), outputs),
            )
            return [base, twice], laws
        case "zero-modulation":
            return [base], ()
    raise AssertionError(case.scenario)


def _whole(_name: str, out: Tensor) -> Tensor:
    return out


def _second_sample(_name: str, out: Tensor) -> Tensor:
    return out[1:2]


def _first_half(_name: str, out: Tensor) -> Tensor:
    return out[: out.shape[0] // 2]


def _second_half(_name: str, out: Tensor) -> Tensor:
    return out[out.shape[0] // 2 :]
