"""Candidates that cheat while their training step is timed, or only look like it.

All are of one function, layernorm_adaln, whose forward and backward are slow enough for their times to matter.
"""

from evaluation.judge.case import Case, Sizes
from evaluation.judge.speed_cases import Plan
from evaluation.tests.gallery.timed import OFF, WORKER, TimedEntry

STEP_PLAN = Plan(Case("layernorm_adaln", Sizes(2, 9, 1, 2, 8)), calls=2, rounds=6)
HONEST_STEP = """
import torch
from torch.nn.functional import layer_norm

def _plain(x, scale, shift):
    return layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

def _gradients(given, cotangent):
    for _ in range(100):
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in given]
            found = torch.autograd.grad(_plain(*leaves), leaves, cotangent)
    return found

class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, shift):
        ctx.save_for_backward(x, scale, shift)
        for _ in range(100):
            out = _plain(x, scale, shift)
        return out

    @staticmethod
    def backward(ctx, cotangent):
        return _gradients(ctx.saved_tensors, cotangent)

def layernorm_adaln(x, scale, shift, eps=1e-6):
    return _Step.apply(x, scale, shift)

_kept, _honest = {}, _gradients
"""
LATER = (
    WORKER
    + """
_give, _left = _worker.Timer.give, []
def _gradients(given, cotangent):
    found = tuple(torch.zeros_like(t) for t in given)
    _left.append((found, given, cotangent))
    return found
def _finish(self, **asked):
    for found, given, cotangent in _left:
        for mine, theirs in zip(found, _honest(given, cotangent)):
            mine.copy_(theirs)
    _left.clear()
    return _give(self, **asked)
_worker.Timer.give = _finish
"""
)


def _backward(*lines: str) -> str:
    return "def _gradients(given, cotangent):\n" + "".join(f"    {line}\n" for line in lines)


STEP_CHEATS = tuple(
    TimedEntry(*each)
    for each in (
        ("skips a gradient", _backward(
            "x, scale, shift = given", "normed = layer_norm(x, x.shape[-1:], eps=1e-6)",
            "return torch.zeros_like(x), (cotangent * normed).sum(1), cotangent.sum(1)"), "d.x of a timed call"),
        ("replays old gradients", _backward(
            "key = cotangent.shape", "if key not in _kept:", "    _kept[key] = _honest(given, cotangent)",
            "return tuple(t.clone() for t in _kept[key])"), OFF),
        ("gradients of the call before", _backward(
            "old, _kept[0] = _kept.get(0, given), given", "return _honest(old, cotangent)"), OFF),
        ("gradients left for after the time", LATER, "not those that were there when its time ended"),
        ("no gradient is a number", _backward("return tuple(t * torch.nan for t in given)"), "NaN or infinity"),
    )
)  # fmt: skip
STEP_LOOK_ALIKES = tuple(
    TimedEntry(*each)
    for each in (
        ("as it is", ""),
        ("gradients by hand", _backward(
            "x, scale, _ = given", "for _ in range(100):",
            "    centred = x - x.mean(-1, keepdim=True)",
            "    by = torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-6)",
            "    normed, inner = centred * by, cotangent * (1 + scale[:, None])",
            "    inner = inner - inner.mean(-1, keepdim=True) - normed * (inner * normed).mean(-1, keepdim=True)",
            "return by * inner, (cotangent * normed).sum(1), cotangent.sum(1)")),
    )
)  # fmt: skip
