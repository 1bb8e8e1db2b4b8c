"""What the calls of a turn are given. Nothing of it can be told without the run's seed.

The features' signs of all inputs change by "signs", which a worker learns only when its time has begun.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.judge.case import Case
from evaluation.judge.draw import Call, draw_call, rng_of
from evaluation.judge.speed_cases import Plan

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Values:
    """`calls` before their signs change; `checked`: the call whose outputs have to be handed out afterwards."""

    case: Case
    calls: tuple[Call, ...]
    signs: str
    checked: int
    samples: tuple[int, ...]  # of the checked call's batch, which are compared with the oracle

    @classmethod
    def draw(cls, plan: Plan, seed: int, part: str) -> "Values":
        """Those of one turn, by its name."""
        case, rng = plan.case, rng_of(seed, plan.case, f":{part}")
        calls = tuple(draw_call(case, rng) for _ in range(plan.calls))
        signs = "".join("+" if each else "-" for each in torch.randint(2, (case.sizes.dim,), generator=rng).tolist())
        checked = int(torch.randint(plan.calls, (), generator=rng))
        samples = torch.randperm(case.sizes.batch, generator=rng)[:2]
        return cls(case, calls, signs, checked, tuple(sorted(samples.tolist())))

    @property
    def flips(self) -> Tensor:
        """(D,): 1 or -1."""
        return torch.tensor([1.0 if sign == "+" else -1.0 for sign in self.signs])

    def tensors(self) -> Tensors:
        """As they are handed out: "c0.NAME" by call."""
        return {f"c{n}.{key}": t.contiguous() for n, call in enumerate(self.calls) for key, t in call.inputs.items()}

    def looked_at(self) -> Call:
        """The checked call as the worker computes it, of the samples that are compared."""
        given, flips = self.calls[self.checked].inputs, self.flips
        changed = {key: t * flips.to(t.dtype) if t.shape[-1] == len(flips) else t for key, t in given.items()}
        batched = {key: t[list(self.samples)] if len(t) == self.case.sizes.batch else t for key, t in changed.items()}
        return Call(batched)
