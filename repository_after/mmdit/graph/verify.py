"""A candidate beside the original model: outputs, gradients, and what it leaves in buffers and inputs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from mmdit.graph.trace import Arguments, batch_of, in_mode, kept_state

TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-5, torch.float16: 2e-2, torch.bfloat16: 6e-2}
NEGLIGIBLE = 2e-2  # a gradient below this share of all gradients' size is held to that share: at inputs of 1e-3 the key
# norm's is 1.5e-4 of them, and fp32 by itself has it wrong by 2e-4 (tests/numerics.py allows a tenth)
SCALES = (1.0, 1e-3, 30.0)  # a change of an eps shows at the small one, of a clamp at the large one


@dataclass(frozen=True)
class Case:
    """One set of inputs, and how to speak of it."""

    name: str
    arguments: Arguments


@dataclass(frozen=True)
class Verdict:
    """The worst error of a candidate, where it was found, and whether it is allowed; error is inf for what no number
    tells, as another shape or a raised exception.
    """

    error: float
    where: str
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed

    def __str__(self) -> str:
        return f"worst error {self.error:.2e} of {self.allowed:.0e} allowed, at {self.where}"


@dataclass(frozen=True)
class _Ran:
    """What a call gave: its outputs with their structure, gradients, and buffers and inputs after it."""

    structure: Any
    values: dict[str, Any]


def draw_cases(arguments: Arguments, batches: Sequence[int], seed: int) -> list[Case]:
    """The inputs as given, drawn anew at several scales, and at other batch sizes.

    Floating-point tensors are normal with their example's deviation; all others are their example's rows in another
    order, so that indices and masks stay valid.
    """
    rng, batch = torch.Generator().manual_seed(seed), batch_of(arguments)

    def redraw(value: Any, scale: float, size: int | None) -> Any:
        if not isinstance(value, Tensor):
            return value
        shape = list(value.shape)
        if size is not None and shape and shape[0] == batch:
            shape[0] = size
        if not value.is_floating_point():
            rows = torch.randint(len(value), (shape[0],), generator=rng) if shape else None
            return value if rows is None else value[rows.to(value.device)]
        spread = value.detach().float().std().item() if value.numel() > 1 else 1.0
        drawn = torch.randn(shape, generator=rng) * (spread or 1.0) * scale
        return drawn.to(value.device, value.dtype)

    cases = [Case("the example", arguments)]
    cases += [Case(f"scale {s:g}", tree_map(lambda v, s=s: redraw(v, s, None), arguments)) for s in SCALES]
    cases += [Case(f"batch {n}", tree_map(lambda v, n=n: redraw(v, 1.0, n), arguments)) for n in batches]
    return cases


class Verifier:
    """Judges candidates against one model in one mode, at given cases, with one seed for all that is random.

    The model is run here once; its weights and buffers are left as they were.
    """

    def __init__(self, model: nn.Module, cases: Sequence[Case], tolerance: float | None, seed: int) -> None:
        self.model, self.cases, self.seed = model, list(cases), seed
        self.training = model.training
        self.tolerance = tolerance or max((TOLERANCE.get(t.dtype, 0.0) for t in self._floats()), default=0.0)
        self._look()

    def refresh(self) -> None:
        """Take the model as it is now, should it have been trained since."""
        state = self.model.state_dict()
        if any(not torch.equal(state[name], kept) for name, kept in self.state.items()):
            self._look()

    def _look(self) -> None:
        state = self.model.state_dict()
        self.state = {name: t.detach().clone() for name, t in state.items() if isinstance(t, Tensor)}
        with in_mode(self.model, self.training):
            self.truth = [self._run(self.model, case) for case in self.cases]

    def _floats(self) -> Iterator[Tensor]:
        leaves = tree_flatten(self.cases[0].arguments)[0]
        yield from (t for t in (*leaves, *self.model.parameters()) if isinstance(t, Tensor) and t.is_floating_point())

    def judge(self, candidate: Callable[..., Any]) -> Verdict:
        """The worst that can be said of candidate, called as the model is; its weights are the model's own."""
        worst = Verdict(0.0, "no output", self.tolerance)
        for case, truth in zip(self.cases, self.truth, strict=True):
            try:
                got = self._run(candidate, case)
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                return Verdict(torch.inf, f"{case.name}, {self._mode()}: {reason}", self.tolerance)
            for where, error in _errors(got, truth):
                if error > worst.error or worst.where == "no output":
                    worst = Verdict(error, f"{where}, {case.name}, {self._mode()}", self.tolerance)
        if self.restore_weights():
            return Verdict(torch.inf, "the original model's weights were changed", self.tolerance)
        return worst

    def restore_weights(self) -> list[str]:
        """Put back what something has changed of the model's weights; their names."""
        state = self.model.state_dict()
        changed = [name for name, kept in self.state.items() if not torch.equal(state[name], kept)]
        with torch.no_grad():
            for name in changed:
                state[name].copy_(self.state[name])
        return changed

    def _mode(self) -> str:
        return "train" if self.training else "eval"

    def _run(self, call: Callable[..., Any], case: Case) -> _Ran:
        leaves: list[Tensor] = []

        def leaf(value: Any) -> Any:
            if isinstance(value, Tensor):
                value = value.detach().clone().requires_grad_(value.is_floating_point())
                leaves.append(value)
            return value

        args, kwargs = tree_map(leaf, case.arguments)
        given = [t.detach().clone() for t in leaves]
        with kept_state(self.model), torch.random.fork_rng(_cuda_devices(leaves)), torch.enable_grad():
            torch.manual_seed(self.seed)
            result = call(*args, **kwargs)
            flat, structure = tree_flatten(result)
            values: dict[str, Any] = {f"output {i}": v for i, v in enumerate(flat)}
            values |= self._gradients(flat, leaves)
            values |= {f"buffer {n}": b.detach().clone() for n, b in self.model.named_buffers()}
        values |= {f"input {i} afterwards": t.detach() for i, t in enumerate(leaves)}
        values |= {f"input {i} before": t for i, t in enumerate(given)}
        return _Ran(structure, values)

    def _gradients(self, flat: list[Any], leaves: list[Tensor]) -> dict[str, Tensor]:
        """Of inputs and weights, for fixed random cotangents."""
        outputs = [t for t in flat if isinstance(t, Tensor) and t.requires_grad]
        wanted = {f"input {i}": t for i, t in enumerate(leaves) if t.requires_grad}
        wanted |= {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if not outputs or not wanted:
            return {}
        rng = torch.Generator().manual_seed(self.seed)
        cotangents = [torch.randn(t.shape, generator=rng).to(t.device, t.dtype) for t in outputs]
        found = torch.autograd.grad(outputs, list(wanted.values()), cotangents, allow_unused=True)
        return {f"d {name}": g for name, g in zip(wanted, found, strict=True)}


def _cuda_devices(leaves: list[Tensor]) -> list[int]:
    return sorted({t.get_device() for t in leaves if t.is_cuda})


def _errors(got: _Ran, truth: _Ran) -> Iterator[tuple[str, float]]:
    """Each value's error. A gradient that does not exist is one of zeros."""
    if got.structure != truth.structure or got.values.keys() != truth.values.keys():
        yield "another structure of outputs or gradients", torch.inf
        return
    gradients = [g for n, g in truth.values.items() if n.startswith("d ") and g is not None]
    counted = sum(g.numel() for g in gradients)
    floor = NEGLIGIBLE * (sum(g.double().square().sum().item() for g in gradients) / max(counted, 1)) ** 0.5
    for name, want in truth.values.items():
        yield name, _error(got.values[name], want, floor if name.startswith("d ") else 0.0)


def _error(got: Any, want: Any, floor: float) -> float:
    """|got - want| / |want|, every element of want counting as at least floor; inf for what is not comparable."""
    if not isinstance(want, Tensor) and not isinstance(got, Tensor):
        return 0.0 if got == want else torch.inf
    got = torch.zeros_like(want) if got is None else got
    want = torch.zeros_like(got) if want is None else want
    if not isinstance(got, Tensor) or (got.shape, got.dtype, got.device) != (want.shape, want.dtype, want.device):
        return torch.inf
    if not (got.is_floating_point() or got.is_complex()):
        return 0.0 if torch.equal(got, want) else torch.inf
    finite = torch.isfinite(want)
    if not torch.equal(torch.where(finite, 0.0, got), torch.where(finite, 0.0, want)) and not _same_nonfinite(
        got, want
    ):
        return torch.inf
    difference = (torch.where(finite, got, 0) - torch.where(finite, want, 0)).abs().double().norm().item()
    size = max(torch.where(finite, want, 0).abs().double().norm().item(), floor * want.numel() ** 0.5)
    if difference == 0.0:
        return 0.0
    return difference / size if size and difference == difference else torch.inf


def _same_nonfinite(got: Tensor, want: Tensor) -> bool:
    finite = torch.isfinite(want)
    return torch.equal(torch.isfinite(got), finite) and torch.equal(got.isnan(), want.isnan())
