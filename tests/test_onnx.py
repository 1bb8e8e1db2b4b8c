"""SPEC N6 and K2: the dynamo exporter's ONNX, opset 18, runs in onnxruntime at sizes it was not exported with."""

import io
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.cases import BLOCK, CROSS, CROSS_LINEAR, SMALL, STACK, Kind, Shape, random_mask
from tests.numerics import assert_close
from tests.verify import build, draw_inputs, spread_weights

pytestmark = pytest.mark.upgrade

OPSET = 18
ROUNDING = 1e-5
OTHER_SHAPE = Shape(3, 31, 9, SMALL.heads, SMALL.dim_head)


def dynamic_axes(names: list[str]) -> dict[str, dict[int, Any]]:
    """Batch, length and context length left open, for each input by name."""
    batch, length, context = Dim("batch"), Dim("length"), Dim("context")
    sizes = {
        "x": {0: batch, 1: length},
        "y": {0: batch},
        "context": {0: batch, 1: context},
        "attn_mask": {0: batch, 1: length, 2: length},
    }
    return {name: sizes[name] for name in names}


def exported(module: nn.Module, inputs: dict[str, Tensor], axes: dict[str, Any]) -> Any:
    """A session of onnxruntime, which is imported here: where it is missing, these tests alone shall fail."""
    onnxruntime = import_module("onnxruntime")
    program = torch.onnx.export(
        module, (), kwargs=inputs, dynamo=True, opset_version=OPSET, dynamic_shapes=axes, verbose=False
    )
    file = io.BytesIO()
    program.save(file)
    return onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


def run(session: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    return [torch.from_numpy(out) for out in session.run(None, {name: t.numpy() for name, t in inputs.items()})]


def draw(kind: Kind, shape: Shape, masked: bool, rng: torch.Generator) -> dict[str, Tensor]:
    inputs = draw_inputs(kind, shape, rng)
    if masked:
        inputs["attn_mask"] = random_mask(shape, rng).index_fill(1, torch.tensor(3), False)
    return inputs


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("kind", [CROSS, CROSS_LINEAR, BLOCK, STACK], ids=str)
def test_onnxruntime_gives_eagers_numbers_at_other_sizes(
    mmdit: ModuleType, kind: Kind, masked: bool, rng: torch.Generator
) -> None:
    module = build(mmdit, kind, SMALL, rng)
    inputs = draw(kind, SMALL, masked, rng)
    session = exported(module, inputs, dynamic_axes(list(inputs)))
    for shape in (SMALL, OTHER_SHAPE):
        inputs = draw(kind, shape, masked, rng)
        wanted = [out for out in module(**inputs) if out is not None]
        for got, want in zip(run(session, inputs), wanted, strict=True):
            assert_close(got, want, ROUNDING)


@pytest.mark.parametrize(
    "options",
    [
        {"normalized_shape": [16], "bias": True},
        {"normalized_shape": [5, 16], "normalized_axes": [1, 3], "learnable_eps": True},
    ],
    ids=["last-axis", "two-axes"],
)
def test_onnxruntime_normalises_as_eager_does_at_other_sizes(
    mmdit: ModuleType, options: dict[str, Any], rng: torch.Generator
) -> None:
    module = spread_weights(mmdit.RMSNorm(**options), rng).eval()
    x = torch.randn(2, 5, 3, 16, generator=rng)
    session = exported(module, {"x": x}, {"x": {0: Dim("batch"), 2: Dim("length")}})
    other = torch.randn(4, 5, 9, 16, generator=rng)
    assert_close(run(session, {"x": other})[0], module(other), ROUNDING)
