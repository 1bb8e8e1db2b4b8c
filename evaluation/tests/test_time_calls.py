"""The worker that times calls: what it does with a GPU, shown on a CPU by events and graphs that only keep order."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from evaluation.worker import time_calls
from evaluation.worker.time_calls import Timer

CALLS, DIM = 3, 8
ENTRY = {"make": {"function": "layernorm_adaln"}, "dtype": "float32", "mode": "inference"}
SIGNS = "+-" * (DIM // 2)

log: list[str] = []


class Event:
    """It tells when it was recorded by its place in the log."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.place = len(log)
        log.append("event")


class Flush:
    def zero_(self) -> None:
        log.append("flush")


def layernorm_adaln(x: Tensor, scale: Tensor) -> Tensor:
    log.append("call")
    return x * scale[:, None]


def capture(call: Any) -> Any:
    """As a graph: the same memory at each replay."""
    first = call()
    kept = [t.detach().clone() for t in (first if isinstance(first, tuple) else (first,))]

    def replay() -> Any:
        found = call()
        for mine, theirs in zip(kept, found if isinstance(found, tuple) else (found,), strict=True):
            mine.copy_(theirs)
        return tuple(kept) if isinstance(found, tuple) else kept[0]

    return replay


@pytest.fixture
def timer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Timer:
    monkeypatch.setattr(time_calls, "Event", Event)
    monkeypatch.setattr(time_calls, "elapsed", lambda start, end: float(end.place - start.place))
    monkeypatch.setattr(time_calls, "capture", capture)
    for name, value in (("memory_allocated", 100), ("max_memory_allocated", 150), ("reset_peak_memory_stats", None)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    found = Timer(SimpleNamespace(layernorm_adaln=layernorm_adaln), tmp_path, "cpu")
    found.flush = Flush()
    tensors = {f"c{n}.x": torch.randn(2, 3, DIM) for n in range(CALLS)}
    tensors |= {f"c{n}.scale": torch.randn(2, DIM) for n in range(CALLS)}
    save_file(tensors, tmp_path / "values.safetensors")
    found.load("values.safetensors", CALLS)
    found.begin("case", "", ENTRY)
    log.clear()
    return found


@pytest.mark.parametrize("contender", ["eager", "graph"])
def test_each_call_follows_a_flush_and_lies_between_two_events(timer: Timer, contender: str):
    timer.prepare("case", contender)
    log.clear()
    told = timer.go("case", contender, SIGNS)
    assert log == ["flush", "event", "call", "event"] * CALLS
    assert told["seconds"] == [2e-3] * CALLS  # by place in the log, as milliseconds
    assert told["forms"] == ["torch.Tensor torch.float32 (2, 3, 8) cpu"]


class Cache:
    """As an L2: what was used is there until a flush."""

    def __init__(self) -> None:
        self.held = False

    def zero_(self) -> None:
        self.held = False

    def call(self, x: Tensor, scale: Tensor) -> Tensor:
        """A place in the log stands for the time that a miss takes."""
        log.extend([] if self.held else ["miss"] * 9)
        self.held = True
        return x * scale[:, None]


def test_without_the_flush_a_call_has_its_values_in_the_cache(timer: Timer, monkeypatch: pytest.MonkeyPatch):
    timer.flush = cache = Cache()
    timer.targets["case"] = cache.call
    timer.prepare("case", "eager")
    assert timer.go("case", "eager", SIGNS)["seconds"] == [1e-2] * CALLS
    monkeypatch.setattr(Cache, "zero_", lambda _: None)
    assert timer.go("case", "eager", SIGNS)["seconds"] == [1e-3] * CALLS


@pytest.mark.parametrize("contender", ["eager", "graph"])
def test_outputs_are_those_of_the_signed_values_and_are_summed(timer: Timer, tmp_path: Path, contender: str):
    timer.prepare("case", contender)
    told = timer.go("case", contender, SIGNS)
    signs = torch.tensor([1.0, -1.0] * (DIM // 2))
    for number in range(CALLS):
        want = timer.values["x"][number] * signs * (timer.values["scale"][number] * signs)[:, None]
        assert torch.equal(timer.outputs[number][0], want)
        assert told["sums"][number] == (pytest.approx(float((want.double() * signs).sum())),)
    timer.give(1, "given.safetensors", whole=True)
    assert (tmp_path / "given.safetensors").exists()


def test_a_mode_of_a_case_is_compiled_once(timer: Timer, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr(time_calls, "compiled", lambda target, mode: asked.append(mode) or target)
    for contender in ("eager", "compiled", "compiled_graph", "max_autotune"):
        timer.prepare("case", contender)
    assert asked == ["default", "max-autotune-no-cudagraphs"]


@pytest.mark.parametrize("allowed", [64, 3])
def test_no_case_of_many_is_silently_not_compiled(timer: Timer, monkeypatch: pytest.MonkeyPatch, allowed: int):
    """By stand-ins for Inductor's two modes: with four cases the default limit of eight would be reached."""
    seen: list[str] = []
    real = torch.compile

    def compile_as_is(target: Any, dynamic: bool, mode: str) -> Any:
        def backend(graph: Any, _inputs: Any) -> Any:
            seen.append(mode)
            return graph.forward

        return real(target, dynamic=dynamic, backend=backend)

    monkeypatch.setattr(torch, "compile", compile_as_is)
    monkeypatch.setattr(time_calls, "COMPILATIONS", allowed)
    timer.targets["case"] = torch.nn.SiLU()
    told = []
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):  # put back afterwards
        for size, contender in product(range(1, 6), ("compiled", "max_autotune")):
            timer.values = {"input": torch.zeros(CALLS, 2, size, DIM)}
            try:
                timer.prepare("case", contender)
            except Exception as error:
                told.append(type(error).__name__)
    assert len(seen) + len(told) == 10
    assert told == [] if allowed == 64 else set(told) == {"FailOnRecompileLimitHit"}
    torch.compiler.reset()


@pytest.mark.parametrize("contender", ["eager", "graph"])
def test_a_step_gives_outputs_and_gradients_of_the_signed_values(timer: Timer, contender: str):
    module = torch.nn.Linear(DIM, DIM)
    timer.targets["case"], timer.steps = lambda x: module(x), {"case"}
    timer.values = {"x": torch.randn(CALLS, 2, DIM), "g.x_out": torch.randn(CALLS, 2, DIM)}
    timer.prepare("case", contender)
    told = timer.go("case", contender, SIGNS)
    signs = torch.tensor([1.0, -1.0] * (DIM // 2))
    for number in range(CALLS):
        x, cotangent = (timer.values[key][number] * signs for key in ("x", "g.x_out"))
        assert torch.equal(timer.outputs[number][0], module(x))
        torch.testing.assert_close(timer.outputs[number][1], cotangent @ module.weight)
        assert told["sums"][number][1] == pytest.approx(float((timer.outputs[number][1].double() * signs).sum()))
    timer.targets["case"] = module  # its weights' gradients, one after the other, bias first
    timer.values["input"] = timer.values.pop("x")
    timer.prepare("case", contender)
    timer.go("case", contender, SIGNS)
    for number in range(CALLS):
        x, cotangent = (timer.values[key][number] * signs for key in ("input", "g.x_out"))
        want = torch.cat((cotangent.sum(0), (cotangent.T @ x).flatten()))
        torch.testing.assert_close(timer.outputs[number][2], want)
    timer.targets["case"] = torch.nn.Linear(DIM, DIM, bias=False)  # one weight: kept, not the memory that it is in
    timer.prepare("case", contender)
    timer.go("case", contender, SIGNS)
    kept = [each[2].reshape(DIM, DIM) for each in timer.outputs]
    for number, gradient in enumerate(kept):
        x, cotangent = (timer.values[key][number] * signs for key in ("input", "g.x_out"))
        torch.testing.assert_close(gradient, cotangent.T @ x)


def test_a_gradient_of_another_type_is_told(timer: Timer):
    class Later(Tensor):
        pass

    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1.0

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            return cotangent.as_subclass(Later)

    timer.targets["case"], timer.steps = lambda x: Odd.apply(x), {"case"}
    timer.values = {"x": torch.randn(CALLS, 2, DIM), "g.x_out": torch.randn(CALLS, 2, DIM)}
    timer.prepare("case", "eager")
    assert [form for form in timer.go("case", "eager", SIGNS)["forms"] if "Later" in form]


def test_a_sum_that_is_no_number_is_told_as_none(timer: Timer):
    timer.values["x"][1, 0, 0, 0] = torch.nan
    timer.prepare("case", "eager")
    sums = timer.go("case", "eager", SIGNS)["sums"]
    assert [each[0] is None for each in sums] == [False, True, False]


def test_a_profile_tells_kernels_and_memory(timer: Timer, monkeypatch: pytest.MonkeyPatch):
    assert timer.profile("case", "eager") == {"kernels": None, "peak_bytes": None}
    timer.prepare("case", "eager")
    timer.prepare("case", "graph")
    timer.device = "cuda"
    monkeypatch.setattr(time_calls, "synchronize", lambda: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 130)
    kernel = SimpleNamespace(
        name="k", device_type=torch.autograd.DeviceType.CUDA, time_range=SimpleNamespace(elapsed_us=lambda: 2.0)
    )
    host = SimpleNamespace(name="aten::mul", device_type=torch.autograd.DeviceType.CPU)

    class Profile:
        def __init__(self, activities: object) -> None:
            assert activities

        def __enter__(self) -> "Profile":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def events(self) -> list[SimpleNamespace]:
            return [kernel, host, kernel]

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    told = timer.profile("case", "eager")
    assert told == {"kernels": [{"name": "k", "seconds": pytest.approx(4e-6)}], "peak_bytes": 30}
    assert timer.profile("case", "graph")["peak_bytes"] == 50  # what its capture took
