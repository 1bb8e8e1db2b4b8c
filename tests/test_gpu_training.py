"""SPEC K1, K3, K5 on an NVIDIA GPU: a training step at the target sizes, its error beside plain PyTorch's, in CUDA
graphs, and what it takes of memory.
"""

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import training_tier
from tests.cases import TARGET, Shape
from tests.numerics import Values, errors
from tests.quick import slow_unless
from tests.stack_dispatch import by_pytorch
from tests.tiles_tier import Case, fp32_products
from tests.training_tier import Drawn, assert_trains, draw, draw_as_it_is, explained, truth_of

pytestmark = [pytest.mark.gpu, pytest.mark.upgrade]

HALVES = (torch.bfloat16, torch.float16)
TWELVE = Case("cross", TARGET, torch.bfloat16, 512, layers=12)
TARGETS = [replace(TWELVE, shape=replace(TARGET, batch=batch), dtype=dtype) for batch in (3, 33) for dtype in HALVES]
RATIO = 1.2  # of the plain error: how sums over rows round is the backend's own
NORM_RATIO = 1.5  # of queries' and keys' norms, whose sums over rows all but cancel out
SHAPES = (
    *(Shape(1, 130, 3, 8, 16), Shape(3, 64, 64, 8, 16), Shape(5, 65, 1, 8, 16), Shape(2, 130, 3, 2, 64)),
    *(Shape(2, 70, 5, 3, 16), Shape(2, 70, 5, 1, 32), Shape(200, 64, 65, 4, 32)),
)
SIZES = [
    Case("cross", shape, dtype, forward, "empty-rows-and-columns", "tensor")
    for shape, forward in zip(SHAPES, (256, 512, 128, 512, 192, 64, 256), strict=True)
    for dtype in HALVES
]
SIZES += [Case(kind, Shape(3, 130, 0, 8, 16), torch.bfloat16, 256) for kind in ("plain", "conditioned")]


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("masked", slow_unless(lambda masked: not masked, [False, True]), ids=["", "masked"])
@pytest.mark.parametrize("case", slow_unless(lambda case: case == TARGETS[0], TARGETS), ids=str)
def test_no_gradient_of_twelve_layers_is_further_from_the_truth_than_pytorch_s(
    case: Case, masked: bool, recompute: str, seed: int
) -> None:
    if masked:
        case = replace(case, mask="empty-rows-and-columns", start="tensor")
    drawn = draw(case, "cuda", seed)
    drawn.stack.recompute = recompute
    got, explanation = explained(drawn)
    assert_trains(explanation)
    truth = truth_of(drawn)(torch.float64)
    fused, vanilla = errors(got, truth, 0.0), errors(by_pytorch(drawn.values), truth, 0.0)
    ratios = {name: error / vanilla[name] for name, error in fused.items()}
    further = {name: r for name, r in ratios.items() if r > (NORM_RATIO if "rms_norm_" in name else RATIO)}
    assert not further, further


@pytest.mark.parametrize("case", slow_unless(lambda case: case in (SIZES[0], SIZES[-1]), SIZES), ids=str)
def test_every_size_matches_the_oracle(case: Case, seed: int) -> None:
    training_tier.gradients_match_the_oracle(case, "none", False, "cuda", seed)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_two_runs_give_the_same_bits(recompute: str, seed: int) -> None:
    training_tier.two_runs_give_the_same_bits(replace(TARGETS[2], mask="random"), recompute, "cuda", seed)


def test_fp32_takes_the_modules_and_says_why(seed: int) -> None:
    _, explanation = explained(draw_as_it_is(Case("cross", TARGET, torch.float32, 512), "cuda", seed))
    assert "gradients" in str(explanation)
    assert "block_backward_kernel" not in explanation.launches


