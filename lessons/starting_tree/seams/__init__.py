"""Where the kernels go: each op below takes the function in its file where there is one, else PyTorch's arithmetic.

A file is named after the lesson that leads to it, and may import triton: it is imported only where kernels can run.
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from mmdit.runtime.dispatch import launched, takes_fused, why_not
from torch import Tensor


class Seam(NamedTuple):
    """FILE.FUNCTION for calls that record no gradients, and for those that do (None: PyTorch's arithmetic)."""

    inference: str
    training: str | None = None


SEAMS = {
    "rmsnorm": Seam("rmsnorm.rmsnorm"),
    "layernorm_adaln": Seam("adaln.layernorm_adaln", "backward.trainable_layernorm_adaln"),
    "rmsnorm_adaln": Seam("adaln.rmsnorm_adaln"),
    "attention": Seam("online_softmax.attention"),
    "joint_attention": Seam("joint_attention.joint_attention"),
    "finish_branch": Seam("fused_branch.finish_branch"),
}
_known: dict[str, Callable[..., Any] | None] = {}


def seam(op: str, x: Tensor, *others: Tensor | None) -> Callable[..., Any] | None:
    """The function that op takes for x and the other tensors, or None for PyTorch's arithmetic; `explain` tells why."""
    tensors = [t for t in (x, *others) if t is not None]
    wanted, obstacle = SEAMS[op].inference, None
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        wanted = SEAMS[op].training
        obstacle = None if wanted else "gradients are recorded, and it has no backward"
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors) or torch.compiler.is_compiling():
        obstacle = "not a plain tensor in a plain call"
    elif torch.is_autocast_enabled(x.device.type):
        obstacle = "autocast"
    elif any(t.dtype != x.dtype for t in tensors):
        obstacle = "tensors of several dtypes"
    function = None
    if obstacle is None and why_not(x) is None:
        function = find(wanted)
        obstacle = None if function else f"nothing in its seam, mmdit/seams/{wanted.replace('.', '.py::')}"
    return function if takes_fused(op, x, obstacle) else None


def find(wanted: str) -> Callable[..., Any] | None:
    """FILE.FUNCTION in this folder, with its kernels' launches noted for `explain`; None where it is not written."""
    if wanted not in _known:
        file, _, name = wanted.partition(".")
        module = import_module(f"mmdit.seams.{file}")
        _known[wanted] = vars(module).get(name)
        note_launches(module)
    return _known[wanted]


def note_launches(module: ModuleType) -> None:
    """Have `explain` told of each kernel of a module when it is launched, once."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    for kernel in vars(module).values():
        if isinstance(kernel, JITFunction | InterpretedFunction) and not kernel.pre_run_hooks:
            kernel.add_pre_run_hook(lambda *_, name=kernel.fn.__name__, **__: launched(name))
