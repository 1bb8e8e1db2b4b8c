"""What must hold whatever the numbers are: symmetries, identities, and inputs left as they were."""

from types import ModuleType

import pytest
import torch

from tests.cases import BLOCK_CONDITIONED, BLOCK_CROSS, CROSS, CROSS_LINEAR, LINEAR, SELF, SMALL, SOFTMAX, STACK, Kind
from tests.numerics import TOLERANCE, assert_close
from tests.verify import build, draw_inputs

pytestmark = pytest.mark.contract

FP32 = TOLERANCE[torch.float32]


@pytest.mark.parametrize("kind", [CROSS, CROSS_LINEAR, BLOCK_CROSS, STACK], ids=str)
def test_permuting_the_context_permutes_its_output_and_leaves_x(
    mmdit: ModuleType, kind: Kind, rng: torch.Generator
) -> None:
    module, inputs = build(mmdit, kind, SMALL, rng), draw_inputs(kind, SMALL, rng)
    order = torch.randperm(SMALL.context, generator=rng)
    want, got = module(**inputs), module(**{**inputs, "context": inputs["context"][:, order]})
    assert_close(got.x_out, want.x_out, FP32)
    assert_close(got.context_out, want.context_out[:, order], FP32)


@pytest.mark.parametrize("kind", [*SOFTMAX, *LINEAR], ids=str)
def test_a_sample_does_not_depend_on_its_batch(mmdit: ModuleType, kind: Kind, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, kind, SMALL, rng), draw_inputs(kind, SMALL, rng)
    alone = module(**{name: t[:1] for name, t in inputs.items()})
    for got, want in zip(alone, module(**inputs), strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert_close(got, want[:1], FP32)


@pytest.mark.parametrize("kind", [BLOCK_CONDITIONED, BLOCK_CROSS, STACK], ids=str)
def test_a_modulation_of_zero_makes_the_block_the_identity(mmdit: ModuleType, kind: Kind, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, kind, SMALL, rng), draw_inputs(kind, SMALL, rng)
    for name, parameter in module.named_parameters():
        if "adaLN_modulation" in name:
            parameter.data.zero_()
    out = module(**inputs)
    assert torch.equal(out.x_out, inputs["x"])
    assert out.context_out is None or torch.equal(out.context_out, inputs["context"])


@pytest.mark.parametrize("kind", [*SOFTMAX, *LINEAR], ids=str)
def test_a_mask_that_shows_everything_changes_nothing(mmdit: ModuleType, kind: Kind, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, kind, SMALL, rng), draw_inputs(kind, SMALL, rng)
    attn_mask = torch.ones(SMALL.batch, SMALL.length, SMALL.length, dtype=torch.bool)
    assert_close(module(**inputs, attn_mask=attn_mask).x_out, module(**inputs).x_out, FP32)


@pytest.mark.parametrize("kind", [SELF, CROSS], ids=str)
def test_a_masked_row_of_x_does_not_reach_the_others(mmdit: ModuleType, kind: Kind, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, kind, SMALL, rng), draw_inputs(kind, SMALL, rng)
    attn_mask = torch.ones(SMALL.batch, SMALL.length, SMALL.length).index_fill(2, torch.tensor(3), 0.0)
    want = module(**inputs, attn_mask=attn_mask)
    inputs["x"][:, 3] += 100.0
    got = module(**inputs, attn_mask=attn_mask)
    others = torch.arange(SMALL.length) != 3
    assert_close(got.x_out[:, others], want.x_out[:, others], FP32)
    assert got.context_out is None or torch.equal(got.context_out, want.context_out)


@pytest.mark.parametrize("kind", [BLOCK_CONDITIONED, BLOCK_CROSS, STACK], ids=str)
def test_the_condition_may_have_a_length_axis_of_one(mmdit: ModuleType, kind: Kind, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, kind, SMALL, rng), draw_inputs(kind, SMALL, rng)
    rows = {**inputs, "y": inputs["y"][:, None]}
    assert torch.equal(module(**rows).x_out, module(**inputs).x_out)


@pytest.mark.parametrize("kind", [*SOFTMAX, *LINEAR], ids=str)
def test_inputs_and_weights_are_left_as_they_were(mmdit: ModuleType, kind: Kind, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, kind, SMALL, rng), draw_inputs(kind, SMALL, rng)
    inputs["attn_mask"] = torch.rand(SMALL.batch, SMALL.length, SMALL.length, generator=rng).round()
    inputs["start_pos"] = torch.tensor([3, 5])
    watched = inputs | module.state_dict()
    copies = {name: t.clone() for name, t in watched.items()}
    module(**inputs)
    assert [name for name, t in watched.items() if not torch.equal(t, copies[name])] == []


@pytest.mark.parametrize("kind", [*SOFTMAX, *LINEAR], ids=str)
def test_strided_inputs_give_what_contiguous_ones_give(mmdit: ModuleType, kind: Kind, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, kind, SMALL, rng), draw_inputs(kind, SMALL, rng)
    strided = {name: t.mT.contiguous().mT for name, t in inputs.items()}
    assert not any(t.is_contiguous() for t in strided.values())
    for got, want in zip(module(**strided), module(**inputs), strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert_close(got, want, FP32)


def test_repeated_calls_give_the_same_bits(mmdit: ModuleType, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, STACK, SMALL, rng), draw_inputs(STACK, SMALL, rng)
    assert torch.equal(module(**inputs).x_out, module(**inputs).x_out)
