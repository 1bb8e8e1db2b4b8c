"""Where each call is decided: the fused kernel, or PyTorch's arithmetic, and why; `explain` tells.

Read once, at import: MMDIT_FUSED=0 turns fusion off; TRITON_INTERPRET=1 sends CPU tensors through the kernels too,
in Triton's interpreter.
"""

import os
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor

from mmdit.runtime.architecture import architecture, capability, on_gpu

FUSED = os.environ.get("MMDIT_FUSED", "1") != "0"
INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"
FOLDER = os.environ.get("MMDIT_KERNELS") or None  # of kernels compiled ahead of time
MIN_CAPABILITY = (8, 0)
CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INTERPRETER_DTYPES = (torch.float32, torch.float16)  # its bf16 arithmetic is not right


class Decision(NamedTuple):
    """Which path an op took, "fused" or "pytorch", and why."""

    op: str
    path: str
    reason: str


class Explanation(NamedTuple):
    """What one call did: a decision for each op that had a choice, and the kernels it launched, in order."""

    decisions: Tuple[Decision, ...]
    launches: Tuple[str, ...]

    @property
    def path(self) -> str:
        """ "fused", "pytorch", "mixed", or "none" where no op had a choice."""
        paths = {decision.path for decision in self.decisions}
        if not paths:
            return "fused" if self.launches else "none"
        return paths.pop() if len(paths) == 1 else "mixed"

    def __str__(self) -> str:
        counted = {decision: self.decisions.count(decision) for decision in self.decisions}
        lines = [f"{decision.op}: {decision.path} x{n} ({decision.reason})" for decision, n in counted.items()]
        kernels = [f"launched {name} x{self.launches.count(name)}" for name in dict.fromkeys(self.launches)]
        return "\n".join([f"path: {self.path}", *lines, *kernels])


class _Recording:
    """Decisions and launches of the explanation in progress."""

    def __init__(self) -> None:
        self.decisions: List[Decision] = []
        self.launches: List[str] = []


_recording: Optional[_Recording] = None
_platform_problems: Dict[int, Optional[str]] = {}
_whole = False  # whether a program that is compiled or exported keeps every op that has a kernel somewhere


@contextmanager
def whole_ops() -> Iterator[None]:
    """Under torch.export and torch.compile keep the ops whole where no kernel can run too, as on the CPU: the program
    may go to where one can.
    """
    global _whole
    _whole = True
    try:
        yield
    finally:
        _whole = False


def takes_fused(op: str, x: Tensor, unsupported: Optional[str] = None, how: str = "") -> bool:
    """Whether this call of op on x takes the kernel; `unsupported` is the op's own reason against it, if any, and `how`
    what `explain` tells beside where it ran.
    """
    obstacle = unsupported or (None if _whole and torch.compiler.is_compiling() else why_not(x))
    if _recording is not None and not torch.compiler.is_compiling():
        path, reason = ("pytorch", obstacle) if obstacle else ("fused", _why(x) + how)
        _recording.decisions.append(Decision(op, path, reason))
    return obstacle is None


def why_not(x: Tensor) -> Optional[str]:
    """The reason against any kernel for x, or None."""
    if not FUSED:
        return "MMDIT_FUSED=0"
    if torch.jit.is_tracing():
        return "torch.jit.trace cannot keep a kernel"
    if torch.onnx.is_in_onnx_export():
        return "ONNX has no such operator"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if x.numel() == 0:
        return "an empty tensor"
    if on_gpu(x):
        if x.dtype not in CUDA_DTYPES:
            return f"no kernel for {x.dtype}"
    elif x.device.type != "cpu":
        return f"no kernel for {x.device.type} tensors"
    elif not INTERPRET:
        return "a CPU tensor, and TRITON_INTERPRET is not 1"
    elif x.dtype not in INTERPRETER_DTYPES:
        return f"no {x.dtype} in Triton's interpreter"
    return _platform_problem(x.get_device())


def launched(kernel: str) -> None:
    """Note that a kernel was launched."""
    if _recording is not None:
        _recording.launches.append(kernel)


def explain(target: Union[torch.nn.Module, Callable[..., Any]], *args: Any, **kwargs: Any) -> Explanation:
    """Run target(*args, **kwargs) and tell which path each of its ops took, and why.

    Args:
        target: a module, an op such as layernorm_adaln, or any callable (one that also calls backward(), say).

    The call is a real one, but leaves the random state as it was. A scripted module takes the PyTorch path.
    """
    global _recording
    if _recording is not None:
        raise RuntimeError("explain: expected a call outside another explain, got a nested one")
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    _recording = recording = _Recording()
    try:
        with torch.random.fork_rng(devices):
            target(*args, **kwargs)
    finally:
        _recording = None
    if isinstance(target, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        name = getattr(target, "original_name", None) or target.name
        recording.decisions.append(Decision(name, "pytorch", "TorchScript holds PyTorch's arithmetic only"))
    return Explanation(tuple(recording.decisions), tuple(recording.launches))


def _why(x: Tensor) -> str:
    if not x.is_cuda:
        return "TRITON_INTERPRET=1"
    built = "" if FOLDER is None else f", kernels of {FOLDER}"
    return f"{x.dtype} on {torch.cuda.get_device_name(x.device)}, tiles of {architecture(capability(x))}{built}"


def _platform_problem(device: int) -> Optional[str]:
    """What this machine lacks to run kernels on a device (-1: the CPU, in the interpreter), found out once."""
    if torch.compiler.is_compiling():  # what an op finds out while it is traced would break the guard on what is known
        return _find_platform_problem(device)
    if device not in _platform_problems:
        _platform_problems[device] = _find_platform_problem(device)
    return _platform_problems[device]


def _find_platform_problem(device: int) -> Optional[str]:
    if FOLDER is None:
        try:
            import triton  # noqa: F401
        except Exception as error:
            return f"triton does not import: {error}"
    if device >= 0 and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return f"compute capability below {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}"
    return None
