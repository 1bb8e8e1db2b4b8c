"""SPEC G5 on a GPU: through each door a vanilla stack is as fast as the package's own, and graphs launch kernels."""

import statistics
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import graph_training
from tests.cases import BLOCK_CROSS, TARGET, TARGET_STACK
from tests.graph_models import graph_package
from tests.vanilla import vanilla
from tests.verify import build, draw_inputs

pytestmark = [pytest.mark.upgrade, pytest.mark.gpu]

SAME_SPEED = 1.03
ROUNDS, CALLS = 15, 20


def milliseconds(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(CALLS):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / CALLS


def graphed(call: Callable[..., Any], inputs: dict[str, Tensor]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of a call, and what its replays write."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call(**inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call(**inputs)
    return graph, outputs


def by_swap(model: nn.Module, inputs: dict[str, Tensor]) -> Callable[..., Any]:
    return graph_package().fuse(model)


def by_graph(model: nn.Module, inputs: dict[str, Tensor]) -> Callable[..., Any]:
    opt = graph_package().GraphOptimizer(model, inputs, device="cuda", repeats=0, batches=())
    return opt.optimize(["redundant_ops", "fuse_mmdit"], strict=True).eval()


def by_compile(model: nn.Module, inputs: dict[str, Tensor]) -> Callable[..., Any]:
    return torch.compile(model, backend="mmdit", fullgraph=True)


def by_swap_compiled(model: nn.Module, inputs: dict[str, Tensor]) -> Callable[..., Any]:
    return torch.compile(graph_package().fuse(model), fullgraph=True)


def step(call: Callable[..., Any], model: nn.Module) -> Callable[..., tuple[Tensor, ...]]:
    """What gives the call's outputs and, for cotangents that are the inputs, all gradients."""

    def run(**inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = tuple(call(**inputs))
        wanted = [*inputs.values(), *model.parameters()]
        return outputs + torch.autograd.grad(outputs, wanted, [inputs["x"], inputs["context"]])

    return run


@pytest.mark.slow  # timed: not beside other processes on the GPU
@pytest.mark.parametrize("recorded", [False, True], ids=["inference", "step"])
@pytest.mark.parametrize("door", [by_swap, by_swap_compiled, by_graph, by_compile])
def test_a_fused_vanilla_stack_is_as_fast_as_the_packages_own(
    door: Callable[..., Any], recorded: bool, mmdit: ModuleType, rng: torch.Generator
) -> None:
    model = build(vanilla(), TARGET_STACK, TARGET, rng).to("cuda", torch.bfloat16)
    own = TARGET_STACK.build(mmdit, TARGET).to("cuda", torch.bfloat16).eval()
    own.load_state_dict(model.state_dict(), assign=True)  # the same memory: where weights lie tells in the L2
    inputs = {n: t.to("cuda", torch.bfloat16) for n, t in draw_inputs(TARGET_STACK, TARGET, rng).items()}
    fused = door(model, inputs)
    if recorded:
        fused, own = step(fused, model), step(own, own)
        inputs = {name: t.requires_grad_() for name, t in inputs.items()}
    with torch.set_grad_enabled(recorded):
        (graph, outputs), (own_graph, own_outputs) = graphed(fused, inputs), graphed(own, inputs)
    times = [[milliseconds(g.replay) for g in (graph, own_graph)] for _ in range(ROUNDS)]
    assert all(torch.equal(a, b) for a, b in zip(outputs, own_outputs, strict=True))
    mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    assert mine <= SAME_SPEED * theirs, f"{mine:.3f} ms, the package's own {theirs:.3f}"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    "check",
    [graph_training.a_rewritten_step_is_the_packages_own, graph_training.a_compiled_step_is_the_packages_own],
    ids=lambda check: check.__name__,
)
def test_a_training_step_on_the_gpu(check: Callable[..., None], dropout: float, mmdit: ModuleType, seed: int) -> None:
    check(True, dropout, "cuda", seed)


def test_a_fused_graph_launches_kernels_on_the_gpu(mmdit: ModuleType, rng: torch.Generator) -> None:
    model = build(vanilla(), BLOCK_CROSS, TARGET, rng).cuda()
    inputs = {name: t.cuda() for name, t in draw_inputs(BLOCK_CROSS, TARGET, rng).items()}
    opt = graph_package().GraphOptimizer(model, inputs, device="cuda", repeats=3)
    made = opt.optimize(["redundant_ops", "fuse_mmdit"], strict=True)
    with torch.no_grad():
        launches = mmdit.explain(made.eval(), **inputs).launches
    assert {"norm_adaln_forward_kernel", "pack_heads_kernel", "gated_residual_kernel"} <= set(launches)
