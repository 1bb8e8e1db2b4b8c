"""SPEC K1, K2, K5: joint attention with gradients, as a registered op with a registered backward."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests import attention_ops
from tests.attention_gradients import Case
from tests.cases import Shape

pytestmark = pytest.mark.upgrade

Run = Callable[..., None]
FP32, FP16 = torch.float32, torch.float16
SHAPE = Shape(2, 5, 3, 2, 16)
MASKS = (None, "empty-rows-and-columns")
CASES = [Case(SHAPE, FP16, mask) for mask in MASKS]


@pytest.mark.parametrize("case", [*CASES, Case(replace(SHAPE, context=0), FP16, strided=True)], ids=str)
def test_gradients_take_the_kernels_and_match_the_oracle(run: Run, case: Case) -> None:
    run(attention_ops.gradients_match_the_oracle, case, "fused")


@pytest.mark.parametrize("case", [Case(SHAPE, FP32), Case(replace(SHAPE, dim_head=32), FP16)], ids=str)
def test_gradients_for_which_no_kernel_is_the_faster_take_pytorch(run: Run, case: Case) -> None:
    run(attention_ops.gradients_match_the_oracle, case, "pytorch")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_ops_pass_opcheck(run: Run, case: Case) -> None:
    run(attention_ops.ops_pass_opcheck, case)


def test_the_op_compiles_whole(run: Run) -> None:
    run(attention_ops.compiled_whole, CASES[0])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_with_a_graph_are_those_of_pytorch(run: Run, case: Case) -> None:
    run(attention_ops.gradients_with_a_graph_are_plain_pytorch_s, case)


@pytest.mark.parametrize("mask", [None, "causal", "all-empty"])
def test_the_references_pass_gradcheck(mask: str | None, seed: int) -> None:
    attention_ops.references_pass_gradcheck(Case(Shape(1, 4, 2, 2, 4), FP32, mask), seed)


@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
@pytest.mark.parametrize("mask", [*MASKS, "all-empty"])
def test_the_references_match_the_oracle(mask: str | None, dtype: torch.dtype, seed: int) -> None:
    attention_ops.references_match_the_oracle(Case(SHAPE, dtype, mask), seed)
