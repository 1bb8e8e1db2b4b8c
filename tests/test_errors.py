"""SPEC A9: bad input raises the package's own error, which names the argument, what was expected and what was got."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import ones

pytestmark = pytest.mark.contract

X = ones(2, 7, 16)
Y = ones(2, 16)
CONTEXT = ones(2, 5, 16)


class Wrong(NamedTuple):
    """A call that must fail: the error's class, the argument it names, and the call."""

    error: str
    argument: str
    call: Callable[[ModuleType], Any]


def attend(*args: Any, **kwargs: Any) -> Callable[[ModuleType], Any]:
    return lambda m: m.RMSNormSelfAttention(16, 2, max_seq_len=20)(*args, **kwargs)


def cross(*args: Any, use_context: bool = True, **kwargs: Any) -> Callable[[ModuleType], Any]:
    return lambda m: m.RMSNormSelfCrossAttention(16, 2, use_context=use_context)(*args, **kwargs)


def block(*args: Any, conditioning: bool = True, use_cross_attn: bool = True, **kwargs: Any) -> Callable[..., Any]:
    options = {"conditioning": conditioning, "use_cross_attn": use_cross_attn}
    return lambda m: m.MMDiTBlock(16, 2, dim_feedforward=32, **options)(*args, **kwargs)


def stack(*args: Any, **kwargs: Any) -> Callable[[ModuleType], Any]:
    config = {"dim_base": 16, "num_attn_head": 2, "num_layers": 1, "dim_feedforward": 32}
    return lambda m: m.MMDiT(m.MMDiTConfig(**config))(*args, **kwargs)


def layernorm(*args: Any, **kwargs: Any) -> Callable[[ModuleType], Any]:
    return lambda m: m.layernorm_adaln(*args, **kwargs)


def rmsnorm(*args: Any, **kwargs: Any) -> Callable[[ModuleType], Any]:
    return lambda m: m.rmsnorm_adaln(*args, **kwargs)


