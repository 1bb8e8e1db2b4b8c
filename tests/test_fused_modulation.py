"""SPEC K1, K2, K5: scale, shift and gate of every stream of every layer, in one launch."""

from collections.abc import Callable

import pytest
import torch

from tests import modulations
from tests.modulations import FALLBACKS, VARIANTS

pytestmark = pytest.mark.upgrade

Run = Callable[..., None]
DTYPES = (torch.float32, torch.float16)  # Triton's interpreter computes bf16 wrongly
SIZES = ((1, 16, 1), (17, 48, 2), (65, 16, 3), (3, 128, 2), (1, 256, 1), (16, 32, 24))  # B, D, how many weights


def size_id(size: tuple[int, int, int]) -> str:
    return "B{}-D{}-N{}".format(*size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=size_id)
def test_modulations_match_the_oracle_in_one_launch(run: Run, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    run(modulations.modulations_match_the_oracle, size, dtype, "plain")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "plain"])
def test_modulations_match_the_oracle_on_any_strides_and_scale(run: Run, variant: str, dtype: torch.dtype) -> None:
    run(modulations.modulations_match_the_oracle, (5, 48, 2), dtype, variant)


@pytest.mark.parametrize("name", FALLBACKS)
def test_what_the_kernel_cannot_take_goes_to_pytorch(run: Run, name: str) -> None:
    run(modulations.takes_pytorch, name)


def test_weights_of_another_call_are_told_apart(run: Run) -> None:
    run(modulations.weights_of_another_call_are_told_apart)


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES, ids=size_id)
def test_modulations_in_bf16_match_the_oracle_on_a_gpu(size: tuple[int, int, int], seed: int) -> None:
    modulations.modulations_match_the_oracle(size, torch.bfloat16, "plain", "cuda", seed)
