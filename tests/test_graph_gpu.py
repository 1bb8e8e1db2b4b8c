"""SPEC G5 on a GPU: what fuse makes of a vanilla stack is as fast as the package's own, and graphs launch kernels."""

import statistics
from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest
import torch

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


def test_a_fused_vanilla_stack_is_as_fast_as_the_packages_own(mmdit: ModuleType, rng: torch.Generator) -> None:
    model = build(vanilla(), TARGET_STACK, TARGET, rng).to("cuda", torch.bfloat16)
    own = TARGET_STACK.build(mmdit, TARGET).to("cuda", torch.bfloat16).eval()
    own.load_state_dict(model.state_dict(), assign=True)  # the same memory: where weights lie tells in the L2
    inputs = {n: t.to("cuda", torch.bfloat16) for n, t in draw_inputs(TARGET_STACK, TARGET, rng).items()}
    fused = graph_package().fuse(model)
    with torch.no_grad():
        calls = [stack.compile_graph(**inputs) for stack in (fused, own)]
        times = [[milliseconds(partial(call, **inputs)) for call in calls] for _ in range(ROUNDS)]
        assert all(torch.equal(a, b) for a, b in zip(fused(**inputs), own(**inputs), strict=True))
    mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    assert mine <= SAME_SPEED * theirs, f"{mine:.3f} ms, the package's own {theirs:.3f}"


def test_a_fused_graph_launches_kernels_on_the_gpu(mmdit: ModuleType, rng: torch.Generator) -> None:
    model = build(vanilla(), BLOCK_CROSS, TARGET, rng).cuda()
    inputs = {name: t.cuda() for name, t in draw_inputs(BLOCK_CROSS, TARGET, rng).items()}
    opt = graph_package().GraphOptimizer(model, inputs, device="cuda", repeats=3)
    made = opt.optimize(["redundant_ops", "fuse_mmdit"], strict=True)
    with torch.no_grad():
        launches = mmdit.explain(made.eval(), **inputs).launches
    assert {"norm_adaln_forward_kernel", "pack_heads_kernel", "gated_residual_kernel"} <= set(launches)