def captured(drawn: Drawn) -> tuple[torch.cuda.CUDAGraph, list[Values]]:
    """A step of forward and backward in a CUDA graph, and its values, overwritten by each replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        drawn.values()
    torch.cuda.current_stream().wait_stream(side)
    graph, got = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        got.append(drawn.values())
    return graph, got


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_cuda_graph_replays_a_step(recompute: str, seed: int) -> None:
    drawn = draw(replace(TARGETS[0], layers=3), "cuda", seed)
    drawn.stack.recompute = recompute
    eager = drawn.values()
    graph, got = captured(drawn)
    for parameter in drawn.stack.parameters():
        parameter.data.mul_(1.5)
    graph.replay()
    changed = {name: t.clone() for name, t in got[0].gradients.items()}
    want = drawn.values()
    assert all(torch.equal(t, changed[name]) for name, t in want.gradients.items())
    assert not torch.equal(eager.outputs["x"], want.outputs["x"])


def test_each_replay_drops_anew(seed: int) -> None:
    drawn = draw(replace(TARGETS[0], layers=2), "cuda", seed)
    drawn.stack.train()
    graph, got = captured(drawn)
    outputs: list[Tensor] = []
    for _ in range(2):
        graph.replay()
        outputs.append(got[0].outputs["x"].clone())
    assert not torch.equal(*outputs)


def test_a_whole_step_with_a_fused_optimizer_is_captured(seed: int) -> None:
    case = replace(TARGETS[0], layers=2)
    trained: list[list[Tensor]] = []
    for in_graph in (False, True):
        drawn = draw(case, "cuda", seed)
        optimizer = torch.optim.AdamW(drawn.stack.parameters(), lr=1e-3, fused=True, capturable=True)
        before = [p.detach().clone() for p in drawn.stack.parameters()]

        def step(drawn: Drawn = drawn, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            out = drawn.stack(**drawn.inputs, **drawn.options)
            torch.autograd.backward([out.x_out, out.context_out], list(drawn.cotangents.values()))
            optimizer.step()

        if in_graph:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            graph.replay()
        else:
            step()
            step()
        after = [p.detach().clone() for p in drawn.stack.parameters()]
        assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "a weight was not trained"
        trained.append(after)
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


def test_loss_scaling_by_grad_scaler_is_undone(seed: int) -> None:
    drawn = draw(replace(TARGETS[1], layers=2), "cuda", seed)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    optimizer = torch.optim.SGD(drawn.stack.parameters(), lr=0.0)
    got: list[dict[str, Tensor]] = []
    for scaled in (False, True):
        optimizer.zero_grad()
        out = drawn.stack(**drawn.inputs, **drawn.options)
        loss = (out.x_out.float() * drawn.cotangents["x"]).mean()
        (scaler.scale(loss) if scaled else loss * 2.0**10).backward()
        if scaled:
            scaler.unscale_(optimizer)
        got.append({name: p.grad.clone() for name, p in drawn.stack.named_parameters()})
    assert all(torch.equal((t.float() / 2.0**10).to(t.dtype), got[1][name]) for name, t in got[0].items())


def test_a_small_task_is_learnt(seed: int) -> None:
    """Loss after 60 steps, with dropout, beside PyTorch's arithmetic from the same start."""
    losses: list[float] = []
    for fused in (True, False):
        drawn = draw(Case("cross", Shape(16, 70, 5, 8, 16), torch.bfloat16, 256), "cuda", seed)
        drawn.stack.train()
        optimizer = torch.optim.AdamW(drawn.stack.parameters(), lr=1e-3)
        for _ in range(60):

            def loss(drawn: Drawn = drawn) -> Tensor:
                out = drawn.stack(**drawn.inputs).x_out
                return nn.functional.mse_loss(out.float(), drawn.cotangents["x"].float())

            optimizer.zero_grad()
            value = loss() if fused else by_pytorch(loss)
            value.backward()
            optimizer.step()
        losses.append(value.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.1), losses


@pytest.fixture(autouse=True)
def exact_fp32() -> Any:
    with fp32_products("highest"):
        yield


def test_explain_names_the_tier_and_what_it_launched(seed: int) -> None:
    drawn = draw(replace(TARGETS[0], layers=2), "cuda", seed)
    explanation = import_module("mmdit").explain(drawn.values)
    assert_trains(explanation)
    for name in ("block_backward_kernel", "heads_backward_kernel", "sum_parts_kernel"):
        assert explanation.launches.count(name) == 2, str(explanation)
