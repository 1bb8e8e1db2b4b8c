"""What only a GPU can show of timed calls: all contenders are ready, cheats on streams and events told, the L2 flushed.

Not run where there is none, and the summary says so.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import pytest
import torch
from rich.console import Console

from evaluation.judge.case import Case, Sizes
from evaluation.judge.speed import judge_speed
from evaluation.judge.speed_cases import BASELINES, CONTENDERS, Plan
from evaluation.suite.command import ROOT
from evaluation.suite.stage import staged
from evaluation.tests.gallery.stopwatch import Stopwatch, judged, stopwatch
from evaluation.tests.gallery.timed import GPU_CHEATS, GPU_LOOK_ALIKES, TimedEntry
from evaluation.worker.capture import capture
from evaluation.worker.time_calls import Timer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SIZES = Sizes(1, 186, 64, 8, 16, hidden=512, layers=2)


@pytest.mark.parametrize("mode", ["inference", "backward"])
def test_every_contender_of_both_trees_is_timed_and_right(mode: str):
    """Two layers of the target: eager, graph, compiled, max-autotune; of after its own kernels."""
    plan = Plan(Case("stack", SIZES, "bfloat16", mode=mode), calls=16, rounds=6)
    with ExitStack() as stack:
        trees = [stack.enter_context(staged(ROOT / f"repository_{role}", role)) for role in ("before", "after")]
        found, failures = judge_speed(*trees, (plan,), 900, "cuda", Console(quiet=True))
    assert failures == ()
    (case,) = found.cases
    assert {each.contender for each in case.contenders if each.worker == "before"} == set(BASELINES["cuda"])
    assert {each.contender for each in case.contenders if each.worker == "after"} == set(CONTENDERS["cuda"])
    assert [each.unmeasured for each in case.contenders if each.unmeasured] == []
    assert all(each.kernels and each.peak_bytes for each in case.contenders)
    assert case.path in ("fused", "mixed")
    assert case.least_seconds < min(min(min(times) for times in each.rounds) for each in case.contenders if each.rounds)


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stopwatch]:
    with stopwatch(tmp_path_factory.mktemp("timed"), seed=20261121, device="cuda") as found:
        yield found


@pytest.mark.parametrize("entry", GPU_CHEATS, ids=str)
def test_a_cheat_of_a_gpu_is_told_and_passes_without_the_hosts_clock(
    watch: Stopwatch, entry: TimedEntry, monkeypatch: pytest.MonkeyPatch
):
    raw, folder = watch.raw(entry.code)
    assert entry.told in judged(raw, folder)[1][0].message
    monkeypatch.setattr("evaluation.judge.speed.clock_problem", lambda *_: None)
    assert judged(raw, folder)[1] == ()


@pytest.mark.parametrize("entry", GPU_LOOK_ALIKES, ids=str)
def test_an_honest_candidate_with_graphs_of_its_own_passes(watch: Stopwatch, entry: TimedEntry):
    assert judged(*watch.raw(entry.code))[1] == ()


def test_without_the_flush_what_fits_the_l2_is_read_from_there(tmp_path: Path):
    """A sum over 16 MB, again and again."""
    timer = Timer(None, tmp_path, "cuda")
    timer.targets["case"] = lambda x: x.sum(1, keepdim=True)
    timer.values = {"x": torch.randn(1, 1024, 4096, device="cuda").expand(16, 1024, 4096)}
    timer.prepare("case", "eager")
    made = timer.contenders["case", "eager"]
    made.buffers = made.buffers[:1] * 16  # the same memory for all
    flushed = median(timer.timed(made)[0])
    timer.flush = torch.empty(1, device="cuda")
    assert median(timer.timed(made)[0]) < 0.8 * flushed


def test_a_capture_that_fails_leaves_the_stream_as_it_was():
    stream, x = torch.cuda.current_stream(), torch.zeros(3, device="cuda")
    with pytest.raises(RuntimeError):
        capture(lambda: x.sum().item())
    assert torch.cuda.current_stream() == stream
    assert capture(lambda: x + 1)().tolist() == [1.0, 1.0, 1.0]
