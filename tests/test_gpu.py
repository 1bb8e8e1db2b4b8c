"""On an NVIDIA GPU: both trees' numbers in fp32, bf16 and fp16, and proof that the fused tree launched its kernels."""

from functools import partial
from itertools import product
from types import ModuleType

import pytest
import torch

from tests.adaln import OPS, VARIANTS, adaln_inputs, adaln_values, assert_adaln_matches_oracle
from tests.cases import (
    BLOCK_CONDITIONED,
    BLOCK_CROSS,
    CROSS,
    MASKS,
    SELF,
    SMALL,
    STACK,
    TARGET,
    TARGET_STACK,
    Kind,
    Shape,
    random_mask,
)
from tests.numerics import TOLERANCE, assert_close
from tests.quick import slow_unless
from tests.verify import assert_inference_matches_oracle, assert_matches_oracle, build, draw_inputs

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = ((1, 1, 16), (3, 7, 100), (2, 5, 257), (32, 186, 128), (2, 512, 3072))
ATTENTION_SHAPES = (Shape(3, 1, 1, 1, 16), Shape(2, 7, 5, 5, 6), Shape(2, 130, 3, 2, 24), Shape(1, 300, 129, 1, 64))
ATTENTION_CASES = [(s, d) for s, d in product(ATTENTION_SHAPES, DTYPES) if d != torch.float32 or s.dim_head <= 16]
KINDS = (SELF, CROSS, BLOCK_CONDITIONED, BLOCK_CROSS, STACK)


@pytest.fixture(autouse=True)
def ieee_fp32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def cuda(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.cuda() for name, t in inputs.items()}


def kernels_on_the_gpu(profile: torch.profiler.profile) -> list[str]:
    cuda = torch.autograd.DeviceType.CUDA
    return [event.name for event in profile.events() if event.device_type == cuda]


@pytest.mark.contract
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_functional_forward_and_gradients_match_the_oracle(
    mmdit: ModuleType, op: str, size: tuple[int, int, int], dtype: torch.dtype, rng: torch.Generator
) -> None:
    inputs = cuda(adaln_inputs(op, size, rng))
    assert_adaln_matches_oracle(mmdit, op, inputs, dtype)


@pytest.mark.contract
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("op", OPS)
def test_functional_on_any_strides_and_scale_matches_the_oracle(
    mmdit: ModuleType, op: str, variant: str, rng: torch.Generator
) -> None:
    inputs = cuda(adaln_inputs(op, (3, 186, 100), rng))
    assert_adaln_matches_oracle(mmdit, op, VARIANTS[variant](inputs), torch.float32)


@pytest.mark.contract
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", slow_unless(lambda shape: shape.length != 65, [SMALL, Shape(2, 65, 64, 8, 16), TARGET]), ids=str
)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_module_forward_and_gradients_match_the_oracle(
    mmdit: ModuleType, kind: Kind, shape: Shape, dtype: torch.dtype, rng: torch.Generator
) -> None:
    module = build(mmdit, kind, shape, rng).cuda().to(dtype)
    inputs = {name: t.cuda().to(dtype) for name, t in draw_inputs(kind, shape, rng).items()}
    assert_matches_oracle(module, kind, shape, inputs, rng)


@pytest.mark.contract
@pytest.mark.parametrize("dtype", slow_unless(lambda dtype: dtype == torch.bfloat16, DTYPES), ids=str)
def test_stack_of_12_layers_with_mask_and_positions_matches_the_oracle(
    mmdit: ModuleType, dtype: torch.dtype, rng: torch.Generator
) -> None:
    module = build(mmdit, TARGET_STACK, TARGET, rng).cuda().to(dtype)
    inputs = {name: t.cuda().to(dtype) for name, t in draw_inputs(TARGET_STACK, TARGET, rng).items()}
    attn_mask = random_mask(TARGET, rng).index_fill(1, torch.tensor(3), False).cuda()
    options = {"attn_mask": attn_mask, "start_pos": torch.tensor([0, 3900]).cuda()}
    assert_matches_oracle(module, TARGET_STACK, TARGET, inputs, rng, **options)


