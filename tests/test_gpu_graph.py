"""SPEC K5 on an NVIDIA GPU: a stack's forward captured in a CUDA graph."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from tests.cases import Shape
from tests.kernels import seeded
from tests.numerics import TOLERANCE, relative_l2
from tests.tiles_tier import Case, draw_call, draw_stack

pytestmark = [pytest.mark.gpu, pytest.mark.upgrade]

SMALL = Case("cross", Shape(2, 70, 5, 8, 16), torch.bfloat16, 512)
# By the latency plan, the throughput plan, the rows tier; with masks and positions; of one stream.
CASES = (
    SMALL,
    replace(SMALL, forward=256, mask="random", start="tensor"),
    replace(SMALL, mask="empty-rows-and-columns", start="int"),
    replace(SMALL, dtype=torch.float32, mask="random", start="tensor"),
    replace(SMALL, kind="conditioned"),
    replace(SMALL, kind="plain", mask="int64"),
)


def drawn(case: Case, seed: int) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """A stack and two calls of it that differ in every value."""
    rng = seeded(seed)
    stack = draw_stack(case, rng).to("cuda", case.dtype)
    first, second = ({**inputs, **options} for inputs, options in (draw_call(case, "cuda", rng) for _ in range(2)))
    if case.start == "tensor":
        second["start_pos"] = first["start_pos"].flip(0)
    return stack, first, second


@torch.no_grad()
def assert_replays(graphed: Callable[..., Any], stack: nn.Module, call: dict[str, Any]) -> None:
    for got, want in zip(graphed(**call), stack(**call), strict=True):
        assert (got is None) == (want is None)
        assert want is None or torch.equal(got, want)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_replay_gives_the_bits_of_a_plain_call(case: Case, seed: int) -> None:
    stack, first, second = drawn(case, seed)
    graphed = stack.compile_graph(**first)
    for call in (first, second, first):
        assert_replays(graphed, stack, call)


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_weights_changed_in_place_are_seen(case: Case, seed: int) -> None:
    stack, first, second = drawn(case, seed)
    graphed = stack.compile_graph(**first)
    before = graphed(**second).x_out.double()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.mul_(0.7)
    assert relative_l2(graphed(**second).x_out, before) > 1e-2
    assert_replays(graphed, stack, second)


def replace_a_parameter(stack: nn.Module) -> None:
    stack.layers[1].mlp[0].weight = nn.Parameter(-stack.layers[1].mlp[0].weight)


def replace_a_layer(stack: nn.Module) -> None:
    stack.layers[1].mlp[0] = nn.Linear(128, 512, device="cuda", dtype=torch.bfloat16)


MOVES: dict[str, Callable[[nn.Module], Any]] = {
    "another-dtype": lambda stack: stack.half(),
    "new-data": lambda stack: [setattr(p, "data", p.data.clone()) for p in stack.parameters()],
    "new-parameter": replace_a_parameter,
    "new-module": replace_a_layer,
}


@pytest.mark.parametrize("move", MOVES)
def test_weights_that_moved_raise(mmdit: ModuleType, move: str, seed: int) -> None:
    stack, first, _ = drawn(SMALL, seed)
    graphed = stack.compile_graph(**first)
    MOVES[move](stack)
    with pytest.raises(mmdit.MMDiTError, match="weights"):
        graphed(**first)


def longer(t: torch.Tensor) -> torch.Tensor:
    return torch.cat((t, t[:, :1]), dim=1)


# case, the argument, what is given for it
UNLIKE: dict[str, tuple[Case, str, Callable[[Any], Any]]] = {
    "longer-x": (SMALL, "x", longer),
    "longer-context": (SMALL, "context", longer),
    "y-of-rank-3": (SMALL, "y", lambda y: y[:, None]),
    "x-of-another-dtype": (SMALL, "x", lambda x: x.half()),
    "x-on-the-cpu": (SMALL, "x", lambda x: x.cpu()),
    "a-mask-where-there-was-none": (SMALL, "attn_mask", lambda _: torch.ones(2, 70, 70, device="cuda")),
    "no-mask-where-there-was-one": (CASES[1], "attn_mask", lambda _: None),
    "mask-of-another-dtype": (CASES[1], "attn_mask", lambda mask: mask.int()),
    "no-context": (SMALL, "context", lambda _: None),
    "another-int": (CASES[2], "start_pos", lambda start: start + 1),
    "no-position-for-an-int": (CASES[2], "start_pos", lambda _: None),
    "a-tensor-for-an-int": (CASES[2], "start_pos", lambda start: torch.full((2,), start, device="cuda")),
    "an-int-for-a-tensor": (CASES[1], "start_pos", lambda start: 3),
    "an-int-for-no-position": (SMALL, "start_pos", lambda _: 0),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_inputs_unlike_the_captured_ones_raise_and_are_named(mmdit: ModuleType, name: str, seed: int) -> None:
    case, argument, change = UNLIKE[name]
    stack, first, _ = drawn(case, seed)
    graphed = stack.compile_graph(**first)
    with pytest.raises(mmdit.MMDiTError) as raised:
        graphed(**first | {argument: change(first[argument])})
    assert raised.value.argument == argument
    assert_replays(graphed, stack, first)


def test_a_call_overwrites_the_outputs_of_the_one_before_and_no_input(seed: int) -> None:
    stack, first, second = drawn(SMALL, seed)
    graphed = stack.compile_graph(**first)
    kept = {name: t.clone() for name, t in first.items() if t is not None}
    early = graphed(**first)
    before = early.x_out.clone()
    late = graphed(**second)
    assert [t.data_ptr() for t in early] == [t.data_ptr() for t in late]
    assert not torch.equal(early.x_out, before)
    assert all(torch.equal(first[name], t) for name, t in kept.items()), "an input was written to"


def test_inputs_of_other_strides_replay_the_same(seed: int) -> None:
    stack, first, second = drawn(SMALL, seed)
    graphed = stack.compile_graph(**{n: t.mT.contiguous().mT if n == "x" else t for n, t in first.items()})
    transposed = {name: t if t is None else t.mT.contiguous().mT for name, t in second.items()}
    with torch.no_grad():
        want = stack(**second).x_out.double()
    assert relative_l2(graphed(**transposed).x_out, want) <= TOLERANCE[torch.float32]


def test_two_graphs_of_one_stack_do_not_disturb_each_other(seed: int) -> None:
    stack, first, second = drawn(SMALL, seed)
    graphs = [stack.compile_graph(**first), stack.compile_graph(**second)]
    outputs = [graphed(**call).x_out for graphed, call in zip(graphs, (first, second), strict=True)]
    with torch.no_grad():
        assert all(torch.equal(o, stack(**c).x_out) for o, c in zip(outputs, (first, second), strict=True))


def test_a_graph_outlives_its_stack_s_other_calls(seed: int) -> None:
    """What a plain call allocates or keeps between calls is not the graph's."""
    stack, first, second = drawn(SMALL, seed)
    graphed = stack.compile_graph(**first)
    with torch.no_grad():
        want = stack(**second).x_out.clone()
        for _ in range(3):
            stack(**first)
            draw_stack(SMALL, seeded(seed)).to("cuda", SMALL.dtype)(**first)
        torch.cuda.empty_cache()
    assert torch.equal(graphed(**second).x_out, want)


