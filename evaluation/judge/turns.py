"""What the calls of a turn are given. Nothing of it can be told without the run's seed.

The features' signs of all inputs, and of a training step's cotangents, change by "signs", which a worker learns only
when its time has begun.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.judge.case import Case
from evaluation.judge.draw import Call, Drawn, draw_call, draw_cotangents, rng_of
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
    cotangents: tuple[Tensors, ...] = ()  # by call, of a training step

    @classmethod
    def draw(cls, plan: Plan, seed: int, part: str) -> "Values":
        """Those of one turn, by its name."""
        case, rng = plan.case, rng_of(seed, plan.case, f":{part}")
        calls = tuple(draw_call(case, rng) for _ in range(plan.calls))
        signs = "".join("+" if each else "-" for each in torch.randint(2, (case.sizes.dim,), generator=rng).tolist())
        checked = int(torch.randint(plan.calls, (), generator=rng))
        samples = torch.randperm(case.sizes.batch, generator=rng)[:2]
        cotangents = tuple(draw_cotangents(case, call, rng) for call in calls) if case.mode == "backward" else ()
        return cls(case, calls, signs, checked, tuple(sorted(samples.tolist())), cotangents)

    @property
    def flips(self) -> Tensor:
        """(D,): 1 or -1."""
        return torch.tensor([1.0 if sign == "+" else -1.0 for sign in self.signs])

    def tensors(self) -> Tensors:
        """As they are handed out: "c0.NAME" by call, cotangents as "c0.g.NAME"."""
        found = {f"c{n}.{key}": t.contiguous() for n, call in enumerate(self.calls) for key, t in call.inputs.items()}
        return found | {f"c{n}.g.{key}": t for n, each in enumerate(self.cotangents) for key, t in each.items()}

    def looked_at(self, weights: Mapping[str, Tensor], samples: Sequence[int]) -> Drawn:
        """The checked call as the worker computes it, of these samples of its batch."""
        call = Call(self._final(self.calls[self.checked].inputs, samples))
        cotangents = tuple(self._final(each, samples) for each in self.cotangents[self.checked :][:1])
        return Drawn(self.case, (weights,), (call,), cotangents)

    def _final(self, given: Mapping[str, Tensor], samples: Sequence[int]) -> Tensors:
        flips = self.flips
        changed = {key: t * flips.to(t.dtype) if t.shape[-1] == len(flips) else t for key, t in given.items()}
        return {key: t[list(samples)] if len(t) == self.case.sizes.batch else t for key, t in changed.items()}