@pytest.mark.contract
def test_inputs_on_two_devices_raise_a_device_error(mmdit: ModuleType) -> None:
    with pytest.raises(mmdit.DeviceError):
        mmdit.RMSNormSelfAttention(16, 2).cuda()(torch.ones(2, 7, 16))


@pytest.mark.upgrade
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_explain_names_the_kernels_that_the_gpu_ran(
    mmdit: ModuleType, op: str, dtype: torch.dtype, rng: torch.Generator
) -> None:
    inputs = cuda(adaln_inputs(op, (3, 186, 128), rng))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        explanation = mmdit.explain(adaln_values, getattr(mmdit, op), inputs, dtype)
        torch.cuda.synchronize()
    ran = kernels_on_the_gpu(profile)
    assert explanation.path == "fused", str(explanation)
    assert all("tiles of sm_" in decision.reason for decision in explanation.decisions), str(explanation)
    assert len(explanation.launches) >= 2, "expected a forward and a backward kernel"
    assert [name for name in explanation.launches if not any(name in kernel for kernel in ran)] == []


@pytest.mark.upgrade
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", [None, "random", "empty-rows-and-columns"])
@pytest.mark.parametrize("kind", [*KINDS, TARGET_STACK], ids=str)
def test_inference_takes_only_kernels_and_matches_the_oracle(
    mmdit: ModuleType, kind: Kind, mask: str | None, dtype: torch.dtype, rng: torch.Generator
) -> None:
    module = build(mmdit, kind, TARGET, rng).cuda().to(dtype)
    inputs = {name: t.cuda().to(dtype) for name, t in draw_inputs(kind, TARGET, rng).items()}
    attn_mask = None if mask is None else MASKS[mask](random_mask(TARGET, rng)).cuda()
    check = partial(assert_inference_matches_oracle, module, kind, TARGET, inputs, attn_mask=attn_mask)
    explanation = mmdit.explain(check)
    assert explanation.path == "fused", str(explanation)


@pytest.mark.upgrade
@pytest.mark.parametrize(("shape", "dtype"), ATTENTION_CASES, ids=str)
def test_the_attention_kernel_matches_the_oracle_on_any_size_and_any_logits(
    mmdit: ModuleType, shape: Shape, dtype: torch.dtype, rng: torch.Generator
) -> None:
    module = build(mmdit, CROSS, shape, rng).cuda()
    inputs = {name: t.cuda().to(dtype) for name, t in draw_inputs(CROSS, shape, rng).items()}
    for gain in (1.0, 2.0):
        for norm in (module.rms_norm_q, module.rms_norm_k, module.c_rms_norm_q, module.c_rms_norm_k):
            norm.weight.data.mul_(gain)
        check = partial(assert_inference_matches_oracle, module.to(dtype), CROSS, shape, inputs)
        assert mmdit.explain(check).path == "fused"


@pytest.mark.upgrade
@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
def test_a_block_compiles_whole_with_inductor_and_keeps_its_numbers(
    mmdit: ModuleType, gradients: bool, rng: torch.Generator
) -> None:
    module, inputs = build(mmdit, BLOCK_CROSS, TARGET, rng).cuda(), draw_inputs(BLOCK_CROSS, TARGET, rng)
    compiled = torch.compile(module, fullgraph=True)
    outputs = []
    with torch.set_grad_enabled(gradients):
        explanation = mmdit.explain(lambda: outputs.append(compiled(**cuda(inputs))))
        assert_close(outputs[0].x_out, module(**cuda(inputs)).x_out, TOLERANCE[torch.float32])
    assert explanation.launches.count("norm_adaln_forward_kernel") == 4, str(explanation)


@pytest.mark.upgrade
@pytest.mark.parametrize("op", OPS)
def test_two_runs_give_the_same_bits_forward_and_backward(mmdit: ModuleType, op: str, rng: torch.Generator) -> None:
    inputs = cuda(adaln_inputs(op, (32, 186, 128), rng))
    assert mmdit.explain(getattr(mmdit, op), **inputs).path == "fused"
    first, second = (adaln_values(getattr(mmdit, op), inputs, torch.bfloat16) for _ in range(2))
    for name, t in {**first.outputs, **first.gradients}.items():
        assert torch.equal(t, {**second.outputs, **second.gradients}[name]), f"{name} differs between two runs"