WRONG = {
    "dim-not-divisible": Wrong("ConfigError", "dim", lambda m: m.RMSNormSelfAttention(18, 4)),
    "odd-head-dim": Wrong("ConfigError", "dim", lambda m: m.RMSNormSelfAttention(12, 4)),
    "cross-dim-not-divisible": Wrong("ConfigError", "dim", lambda m: m.RMSNormSelfCrossAttention(18, 4)),
    "no-heads": Wrong("ConfigError", "num_head", lambda m: m.RMSNormSelfAttention(16, 0)),
    "no-positions": Wrong("ConfigError", "max_seq_len", lambda m: m.RMSNormSelfAttention(16, 2, max_seq_len=0)),
    "block-dim-not-divisible": Wrong("ConfigError", "dim_base", lambda m: m.MMDiTBlock(18, 4)),
    "block-dim-head-of-another-size": Wrong("ConfigError", "dim_head", lambda m: m.MMDiTBlock(16, 2, dim_head=4)),
    "block-cross-without-conditioning": Wrong(
        "ConfigError", "use_cross_attn", lambda m: m.MMDiTBlock(16, 2, use_cross_attn=True)
    ),
    "block-dropout-above-1": Wrong("ConfigError", "dropout", lambda m: m.MMDiTBlock(16, 2, dropout=1.5)),
    "stack-without-layers": Wrong("ConfigError", "num_layers", lambda m: m.MMDiT(m.MMDiTConfig(num_layers=0))),
    "norm-size-0": Wrong("ConfigError", "normalized_shape", lambda m: m.RMSNorm(0)),
    "norm-eps-0": Wrong("ConfigError", "eps", lambda m: m.RMSNorm(16, eps=0.0)),
    "norm-last-axis": Wrong("ShapeError", "x", lambda m: m.RMSNorm(16)(ones(2, 8))),
    "norm-int": Wrong("DTypeError", "x", lambda m: m.RMSNorm(16)(ones(2, 16).long())),
    "x-rank-2": Wrong("ShapeError", "x", attend(X[0])),
    "x-rank-4": Wrong("ShapeError", "x", attend(X[None])),
    "x-dim": Wrong("ShapeError", "x", attend(X[..., :8])),
    "x-not-a-tensor": Wrong("DTypeError", "x", attend([[1.0]])),
    "x-int": Wrong("DTypeError", "x", attend(X.long())),
    "x-dtype": Wrong("DTypeError", "x", attend(X.double())),
    "x-device": Wrong("DeviceError", "x", attend(X.to("meta"))),
    "x-too-long": Wrong("PositionError", "x", attend(ones(2, 21, 16))),
    "mask-rank-2": Wrong("ShapeError", "attn_mask", attend(X, ones(7, 7))),
    "mask-rank-4": Wrong("ShapeError", "attn_mask", attend(X, ones(2, 1, 7, 7))),
    "mask-batch": Wrong("ShapeError", "attn_mask", attend(X, ones(1, 7, 7))),
    "mask-length": Wrong("ShapeError", "attn_mask", attend(X, ones(2, 7, 8))),
    "mask-over-the-context-too": Wrong("ShapeError", "attn_mask", cross(X, CONTEXT, ones(2, 12, 12))),
    "mask-device": Wrong("DeviceError", "attn_mask", attend(X, ones(2, 7, 7, device="meta"))),
    "mask-not-a-tensor": Wrong("DTypeError", "attn_mask", attend(X, [[True]])),
    "start-negative": Wrong("PositionError", "start_pos", attend(X, start_pos=-1)),
    "start-past-the-end": Wrong("PositionError", "start_pos", attend(X, start_pos=14)),
    "start-tensor-negative": Wrong("PositionError", "start_pos", attend(X, start_pos=torch.tensor([0, -1]))),
    "start-tensor-past-the-end": Wrong("PositionError", "start_pos", attend(X, start_pos=torch.tensor([14, 0]))),
    "start-tensor-batch": Wrong("ShapeError", "start_pos", attend(X, start_pos=torch.tensor([0, 1, 2]))),
    "start-tensor-rank": Wrong("ShapeError", "start_pos", attend(X, start_pos=torch.tensor([[0], [1]]))),
    "start-float": Wrong("DTypeError", "start_pos", attend(X, start_pos=1.0)),
    "start-tensor-float": Wrong("DTypeError", "start_pos", attend(X, start_pos=ones(2))),
    "cross-start-past-the-end": Wrong("PositionError", "start_pos", cross(X, CONTEXT, start_pos=4090)),
    "context-batch": Wrong("ShapeError", "context", cross(X, CONTEXT[:1])),
    "context-dim": Wrong("ShapeError", "context", cross(X, CONTEXT[..., :8])),
    "context-rank": Wrong("ShapeError", "context", cross(X, CONTEXT[0])),
    "context-dtype": Wrong("DTypeError", "context", cross(X, CONTEXT.half())),
    "context-device": Wrong("DeviceError", "context", cross(X, CONTEXT.to("meta"))),
    "context-without-weights": Wrong("UnexpectedInputError", "context", cross(X, CONTEXT, use_context=False)),
    "block-y-missing": Wrong("MissingInputError", "y", block(X, context=CONTEXT)),
    "block-context-missing": Wrong("MissingInputError", "context", block(X, Y)),
    "block-y-unasked": Wrong("UnexpectedInputError", "y", block(X, Y, conditioning=False, use_cross_attn=False)),
    "block-context-unasked": Wrong(
        "UnexpectedInputError", "context", block(X, Y, context=CONTEXT, use_cross_attn=False)
    ),
    "block-x-rank": Wrong("ShapeError", "x", block(X[0], Y, context=CONTEXT)),
    "block-y-batch": Wrong("ShapeError", "y", block(X, Y[:1], context=CONTEXT)),
    "block-y-dim": Wrong("ShapeError", "y", block(X, Y[:, :8], context=CONTEXT)),
    "block-y-length": Wrong("ShapeError", "y", block(X, X, context=CONTEXT)),
    "block-y-dtype": Wrong("DTypeError", "y", block(X, Y.double(), context=CONTEXT)),
    "block-context-dim": Wrong("ShapeError", "context", block(X, Y, context=CONTEXT[..., :8])),
    "block-mask": Wrong("ShapeError", "attn_mask", block(X, Y, ones(7, 7), CONTEXT)),
    "stack-y-missing": Wrong("MissingInputError", "y", stack(X, context=CONTEXT)),
    "stack-context-missing": Wrong("MissingInputError", "context", stack(X, Y)),
    "stack-start-past-the-end": Wrong("PositionError", "start_pos", stack(X, Y, CONTEXT, start_pos=4090)),
    "adaln-x-rank": Wrong("ShapeError", "x", layernorm(X[0], Y, Y)),
    "adaln-scale-dim": Wrong("ShapeError", "scale", layernorm(X, Y[:, :8], Y)),
    "adaln-scale-batch": Wrong("ShapeError", "scale", layernorm(X, Y[:1], Y)),
    "adaln-shift-length": Wrong("ShapeError", "shift", layernorm(X, Y, X)),
    "adaln-shift-dtype": Wrong("DTypeError", "shift", layernorm(X, Y, Y.half())),
    "adaln-scale-device": Wrong("DeviceError", "scale", layernorm(X, Y.to("meta"), Y)),
    "adaln-eps": Wrong("ConfigError", "eps", layernorm(X, Y, Y, eps=0.0)),
    "rmsnorm-adaln-weight": Wrong("ShapeError", "weight", rmsnorm(X, Y, Y, weight=ones(8))),
    "rmsnorm-adaln-scale": Wrong("ShapeError", "scale", rmsnorm(X, Y[:, :8], Y)),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_raises_an_error_that_names_argument_expected_and_got(mmdit: ModuleType, case: str) -> None:
    error, argument, call = WRONG[case]
    with pytest.raises(getattr(mmdit, error)) as caught:
        call(mmdit)
    assert caught.value.argument == argument
    assert str(caught.value) == f"{argument}: expected {caught.value.expected}, got {caught.value.got}"
    assert caught.value.expected
    assert caught.value.got


BUILTIN = {
    "ConfigError": ValueError,
    "ShapeError": ValueError,
    "DTypeError": TypeError,
    "DeviceError": ValueError,
    "MissingInputError": ValueError,
    "UnexpectedInputError": ValueError,
    "PositionError": IndexError,
}


@pytest.mark.parametrize("name", BUILTIN)
def test_error_is_the_packages_own_and_pythons_usual_one(mmdit: ModuleType, name: str) -> None:
    assert issubclass(getattr(mmdit, name), (mmdit.MMDiTError,))
    assert issubclass(getattr(mmdit, name), BUILTIN[name])
