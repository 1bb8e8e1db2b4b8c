"""Needles: one key takes nearly all of every row's attention, so a key dropped or shifted by one cannot hide.

Every query points along the slowest rotary pair of its head, the needle's key alone does too, and the weights of the
norms make its logit large: sqrt(Dh) * GAIN**2.
"""

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests import oracle
from tests.cases import CROSS, Shape
from tests.numerics import relative_l2
from tests.verify import assert_matches_oracle, build, draw_inputs

pytestmark = pytest.mark.contract

GAIN = 1.3
TILE_EDGES = (0, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
# The x/context boundary lies at a tile's edge, inside a tile, and where the target has it.
BOUNDARIES = (Shape(1, 128, 6, 2, 16), Shape(1, 17, 130, 2, 16), Shape(1, 186, 64, 2, 16))


def needles(shape: Shape) -> list[int]:
    boundary, last = shape.length, shape.length + shape.context - 1
    return sorted({*TILE_EDGES, boundary - 1, boundary, boundary + 1, last})


def point_queries_and_keys(module: nn.Module, shape: Shape) -> None:
    """Queries: a constant along each head's slowest pair. Keys: feature 0 of a token goes there and nowhere else."""
    slowest = torch.arange(shape.dim) % shape.dim_head == shape.dim_head - 2
    for prefix in ("", "c_"):
        to_qkv = getattr(module, f"{prefix}to_qkv")
        query, key, _ = to_qkv.weight.data.chunk(3)
        query.zero_()
        key[:, 0] = slowest.float()
        key[slowest, 1:] = 0.0
        to_qkv.bias.data[: 2 * shape.dim] = torch.cat((slowest, torch.zeros(shape.dim)))
        for norm in ("rms_norm_q", "rms_norm_k"):
            getattr(module, prefix + norm).weight.data.fill_(GAIN)


def plant(inputs: dict[str, Tensor], shape: Shape, index: int) -> None:
    """Give feature 0 to the needle alone: key `index` of x and context together."""
    for stream in inputs.values():
        stream[..., 0] = 0.0
    name, row = ("x", index) if index < shape.length else ("context", index - shape.length)
    inputs[name][:, row, 0] = 50.0


@pytest.mark.parametrize(("shape", "index"), [(s, i) for s in BOUNDARIES for i in needles(s)], ids=str)
def test_a_dominant_key_is_found_wherever_it_lies(
    mmdit: ModuleType, shape: Shape, index: int, rng: torch.Generator
) -> None:
    module, inputs = build(mmdit, CROSS, shape, rng), draw_inputs(CROSS, shape, rng)
    point_queries_and_keys(module, shape)
    plant(inputs, shape, index)

    state = {name: tensor.double() for name, tensor in module.state_dict().items()}
    doubles = {name: tensor.double() for name, tensor in inputs.items()}
    seen, hidden = (oracle.attention(state, **doubles, heads=shape.heads, hidden_key=k) for k in (None, index))
    for with_needle, without in zip(seen, hidden, strict=True):
        assert relative_l2(without, with_needle) > 0.1, "the needle does not dominate: the case shows nothing"

    # The saturated softmax leaves next to no gradient to the queries and keys: it is held to that of the others. To
    # their norms' weights it leaves what remains of large terms, in fp32 up to 4e-5 off alone (torch's flash kernel
    # starts its backward from the rounded output): those are held as part of all gradients. The rest is below 4e-6.
    assert_matches_oracle(module, CROSS, shape, inputs, rng, negligible=1.0, cancelling="rms_norm_")
