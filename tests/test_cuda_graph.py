"""SPEC K5: what of a CUDA graph's forward needs no GPU: its buckets, and what it refuses. tests/test_gpu_graph.py has
the rest.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.cases import SMALL, STACK
from tests.numerics import assert_close
from tests.verify import build, draw_inputs

pytestmark = pytest.mark.upgrade


class Recorded:
    """Stands for a captured graph: gives the stack's own outputs, and can have lost its weights."""

    made: list["Recorded"]

    def __init__(self, model: torch.nn.Module, *inputs: Any) -> None:
        self.model, self.batch, self.stale = model, len(inputs[0]), False
        self.made.append(self)

    def __call__(self, *inputs: Any) -> Any:
        if self.stale:
            raise import_module("mmdit").UnexpectedInputError("weights", "those that were captured", "others")
        assert len(inputs[0]) == self.batch
        return self.model(*inputs)


@pytest.fixture
def bucketed(mmdit: ModuleType, rng: torch.Generator) -> tuple[Any, Callable[[int], dict[str, Any]], type[Recorded]]:
    """A BucketedForward of recorded graphs, and calls of it by batch size."""
    recorded = type("Recorded", (Recorded,), {"made": []})
    stack = build(mmdit, STACK, SMALL, rng).requires_grad_(False)
    make = import_module("mmdit.runtime.cuda_graph").BucketedForward

    def call(batch: int) -> dict[str, Any]:
        inputs = draw_inputs(STACK, replace(SMALL, batch=batch), rng)
        return {**inputs, "start_pos": torch.arange(batch)}

    return make(stack, (1, 4), most=2, capture=recorded), call, recorded


def test_a_batch_between_two_buckets_gives_its_own_rows(bucketed: Any) -> None:
    forward, call, recorded = bucketed
    for batch in (3, 2, 4):
        inputs = call(batch)
        for got, want in zip(forward(**inputs), forward.model(**inputs), strict=True):
            assert_close(got, want, 1e-6)
    assert [graph.batch for graph in recorded.made] == [4]


def test_the_graph_not_called_for_longest_is_dropped(bucketed: Any) -> None:
    forward, call, recorded = bucketed
    small, large = call(1), call(4)
    for inputs in (small, large, small, {**large, "start_pos": None}, small, large):
        forward(**inputs)
    assert [graph.batch for graph in recorded.made] == [1, 4, 4, 4]


def test_weights_that_moved_are_captured_again(bucketed: Any) -> None:
    forward, call, recorded = bucketed
    inputs = call(4)
    forward(**inputs)
    recorded.made[0].stale = True
    assert torch.equal(forward(**inputs).x_out, forward.model(**inputs).x_out)
    assert len(recorded.made) == 2


def test_a_batch_above_the_last_bucket_raises(mmdit: ModuleType, bucketed: Any) -> None:
    forward, call, _ = bucketed
    with pytest.raises(mmdit.ShapeError, match="at most 4"):
        forward(**call(5))


@pytest.mark.parametrize("options", [{"buckets": ()}, {"buckets": (4, 1)}, {"buckets": (0, 1)}, {"most": 0}], ids=str)
def test_buckets_that_make_no_sense_raise(mmdit: ModuleType, bucketed: Any, options: dict[str, Any]) -> None:
    forward, _, _ = bucketed
    with pytest.raises(mmdit.ConfigError):
        type(forward)(forward.model, **options)


def test_an_input_that_wants_a_gradient_raises_and_is_named(mmdit: ModuleType, bucketed: Any) -> None:
    forward, call, _ = bucketed
    inputs = call(4)
    inputs["context"].requires_grad_()
    with pytest.raises(mmdit.UnexpectedInputError, match="context"):
        forward(**inputs)
    with torch.no_grad():
        forward(**inputs)


def test_a_cpu_tensor_cannot_be_captured_and_the_error_says_so(mmdit: ModuleType, bucketed: Any) -> None:
    forward, call, _ = bucketed
    with pytest.raises(mmdit.DeviceError, match="x: expected a tensor on a CUDA device, got cpu"):
        forward.model.compile_graph(**call(2))
