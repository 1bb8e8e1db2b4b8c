"""SPEC A1-A5 and A7: signatures, the named tuple, the state_dict that checkpoints rely on."""

import inspect
import io
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.cases import BLOCK, BLOCK_CONDITIONED, BLOCK_CROSS, CROSS, SELF, SMALL, TARGET_STACK, Kind
from tests.layout import LAYOUTS
from tests.verify import build, draw_inputs

pytestmark = pytest.mark.contract

REQUIRED = inspect.Parameter.empty
SIGNATURES: dict[str, dict[str, Any]] = {
    "RMSNormSelfAttention": {"dim": REQUIRED, "num_head": 4, "max_seq_len": 4096, "linear": False},
    "RMSNormSelfAttention.forward": {"x": REQUIRED, "attn_mask": None, "start_pos": None},
    "RMSNormSelfCrossAttention": {
        "dim": REQUIRED, "num_head": 4, "use_context": False, "max_seq_len": 4096, "linear": False,
    },
    "RMSNormSelfCrossAttention.forward": {"x": REQUIRED, "context": None, "attn_mask": None, "start_pos": None},
    "MMDiTBlock": {
        "dim_base": REQUIRED, "num_attn_head": 4, "dim_head": None, "dim_feedforward": 2048, "dropout": 0.1,
        "conditioning": False, "use_cross_attn": False,
    },
    "MMDiTBlock.forward": {"x": REQUIRED, "y": None, "attn_mask": None, "context": None, "start_pos": None},
    "MMDiT": {"config": REQUIRED},
    "MMDiT.forward": {"x": REQUIRED, "y": None, "context": None, "attn_mask": None, "start_pos": None},
    "MMDiTConfig": {
        "dim_base": 128, "num_layers": 12, "num_attn_head": 8, "dim_feedforward": 512, "dropout": 0.1,
        "conditioning": True, "use_cross_attn": True,
    },
    "layernorm_adaln": {"x": REQUIRED, "scale": REQUIRED, "shift": REQUIRED, "eps": 1e-6},
    "rmsnorm_adaln": {"x": REQUIRED, "scale": REQUIRED, "shift": REQUIRED, "eps": 1e-6, "weight": None},
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_has_these_arguments_and_defaults_in_this_order(mmdit: ModuleType, name: str) -> None:
    owner, _, method = name.partition(".")
    target = getattr(mmdit, owner)
    parameters = inspect.signature(getattr(target, method) if method else target).parameters
    found = {p.name: p.default for p in parameters.values() if p.name != "self"}
    assert list(found.items()) == list(SIGNATURES[name].items())


def test_gpt2block_is_the_block(mmdit: ModuleType) -> None:
    assert mmdit.GPT2Block is mmdit.MMDiTBlock


def test_attention_output_is_a_named_tuple_with_an_optional_context(mmdit: ModuleType) -> None:
    assert mmdit.AttentionOutput._fields == ("x_out", "context_out")
    assert mmdit.AttentionOutput(torch.ones(1)).context_out is None


@pytest.mark.parametrize("kind", [SELF, CROSS, BLOCK, BLOCK_CROSS], ids=str)
def test_every_module_returns_an_attention_output(mmdit: ModuleType, kind: Kind, rng: torch.Generator) -> None:
    out = build(mmdit, kind, SMALL, rng)(**draw_inputs(kind, SMALL, rng))
    assert isinstance(out, mmdit.AttentionOutput)


@pytest.mark.parametrize("name", LAYOUTS)
def test_state_dict_has_exactly_the_keys_and_shapes_of_the_published_checkpoints(mmdit: ModuleType, name: str) -> None:
    kind, shape, layout = LAYOUTS[name]
    assert {key: tuple(t.shape) for key, t in kind.build(mmdit, shape).state_dict().items()} == layout


@pytest.mark.parametrize("kind", [SELF, CROSS, BLOCK, BLOCK_CONDITIONED, BLOCK_CROSS, TARGET_STACK], ids=str)
def test_rotary_tables_are_buffers_outside_the_state_dict(mmdit: ModuleType, kind: Kind) -> None:
    module = kind.build(mmdit, SMALL)
    buffers = {name for name, _ in module.named_buffers()}
    assert buffers
    assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}


@pytest.mark.parametrize("kind", [SELF, CROSS, BLOCK, BLOCK_CROSS], ids=str)
def test_a_saved_checkpoint_loads_strictly_and_gives_the_same_numbers(
    mmdit: ModuleType, kind: Kind, rng: torch.Generator
) -> None:
    saved, fresh = build(mmdit, kind, SMALL, rng), kind.build(mmdit, SMALL).eval()
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    inputs = draw_inputs(kind, SMALL, rng)
    assert torch.equal(saved(**inputs).x_out, fresh(**inputs).x_out)


@pytest.mark.parametrize("kind", [BLOCK, BLOCK_CONDITIONED, BLOCK_CROSS], ids=str)
def test_dropout_acts_in_training_and_only_there(mmdit: ModuleType, kind: Kind, rng: torch.Generator) -> None:
    module, inputs = build(mmdit, kind, SMALL, rng), draw_inputs(kind, SMALL, rng)
    still, same = module(**inputs).x_out, module(**inputs).x_out
    assert torch.equal(still, same)
    module.train()
    assert not torch.equal(module(**inputs).x_out, module(**inputs).x_out)


def test_without_dropout_training_mode_changes_nothing(mmdit: ModuleType, rng: torch.Generator) -> None:
    module = mmdit.MMDiTBlock(16, 2, dim_feedforward=32, dropout=0.0)
    x = torch.randn(2, 7, 16, generator=rng)
    assert torch.equal(module.train()(x).x_out, module.eval()(x).x_out)