def test_a_graph_may_be_captured_and_called_in_inference_mode_and_out_of_it(seed: int) -> None:
    stack, first, second = drawn(SMALL, seed)
    with torch.inference_mode():
        graphed = stack.compile_graph(**{name: t if t is None else t.clone() for name, t in first.items()})
        assert_replays(graphed, stack, first)
    assert_replays(graphed, stack, second)
    with torch.inference_mode():
        assert_replays(graphed, stack, first)


def test_batches_share_the_graph_of_their_bucket(mmdit: ModuleType, seed: int) -> None:
    """Bit for bit as a plain call with a batch as large as the bucket, in which samples don't see each other."""
    stack, first, _ = drawn(replace(SMALL, shape=Shape(8, 70, 5, 8, 16)), seed)
    forward = import_module("mmdit.runtime.cuda_graph").BucketedForward(stack, (2, 8))
    for batch, bucket in ((1, 2), (2, 2), (3, 8), (5, 8)):
        given, whole = ({n: t if t is None else t[:rows] for n, t in first.items()} for rows in (batch, bucket))
        with torch.no_grad():
            want = stack(**whole)
        assert all(torch.equal(a, b[:batch]) for a, b in zip(forward(**given), want, strict=True))
    assert len(forward.graphs) == 2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_graph_is_captured_on_its_inputs_gpu_whichever_is_current(seed: int) -> None:
    stack, first, second = drawn(SMALL, seed)
    stack.compile_graph(**first)  # by which torch chooses the stream of its own captures
    stack = stack.to("cuda:1")
    first, second = ({n: t if t is None else t.to("cuda:1") for n, t in call.items()} for call in (first, second))
    assert_replays(stack.compile_graph(**first), stack, second)
