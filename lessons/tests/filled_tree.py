"""Checks of a starting tree filled from the lessons, run in the interpreter's process; each raises or returns."""

from functools import partial
from importlib import import_module

import torch

from tests import oracle
from tests.adaln import adaln_inputs
from tests.cases import BLOCK_CONDITIONED, BLOCK_CROSS, MASKS, STACK, Shape, random_mask
from tests.kernels import counted_kernels, seeded
from tests.numerics import TOLERANCE, assert_close
from tests.verify import assert_inference_matches_oracle, assert_matches_oracle, build, draw_inputs

SHAPE = Shape(2, 13, 5, 3, 8)  # no size of it divides a tile
OF_A_BLOCK = {"layernorm_adaln", "rmsnorm", "finish_branch"}
INFERENCE = {
    "block": (BLOCK_CONDITIONED, OF_A_BLOCK | {"attention"}),
    "block with a context": (BLOCK_CROSS, OF_A_BLOCK | {"joint_attention"}),
    "stack": (STACK, OF_A_BLOCK | {"joint_attention"}),
}


def inference_takes_only_the_lessons_kernels(name: str, mask: str | None, seed: int) -> None:
    mmdit, rng, (kind, ops) = import_module("mmdit"), seeded(seed), INFERENCE[name]
    module, inputs = build(mmdit, kind, SHAPE, rng), draw_inputs(kind, SHAPE, rng)
    attn_mask = None if mask is None else MASKS[mask](random_mask(SHAPE, rng))
    check = partial(assert_inference_matches_oracle, module, kind, SHAPE, inputs, attn_mask=attn_mask)
    with counted_kernels() as launched:
        explanation = mmdit.explain(check)
    assert explanation.path == "fused", str(explanation)
    assert {decision.op for decision in explanation.decisions} == ops
    assert list(explanation.launches) == launched
    assert len(launched) >= len(explanation.decisions)


def gradients_take_the_backward_that_was_taught_and_pytorch_beside_it(seed: int) -> None:
    mmdit, rng = import_module("mmdit"), seeded(seed)
    module, inputs = build(mmdit, BLOCK_CROSS, SHAPE, rng), draw_inputs(BLOCK_CROSS, SHAPE, rng)
    with counted_kernels() as launched:
        explanation = mmdit.explain(assert_matches_oracle, module, BLOCK_CROSS, SHAPE, inputs, rng)
    paths = {decision.op: decision.path for decision in explanation.decisions}
    assert paths.pop("layernorm_adaln") == "fused", str(explanation)
    assert set(paths.values()) == {"pytorch"}, str(explanation)
    assert any("backward" in name for name in launched), launched
    assert list(explanation.launches) == launched


def rmsnorm_adaln_takes_its_kernel(seed: int) -> None:
    mmdit, inputs = import_module("mmdit"), adaln_inputs("rmsnorm_adaln", (3, 7, 100), seeded(seed))
    found = []
    explanation = mmdit.explain(lambda: found.append(mmdit.rmsnorm_adaln(**inputs)))
    assert explanation.path == "fused", str(explanation)
    assert explanation.launches
    truth = oracle.rmsnorm_adaln(**{name: t.double() for name, t in inputs.items()})
    assert_close(found[0], truth, TOLERANCE[torch.float32])
