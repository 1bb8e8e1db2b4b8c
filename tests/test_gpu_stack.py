"""SPEC K1, K3, K5 on an NVIDIA GPU: a stack at the target sizes, its error beside plain PyTorch's, and its launches."""

from collections import Counter
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from tests import tiles_tier
from tests.cases import TARGET, Shape
from tests.kernels import seeded
from tests.numerics import errors
from tests.quick import slow_unless
from tests.stack_dispatch import by_pytorch
from tests.tiles_tier import Case, draw_call, draw_stack, fp32_products, launched, launches_of, outputs_of, truth_of

pytestmark = [pytest.mark.gpu, pytest.mark.upgrade]

HALVES = (torch.bfloat16, torch.float16)
TWELVE = Case("cross", TARGET, torch.bfloat16, 512, layers=12)
# Few rows, with the MLP in slices, and many; odd batches among both.
BATCHES = (1, 3, 33, 128)
TARGETS = [replace(TWELVE, shape=replace(TARGET, batch=batch), dtype=dtype) for batch in BATCHES for dtype in HALVES]
FP32 = [replace(TWELVE, shape=replace(TARGET, batch=batch), dtype=torch.float32) for batch in (1, 33)]
# Of the kernel for D 128: tiles with few rows, full to the last row, and one row past that; one stream; F of 1, 2 and 8
# times 128; heads of every width.
HOPPER_SHAPES = (
    Shape(1, 130, 3, 8, 16),
    Shape(3, 64, 64, 8, 16),
    Shape(2, 128, 192, 8, 16),
    Shape(5, 65, 1, 8, 16),
    Shape(1, 1, 1, 8, 16),
    Shape(2, 130, 3, 4, 32),
    Shape(2, 130, 3, 2, 64),
    Shape(2, 130, 0, 8, 16),
)
HOPPER = [Case("cross", shape, dtype, 256, "random", "tensor", layers=3) for shape in HOPPER_SHAPES for dtype in HALVES]
MANY_TILES = (Shape(200, 130, 1, 4, 32), Shape(200, 64, 65, 8, 16), Shape(200, 63, 64, 2, 64), Shape(300, 65, 0, 8, 16))
HOPPER += [Case("cross", shape, dtype, 256, "random", "tensor") for shape in MANY_TILES for dtype in HALVES]
HOPPER += [Case("cross", HOPPER_SHAPES[0], dtype, 128) for dtype in HALVES]
HOPPER += [Case("cross", Shape(33, 130, 3, 8, 16), dtype, 1024) for dtype in HALVES]
HOPPER += [Case(kind, Shape(3, 130, 0, 8, 16), torch.bfloat16, 256) for kind in ("plain", "conditioned")]
HOPPER += [Case("cross", Shape(2, 70, 5, 8, 16), torch.float16, 256, gain=3.0)]
# Of the kernel for a whole stack: in one launch and in several, streams that end within each of its tiles, one stream,
# F of 1 and 4 times 128, and logits that take the maximum.
PERSISTENT_SHAPES = (
    *(Shape(61, 130, 3, 8, 16), Shape(133, 129, 64, 8, 16), Shape(270, 192, 1, 8, 16), Shape(64, 128, 65, 8, 16)),
    *(Shape(70, 1, 192, 8, 16), Shape(34, 256, 0, 8, 16), Shape(90, 193, 0, 8, 16)),
)
PERSISTENT = [
    Case("cross", shape, dtype, 128, "random", "tensor", layers=3) for shape in PERSISTENT_SHAPES for dtype in HALVES
]
PERSISTENT += [Case("cross", PERSISTENT_SHAPES[0], dtype, 512, start="int", variant="expanded") for dtype in HALVES]
PERSISTENT += [Case(kind, Shape(66, 200, 0, 8, 16), torch.bfloat16, 256) for kind in ("plain", "conditioned")]
PERSISTENT += [
    Case("cross", PERSISTENT_SHAPES[0], torch.float16, 256, mask, gain=gain)
    for mask in (None, "empty-rows-and-columns", "all-empty")
    for gain in (3.0, 20.0)
]
PERSISTENT += [
    Case("cross", PERSISTENT_SHAPES[1], torch.bfloat16, 256, variant=name) for name in ("strided-rows", "large", "tiny")
]
OTHER_SIZES = [
    Case("cross", Shape(2, 70, 5, heads, dim_head), dtype, 192, "empty-rows-and-columns", "spaced-tensor")
    for heads, dim_head in ((1, 16), (3, 16), (5, 16), (1, 32), (2, 32), (1, 64))
    for dtype in HALVES
]
QUICK = (TARGETS[0], TARGETS[-2], FP32[0], HOPPER[0], HOPPER[2], PERSISTENT[0], OTHER_SIZES[0])
MASKED = pytest.mark.parametrize("masked", slow_unless(lambda masked: not masked, [False, True]), ids=["", "masked"])


