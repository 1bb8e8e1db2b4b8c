"""SPEC A8, K1, K2, K5: the fused path, run without a GPU through Triton's interpreter in a process of its own."""

from collections.abc import Callable
from itertools import product

import pytest
import torch

from tests import kernels
from tests.adaln import OPS, SIZES, VARIANTS
from tests.quick import slow_unless

pytestmark = pytest.mark.upgrade

Interpreted = Callable[..., None]
DTYPES = (torch.float32, torch.float16)  # Triton's interpreter computes bf16 wrongly


@pytest.mark.parametrize(
    ("size", "dtype"),
    slow_unless(lambda size, dtype: size[1] < 186 or dtype == torch.float32, product(SIZES, DTYPES)),
    ids=str,
)
@pytest.mark.parametrize("op", OPS)
def test_kernels_match_the_oracle_forward_and_backward(
    interpreted: Interpreted, op: str, size: tuple[int, int, int], dtype: torch.dtype, seed: int
) -> None:
    interpreted(kernels.matches_the_oracle, op, size, dtype, "plain", seed)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "plain"])
@pytest.mark.parametrize("op", OPS)
def test_kernels_match_the_oracle_on_any_strides_and_scale(
    interpreted: Interpreted, op: str, variant: str, seed: int
) -> None:
    interpreted(kernels.matches_the_oracle, op, (3, 7, 100), torch.float32, variant, seed)


@pytest.mark.parametrize("kind", kernels.FUSED_KINDS)
def test_modules_take_the_kernels_and_match_the_oracle(interpreted: Interpreted, kind: str, seed: int) -> None:
    interpreted(kernels.module_matches_the_oracle, kind, seed)


@pytest.mark.parametrize("op", OPS)
def test_explain_names_the_kernels_that_the_interpreter_ran(interpreted: Interpreted, op: str, seed: int) -> None:
    interpreted(kernels.says_what_it_launched, op, seed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_a_dtype_without_a_kernel_takes_pytorch_and_explain_names_it(
    interpreted: Interpreted, op: str, dtype: torch.dtype, seed: int
) -> None:
    interpreted(kernels.takes_pytorch_for_what_it_cannot_do, op, dtype, seed)


@pytest.mark.parametrize("op", slow_unless(lambda op: op == "rmsnorm_adaln", OPS))
def test_two_runs_give_the_same_bits_forward_and_backward(interpreted: Interpreted, op: str, seed: int) -> None:
    interpreted(kernels.two_runs_give_the_same_bits, op, seed)


@pytest.mark.parametrize("op", OPS)
def test_registered_ops_pass_opcheck(interpreted: Interpreted, op: str, seed: int) -> None:
    interpreted(kernels.ops_pass_opcheck, op, seed)


@pytest.mark.parametrize("op", OPS)
def test_registered_forward_op_passes_gradcheck_in_fp64(interpreted: Interpreted, op: str, seed: int) -> None:
    interpreted(kernels.forward_op_passes_gradcheck, op, seed)


@pytest.mark.parametrize("op", OPS)
def test_compiled_ops_keep_the_fused_op_whole_without_a_graph_break(
    interpreted: Interpreted, op: str, seed: int
) -> None:
    interpreted(kernels.op_compiles_whole, op, seed)


@pytest.mark.parametrize("kind", slow_unless(lambda kind: kind != "stack", kernels.FUSED_KINDS))
def test_compiled_modules_keep_the_fused_op_whole_without_a_graph_break(
    interpreted: Interpreted, kind: str, seed: int
) -> None:
    interpreted(kernels.module_compiles_whole, kind, seed)
