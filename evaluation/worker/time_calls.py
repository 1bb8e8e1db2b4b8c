"""Times calls of one tree at a judge's word: `time_calls.py TREE FOLDER DEVICE CHANNEL`, CHANNEL a socket's number.

A line of JSON asks, a line answers. Values to call with lie in FOLDER, and become final only by the signs that come
with "go"; its answer holds sums over all outputs, which nobody can tell who has not computed them by then. What this
process says of its own times is checked against the judge's clock. Functions of other modules are taken before the
tree is imported, so that one that is replaced later is not the one that is called.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from math import isfinite
from os import fdopen
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors as join

sys.path.insert(0, str(Path(__file__).resolve().parent))
from capture import capture
from run_cases import describe, make_module

sys.path.pop(0)

FLUSH_BYTES = 1 << 28  # several times any GPU's L2
COMPILATIONS = 64
COTANGENT = "g."  # before an output's name
MODES = {"compiled": "default", "max_autotune": "max-autotune-no-cudagraphs"}
CAPTURED = {"graph", "compiled_graph", "max_autotune"}
Event, synchronize, elapsed = torch.cuda.Event, torch.cuda.synchronize, torch.cuda.Event.elapsed_time

Values = dict[str, Tensor]


def main() -> None:
    tree, folder, device, channel = sys.argv[1:]
    torch.set_num_threads(1)
    sys.path.insert(0, tree)
    timer = Timer(import_module("mmdit"), Path(folder), device)
    with fdopen(int(channel), "r+b", buffering=0) as line:
        while question := line.readline():
            asked = json.loads(question)
            token = asked.pop("token")
            try:
                answer = getattr(timer, asked.pop("do"))(**asked)
            except Exception as error:
                answer = {"error": describe(error, tree)}
            line.write(json.dumps(answer | {"token": token}).encode() + b"\n")


class Step:
    """A training step: outputs, and gradients of all inputs and weights, each in the order of their names."""

    def __init__(self, call: Callable[..., Any], target: Callable[..., Any]) -> None:
        self.call = call
        self.weights = [each for _, each in sorted(target.named_parameters())] if isinstance(target, nn.Module) else []

    def __call__(self, **values: Tensor) -> tuple[Tensor, ...]:
        inputs = {key: t for key, t in sorted(values.items()) if not key.startswith(COTANGENT)}
        with torch.enable_grad():
            outputs = present(self.call(**inputs))
            names = ("x_out", "context_out")[: len(outputs)]
            gradients = torch.autograd.grad(
                outputs,
                [*inputs.values(), *self.weights],
                [values[f"{COTANGENT}{name}"] for name in names],
                allow_unused=True,
                materialize_grads=True,
            )
        return *outputs, *gradients


class Contender:
    """One way to call a case's module or function. Inputs lie in the same memory at each turn, by their place in it."""

    def __init__(self, target: Callable[..., Any], call: Callable[..., Any], name: str, values: Values, step: bool):
        calls = len(next(iter(values.values())))
        self.leaves = {key for key in values if step and not key.startswith(COTANGENT)}
        self.buffers = [self.own({key: t[number] for key, t in values.items()}) for number in range(calls)]
        self.call, self.weights = call, 0
        if step:
            self.call = Step(self.call, target)
            self.weights = len(self.call.weights)
        self.odd: set[type] = set()
        self.static: Values | None = None
        self.peak: int | None = None  # bytes that a graph holds, whose calls allocate nothing
        if name in CAPTURED:
            self.static = self.own(self.buffers[0])
            self.call(**self.static)
            with peak_memory() as taken:
                self.replay = capture(lambda: self.call(**self.static))
            self.peak = taken[0]

    def own(self, values: Values) -> Values:
        """Copies, those of a step's inputs with gradients."""
        return {key: t.detach().clone().requires_grad_(key in self.leaves) for key, t in values.items()}

    def __call__(self, number: int) -> Any:
        return self.call(**self.buffers[number]) if self.static is None else self.replay()

    def place(self, number: int) -> None:
        """The captured call's own inputs, before it is timed."""
        for key, t in (self.static or {}).items():
            t.copy_(self.buffers[number][key])

    def keep(self, result: Any) -> tuple[Tensor, ...]:
        """Outputs, copied where the next call overwrites them; the weights' gradients one after the other.

        Of hundreds of gradients: whatever the host does here lies beside the calls, and is to take less than they do.
        """
        found = present(result)
        count = len(found) - self.weights
        kept = found[:count] if self.static is None else tuple(t.clone() for t in found[:count])
        if self.leaves:
            self.odd |= {*map(type, found)} - {Tensor}
            kept = tuple(t.detach() for t in kept)
        if self.weights == 1:  # which join does not copy
            return *kept, found[count].flatten().clone()
        return (*kept, join(found[count:])) if self.weights else kept


