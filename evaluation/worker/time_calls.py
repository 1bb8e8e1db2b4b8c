"""Times calls of one tree at a judge's word: `time_calls.py TREE FOLDER DEVICE CHANNEL`, CHANNEL a socket's number.

A line of JSON asks, a line answers. Values to call with lie in FOLDER, and become final only by the signs that come
with "go"; its answer holds sums over all outputs, which nobody can tell who has not computed them by then. What this
process says of its own times is checked against the judge's clock. Functions of other modules are taken before the
tree is imported, so that one that is replaced later is not the one that is called.
"""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from math import isfinite
from os import fdopen
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from capture import capture
from run_cases import describe, make_module

sys.path.pop(0)

FLUSH_BYTES = 1 << 28  # several times any GPU's L2
MODES = {"compiled": "default", "max_autotune": "max-autotune-no-cudagraphs"}
CAPTURED = {"graph", "compiled_graph", "max_autotune"}
synchronize, elapsed = torch.cuda.synchronize, torch.cuda.Event.elapsed_time

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


class Contender:
    """One way to call a case's module or function. Inputs lie in the same memory at each turn, by their place in it."""

    def __init__(self, call: Callable[..., Any], name: str, values: Values) -> None:
        self.call = call
        calls = len(next(iter(values.values())))
        self.buffers = [{key: t[number].clone() for key, t in values.items()} for number in range(calls)]
        if name.removesuffix("_graph") in MODES:
            mode = MODES[name.removesuffix("_graph")]
            self.call = torch.compile(call, dynamic=False, mode=mode)
        self.static: Values | None = None
        if name in CAPTURED:
            self.static = {key: t.clone() for key, t in self.buffers[0].items()}
            self.call(**self.static)
            self.replay = capture(lambda: self.call(**self.static))

    def __call__(self, number: int) -> Any:
        return self.call(**self.buffers[number]) if self.static is None else self.replay()

    def place(self, number: int) -> None:
        """The captured call's own inputs, before it is timed."""
        for key, t in (self.static or {}).items():
            t.copy_(self.buffers[number][key])

    def keep(self, result: Any) -> tuple[Tensor, ...]:
        """Outputs, copied where the next call overwrites them."""
        found = (result,) if isinstance(result, Tensor) else tuple(t for t in result if t is not None)
        return found if self.static is None else tuple(t.clone() for t in found)


class Timer:
    """Answers to what a judge asks, each a method by the question's name."""

    def __init__(self, mmdit: Any, folder: Path, device: str) -> None:
        self.mmdit, self.folder, self.device = mmdit, folder, device
        self.targets: dict[str, Callable[..., Any]] = {}
        self.contenders: dict[tuple[str, str], Contender] = {}
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
        """Make a case's module, or take its function."""
        if "function" in entry["make"]:
            self.targets[case] = getattr(self.mmdit, entry["make"]["function"])
        else:
            self.targets[case] = make_module(self.mmdit, entry, load_file(self.folder / weights, device=self.device))
        return {}

    def prepare(self, case: str, contender: str) -> dict[str, Any]:
        """Compile or capture what has to be, and call it for the first time; the seconds of that."""
        with torch.inference_mode():
            start = perf_counter()
            made = Contender(self.targets[case], contender, self.values)
            made.keep(made(0))
            self.wait()
            seconds = perf_counter() - start
        self.contenders[case, contender] = made
        return {"first_call_seconds": seconds}

    def go(self, case: str, contender: str, signs: str) -> dict[str, Any]:
        """Call it on each of the values, their features' signs changed as `signs` says."""
        made = self.contenders[case, contender]
        changed = torch.tensor([1.0 if sign == "+" else -1.0 for sign in signs], device=self.device)
        with torch.inference_mode():
            for key, t in self.values.items():
                given = t * changed.to(t.dtype) if t.shape[-1] == len(signs) else t
                for buffers, each in zip(made.buffers, given, strict=True):
                    buffers[key].copy_(each)
            seconds, self.outputs = self.timed(made)
            sums = [totals(each, changed) for each in zip(*self.outputs, strict=True)]
        forms = {f"{type(t).__module__}.{type(t).__qualname__} {t.dtype} {tuple(t.shape)} {t.device.type}"
                 for each in self.outputs for t in each}  # fmt: skip
        return {"seconds": seconds, "sums": list(zip(*sums, strict=True)), "forms": sorted(forms)}

    def timed(self, made: Contender) -> tuple[list[float], list[tuple[Tensor, ...]]]:
        """Seconds of each call, by events where there is a GPU, and what it gave."""
        outputs, seconds, marks = [], [], []
        for number in range(len(made.buffers)):
            made.place(number)
            if self.flush is not None:
                self.flush.zero_()
                marks.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
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

    def give(self, call: int, file: str) -> dict[str, Any]:
        """Leave the outputs of one of the calls of the last go."""
        plain = {str(n): t.detach().cpu().contiguous().clone() for n, t in enumerate(self.outputs[call])}
        save_file(plain, self.folder / file)
        return {}

    def profile(self, case: str, contender: str) -> dict[str, Any]:
        """On a GPU: seconds by kernel of one call, and the bytes that it allocates at its peak."""
        if self.device != "cuda":
            return {"kernels": None, "peak_bytes": None}
        made = self.contenders[case, contender]
        with torch.inference_mode():
            self.wait()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            made(0)
            self.wait()
            peak = torch.cuda.max_memory_allocated() - before
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
                made(0)
                self.wait()
        kernels: dict[str, float] = {}
        for event in profiler.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                kernels[event.name] = kernels.get(event.name, 0.0) + event.time_range.elapsed_us() / 1e6
        told = [{"name": name, "seconds": seconds} for name, seconds in kernels.items()]
        return {"kernels": told or None, "peak_bytes": peak}

    def wait(self) -> None:
        if self.device == "cuda":
            synchronize()


def totals(outputs: tuple[Tensor, ...], signs: Tensor) -> list[float | None]:
    """The signed sum of each; None where it is no number."""
    found = (torch.stack(outputs).double() * signs.double()).flatten(1).sum(1).tolist()
    return [each if isfinite(each) else None for each in found]


if __name__ == "__main__":
    main()
