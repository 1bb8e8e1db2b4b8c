"""What a call costs: its time and its memory, with gradients."""

import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdit.graph.trace import Arguments, kept_state

WARM_UPS = 2


@dataclass(frozen=True)
class Cost:
    """Median seconds of a call, forward and backward, and the most bytes that it held at once beside what was given."""

    seconds: float
    peak_bytes: int


def measure(call: Callable[..., Any], model: nn.Module, arguments: Arguments, repeats: int) -> Cost:
    """The cost of call, whose weights are model's, at these arguments; median of repeats after WARM_UPS."""
    args, kwargs = arguments
    cuda = any(isinstance(t, Tensor) and t.is_cuda for t in tree_leaves(arguments))
    times = []
    with kept_state(model), torch.random.fork_rng():
        for turn in range(WARM_UPS + repeats):
            synchronize = torch.cuda.synchronize if cuda else int
            synchronize()
            started = time.perf_counter()
            forward_backward(call, args, kwargs)
            synchronize()
            if turn >= WARM_UPS:
                times.append(time.perf_counter() - started)
        peak = _cuda_peak(call, arguments) if cuda else _peak(call, arguments)
    return Cost(statistics.median(times), peak)


def forward_backward(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """One call and the gradients of all that its outputs depend on, which are not kept."""
    with torch.enable_grad():
        result = call(*args, **kwargs)
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.requires_grad]
        wanted = [p for p in call.parameters() if p.requires_grad] if isinstance(call, nn.Module) else []
        if outputs and wanted:
            torch.autograd.grad(outputs, wanted, [torch.ones_like(t) for t in outputs], allow_unused=True)


def _tensors(values: Any) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


def _cuda_peak(call: Callable[..., Any], arguments: Arguments) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    forward_backward(call, *arguments)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak(call: Callable[..., Any], arguments: Arguments) -> int:
    with LiveBytes(call, arguments) as live:
        forward_backward(call, *arguments)
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operators make while it is on, as they come and go."""

    def __init__(self, call: Callable[..., Any], arguments: Arguments) -> None:
        super().__init__()
        self.now = self.peak = 0
        given = [*tree_leaves(arguments)]
        if isinstance(call, nn.Module):
            given += [*call.parameters(), *call.buffers()]
        self.known = {t.untyped_storage()._cdata for t in given if isinstance(t, Tensor)}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, Tensor):
                self._count(t.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        number, size = storage._cdata, storage.nbytes()
        if number in self.known:
            return
        self.known.add(number)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, number, size)

    def _forget(self, number: int, size: int) -> None:
        self.known.discard(number)
        self.now -= size


def saved_bytes(call: Callable[..., Any], model: nn.Module, arguments: Arguments) -> int:
    """The bytes that autograd keeps between forward and backward, beside inputs, weights and buffers."""
    known = {t.untyped_storage()._cdata for t in (*_tensors(arguments), *model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage()._cdata not in known:
            sizes[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
            kept.append(t)
        return t

    args, kwargs = arguments
    with kept_state(model), torch.random.fork_rng(), torch.enable_grad(), saved_tensors_hooks(pack, lambda t: t):
        kept += _tensors(call(*args, **kwargs))
    return sum(sizes.values())