class Timer:
    """Answers to what a judge asks, each a method by the question's name."""

    def __init__(self, mmdit: Any, folder: Path, device: str) -> None:
        self.mmdit, self.folder, self.device = mmdit, folder, device
        self.targets: dict[str, Callable[..., Any]] = {}
        self.steps: set[str] = set()
        self.contenders: dict[tuple[str, str], Contender] = {}
        self.compiled: dict[tuple[str, str], Callable[..., Any]] = {}  # by case and mode: alone and in a graph the same
        self.values: Values = {}  # of all calls of a turn, by the number of the call
        self.outputs: list[tuple[Tensor, ...]] = []
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if device == "cuda" else None

    def load(self, file: str, calls: int) -> dict[str, Any]:
        """Values for the calls that follow, their signs not yet known."""
        tensors = load_file(self.folder / file, device=self.device)
        keys = [key.removeprefix("c0.") for key in tensors if key.startswith("c0.")]
        self.values = {key: torch.stack([tensors[f"c{n}.{key}"] for n in range(calls)]) for key in keys}
        self.wait()
        return {}

    def begin(self, case: str, weights: str, entry: dict[str, Any]) -> dict[str, Any]:
        """Make a case's module, or take its function. In the mode "backward" a call is a training step."""
        if entry["mode"] == "backward":
            self.steps.add(case)
        if "function" in entry["make"]:
            self.targets[case] = getattr(self.mmdit, entry["make"]["function"])
        else:
            self.targets[case] = make_module(self.mmdit, entry, load_file(self.folder / weights, device=self.device))
        return {}

    def guard(self, case: str) -> Any:
        """Around what is called of a case: a step's tensors must be fit for gradients."""
        return torch.no_grad() if case in self.steps else torch.inference_mode()

    def prepare(self, case: str, contender: str) -> dict[str, Any]:
        """Compile or capture what has to be, and call it for the first time; the seconds of that.

        What another contender of the case compiled is not compiled again.
        """
        with self.guard(case):
            start = perf_counter()
            call = target = self.targets[case]
            if mode := MODES.get(contender.removesuffix("_graph")):
                if (case, mode) not in self.compiled:
                    self.compiled[case, mode] = compiled(target, mode)
                call = self.compiled[case, mode]
            made = Contender(target, call, contender, self.values, case in self.steps)
            made.keep(made(0))
            self.wait()
            seconds = perf_counter() - start
        self.contenders[case, contender] = made
        return {"first_call_seconds": seconds}

    def go(self, case: str, contender: str, signs: str) -> dict[str, Any]:
        """Call it on each of the values, their features' signs changed as `signs` says."""
        made = self.contenders[case, contender]
        changed = torch.tensor([1.0 if sign == "+" else -1.0 for sign in signs], device=self.device)
        with self.guard(case):
            for key, t in self.values.items():
                given = t * changed.to(t.dtype) if t.shape[-1] == len(signs) else t
                for buffers, each in zip(made.buffers, given, strict=True):
                    buffers[key].copy_(each)
            seconds, self.outputs = self.timed(made)
            sums = [totals(each, changed) for each in zip(*self.outputs, strict=True)]
        forms = {f"{named(type(t))} {t.dtype} {tuple(t.shape)} {t.device.type}" for each in self.outputs for t in each}
        forms |= {named(each) for each in made.odd}
        return {"seconds": seconds, "sums": list(zip(*sums, strict=True)), "forms": sorted(forms)}

    def timed(self, made: Contender) -> tuple[list[float], list[tuple[Tensor, ...]]]:
        """Seconds of each call, by events where there is a GPU, and what it gave."""
        outputs, seconds, marks = [], [], []
        for number in range(len(made.buffers)):
            made.place(number)
            if self.flush is not None:
                self.flush.zero_()
                marks.append([Event(enable_timing=True) for _ in range(2)])
                marks[-1][0].record()
                result = made(number)
                marks[-1][1].record()
            else:
                start = perf_counter()
                result = made(number)
                seconds.append(perf_counter() - start)
            outputs.append(made.keep(result))
        self.wait()
        return seconds + [elapsed(start, end) / 1e3 for start, end in marks], outputs

    def give(self, call: int, file: str, whole: bool) -> dict[str, Any]:
        """Leave the outputs of one of the calls of the last go; without whole, all but the weights' gradients."""
        given = [t for t in self.outputs[call] if whole or t.dim() > 1]
        plain = {str(n): t.detach().cpu().contiguous().clone() for n, t in enumerate(given)}
        save_file(plain, self.folder / file)
        return {}

    def profile(self, case: str, contender: str) -> dict[str, Any]:
        """On a GPU: seconds by kernel of one call, and the bytes that it takes at its peak."""
        if self.device != "cuda":
            return {"kernels": None, "peak_bytes": None}
        made = self.contenders[case, contender]
        with self.guard(case):
            self.wait()
            with peak_memory() as taken:
                made(0)
                self.wait()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
                made(0)
                self.wait()
        kernels: dict[str, float] = {}
        for event in profiler.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                kernels[event.name] = kernels.get(event.name, 0.0) + event.time_range.elapsed_us() / 1e6
        told = [{"name": name, "seconds": seconds} for name, seconds in kernels.items()]
        return {"kernels": told or None, "peak_bytes": taken[0] if made.peak is None else made.peak}

    def wait(self) -> None:
        if self.device == "cuda":
            synchronize()


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The bytes that were allocated inside, at their peak, when it is over."""
    torch.cuda.reset_peak_memory_stats()
    before, taken = torch.cuda.memory_allocated(), []
    yield taken
    taken.append(torch.cuda.max_memory_allocated() - before)


def compiled(target: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """One more shape, mode or step of the same code is one more compilation of it, of which there may be eight by
    default: beyond that a call would be eager without a word. Here it raises, far beyond.
    """
    torch._dynamo.config.recompile_limit = COMPILATIONS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(target, dynamic=False, mode=mode)


def named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def present(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(t for t in result if t is not None)


def totals(outputs: tuple[Tensor, ...], signs: Tensor) -> list[float | None]:
    """The sum of each, by signs that begin anew where a row is longer; None where it is no number.

    Weights' gradients, a row of millions, are taken one by one.
    """
    size = outputs[0].shape[-1]
    changed = signs.double().repeat(-(-size // len(signs)))[:size]
    if outputs[0].dim() == 1:
        found = torch.stack([(each.double() * changed).sum() for each in outputs])
    else:
        found = (torch.stack(outputs).double() * changed).flatten(1).sum(1)
    return [each if isfinite(each) else None for each in found.tolist()]


if __name__ == "__main__":
    main()