def quick(cases: list[Case]) -> list[Any]:
    return slow_unless(lambda case: case in QUICK, cases)


@pytest.fixture(autouse=True)
def exact_fp32() -> Any:
    with fp32_products("highest"):
        yield


def drawn(case: Case, seed: int) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    rng = seeded(seed)
    stack = draw_stack(case, rng).to("cuda", case.dtype)
    return stack, *draw_call(case, "cuda", rng)


def errors_beside_pytorch(case: Case, precision: str, seed: int) -> tuple[dict[str, float], dict[str, float], Any]:
    """Relative L2 errors of the fused stack and of PyTorch's arithmetic of the same dtype, and the explanation."""
    (stack, inputs, options), got = drawn(case, seed), []

    def call() -> Any:
        return stack(**inputs, **options)

    with torch.no_grad():
        with fp32_products(precision):
            explanation = import_module("mmdit").explain(lambda: got.append(call()))
            vanilla = by_pytorch(call)
        truth = truth_of(case, stack, inputs, options)(torch.float64)
    return errors(outputs_of(got[0]), truth, 0.0), errors(outputs_of(vanilla), truth, 0.0), explanation


@MASKED
@pytest.mark.parametrize("case", quick(TARGETS), ids=str)
def test_twelve_layers_in_16_bits_are_no_further_from_the_truth_than_pytorch(
    case: Case, masked: bool, seed: int
) -> None:
    if masked:
        case = replace(case, mask="empty-rows-and-columns", start="tensor")
    fused, vanilla, explanation = errors_beside_pytorch(case, "highest", seed)
    assert launched(explanation) == launches_of(case, case.sliced, "cuda"), str(explanation)
    assert all(fused[name] <= error for name, error in vanilla.items()), f"{fused} against {vanilla}"


@MASKED
@pytest.mark.parametrize("case", quick(FP32), ids=str)
def test_twelve_layers_by_tf32_products_are_no_further_from_the_truth_than_pytorch(
    case: Case, masked: bool, seed: int
) -> None:
    if masked:
        case = replace(case, mask="empty-rows-and-columns", start="tensor")
    fused, vanilla, explanation = errors_beside_pytorch(case, "high", seed)
    assert "rows tier" in str(explanation)
    assert all(fused[name] <= 1.1 * error for name, error in vanilla.items()), f"{fused} against {vanilla}"


@MASKED
@pytest.mark.parametrize("case", quick(FP32), ids=str)
def test_twelve_layers_by_exact_fp32_products_are_exact(case: Case, masked: bool, seed: int) -> None:
    if masked:
        case = replace(case, mask="empty-rows-and-columns", start="tensor")
    fused, _, explanation = errors_beside_pytorch(case, "highest", seed)
    assert "rows tier" in str(explanation)
    assert max(fused.values()) <= 1e-5, fused


@pytest.mark.parametrize("case", quick([*HOPPER, *PERSISTENT, *OTHER_SIZES]), ids=str)
def test_a_stack_of_any_size_matches_the_oracle_in_the_launches_of_its_plan(case: Case, seed: int) -> None:
    tiles_tier.stack_matches_the_oracle(case, False, "cuda", seed)


@pytest.mark.parametrize("case", quick([*HOPPER[:2], *PERSISTENT[:6], *TARGETS[:2], *TARGETS[-2:]]), ids=str)
def test_two_runs_give_the_same_bits(case: Case, seed: int) -> None:
    tiles_tier.two_runs_give_the_same_bits(replace(case, mask="random", start="tensor"), "cuda", seed)


@pytest.mark.parametrize("case", quick([HOPPER[0], PERSISTENT[0], *TARGETS[:2]]), ids=str)
def test_weights_and_inputs_may_lie_at_any_address(case: Case, seed: int) -> None:
    tiles_tier.weights_may_lie_at_any_address(replace(case, layers=2), "cuda", seed)


@pytest.mark.parametrize("case", [TARGETS[0], replace(TARGETS[-1], mask="random")], ids=str)
def test_the_gpu_runs_the_launches_that_explain_names(mmdit: ModuleType, case: Case, seed: int) -> None:
    stack, inputs, options = drawn(case, seed)
    with torch.no_grad(), fp32_products("high"):
        stack(**inputs, **options)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            explanation = mmdit.explain(stack, **inputs, **options)
            torch.cuda.synchronize()
    ran = Counter(e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    assert launched(explanation) == launches_of(case, case.sliced, "cuda"), str(explanation)
    assert {name: ran[name] for name in set(explanation.launches)} == Counter(explanation.launches), ran
    assert not [name for name in ran if "gemm" in name or "attention" in name.removeprefix("joint_attention")], ran
