"""SPEC G5: a vanilla model's modules replaced by the fused ones, weights shared, and back."""

import copy
import re
from collections.abc import Callable
from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import kernels
from tests.cases import BLOCK_CROSS, CASES, SMALL, STACK, Kind, Shape, random_mask
from tests.graph_models import graph_package
from tests.numerics import TOLERANCE, assert_close
from tests.vanilla import vanilla
from tests.verify import build, draw_inputs, module_values

pytestmark = pytest.mark.upgrade

TINY = Shape(2, 5, 3, 2, 8)
KINDS = tuple(dict.fromkeys(kind for kind, _ in CASES))
BLOCKS = [
    pytest.param(dict(zip(("conditioning", "use_cross_attn", "dropout"), values, strict=True)), id=str(values))
    for values in product((False, True), (False, True), (0.0, 0.1))
    if values[0] or not values[1]
]


def assert_same(fused: nn.Module, model: nn.Module, inputs: dict[str, Tensor], **options: Any) -> None:
    """Outputs and all gradients."""
    cotangents = {"x_out": torch.randn_like(inputs["x"])}
    if "context" in inputs:
        cotangents["context_out"] = torch.randn_like(inputs["context"])
    want, got = (module_values(m, inputs, cotangents, **options) for m in (model, fused))
    for name, value in {**want.outputs, **want.gradients}.items():
        size = max(value.double().norm().item(), 1e-3)
        error = ({**got.outputs, **got.gradients}[name].double() - value.double()).norm().item() / size
        assert error < 1e-4, f"{name}: {error:.1e}"


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_vanilla_module_becomes_the_fused_one(kind: Kind, mmdit: ModuleType, rng: torch.Generator) -> None:
    model = build(vanilla(), kind, TINY, rng)
    fused = graph_package().fuse(model)
    assert type(fused) is getattr(mmdit, type(model).__name__)
    assert {n: id(p) for n, p in fused.named_parameters()} == {n: id(p) for n, p in model.named_parameters()}
    inputs = draw_inputs(kind, TINY, rng)
    assert_same(fused, model, inputs, attn_mask=random_mask(TINY, rng), start_pos=3)
    assert graph_package().unfuse(fused) is model


@pytest.mark.parametrize("options", BLOCKS)
def test_every_constructor_combination_of_a_block_is_fused(
    options: dict[str, Any], mmdit: ModuleType, rng: torch.Generator
) -> None:
    block = vanilla().MMDiTBlock(16, 2, dim_feedforward=24, **options).train()
    fused = graph_package().fuse(block)
    assert type(fused) is mmdit.MMDiTBlock
    assert fused.training
    assert fused.mlp[3].p == options["dropout"]
    takes = tuple(n for n, o in (("y", "conditioning"), ("context", "use_cross_attn")) if options[o])
    inputs = draw_inputs(Kind("", lambda m, s: block, lambda: None, takes), TINY, rng)
    assert_same(fused.eval(), block.eval(), inputs)


def test_rates_of_dropout_that_were_changed_are_kept(mmdit: ModuleType) -> None:
    stack = vanilla().MMDiT(vanilla().MMDiTConfig(dim_base=16, num_layers=2, num_attn_head=2, dim_feedforward=24))
    stack.layers[1].mlp[3].p = 0.5
    fused = graph_package().fuse(stack)
    assert type(fused) is mmdit.MMDiT
    assert [layer.mlp[3].p for layer in fused.layers] == [0.1, 0.5]


class Around(nn.Module):
    """A user's model that holds the stack somewhere."""

    def __init__(self, stack: nn.Module, dim: int) -> None:
        super().__init__()
        self.embed, self.body = nn.Linear(dim, dim), nn.ModuleDict({"stack": stack})

    def forward(self, x: Tensor, y: Tensor, context: Tensor) -> Tensor:
        return self.body["stack"](self.embed(x), y, context)[0]


def test_a_stack_inside_a_users_model_is_fused_and_trains_the_same_weights(
    mmdit: ModuleType, rng: torch.Generator
) -> None:
    model = Around(build(vanilla(), STACK, TINY, rng), TINY.dim)
    before = [type(m).__module__ for m in model.modules()]
    fused = graph_package().fuse(model)
    assert type(fused.body["stack"]) is mmdit.MMDiT
    assert [type(m).__module__ for m in model.modules()] == before
    inputs = draw_inputs(STACK, TINY, rng)
    assert_close(fused(**inputs), model(**inputs), TOLERANCE[torch.float32])
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.add_(0.01)
    assert_close(fused(**inputs), model(**inputs), TOLERANCE[torch.float32])
    assert fused.state_dict().keys() == model.state_dict().keys()
    assert graph_package().unfuse(fused) is model
    with pytest.raises(ValueError, match="fuse returned"):
        graph_package().unfuse(model)


def twice(module: nn.Module, args: Any, output: Any) -> Any:
    return output._replace(x_out=2 * output.x_out)


class GemmaNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


GemmaNorm.__name__ = "RMSNorm"


def other_norm(block: nn.Module) -> None:
    block.cross_attn.rms_norm_q = GemmaNorm(TINY.dim, 2.0**-23)


def subclassed(block: nn.Module) -> None:
    kind = type(block)
    block.__class__ = type(
        "MMDiTBlock", (kind,), {"forward": lambda self, x, *a, **k: kind.forward(self, 2 * x, *a, **k)}
    )


# What makes another module of a block, and what the reason says.
ALTERED: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "hook": (lambda b: b.register_forward_hook(twice), "hooked"),
    "inner-hook": (lambda b: b.mlp[0].register_forward_hook(lambda m, a, o: 2 * o), "mlp.0 is hooked"),
    "gelu": (lambda b: b.mlp.__setitem__(1, nn.GELU()), "SiLU.*GELU"),
    "eps": (lambda b: setattr(b.cross_attn.c_rms_norm_k, "eps", 0.1), "c_rms_norm_k.eps"),
    "no-bias": (lambda b: b.mlp.__setitem__(0, nn.Linear(16, 49, bias=False)), "mlp.0.bias"),
    "longer-mlp": (lambda b: b.mlp.append(nn.SiLU()), "mlp.4"),
    "gemma-norm": (other_norm, "numbers"),
    "other-forward": (subclassed, "numbers|signature|forward takes"),
}


@pytest.mark.parametrize("name", ALTERED)
def test_a_look_alike_is_left_as_it_is_and_the_difference_told(name: str, rng: torch.Generator) -> None:
    alter, reason = ALTERED[name]
    block = build(vanilla(), BLOCK_CROSS, TINY, rng)
    alter(block)
    fused = graph_package().fuse(block)
    told = {swap.path: swap for swap in graph_package().fusions(block)}
    assert type(fused).__module__ == type(block).__module__
    assert told[""].refused, told
    assert re.search(reason, told[""].refused), told[""].refused
    inputs = draw_inputs(BLOCK_CROSS, TINY, rng)
    assert_close(fused(**inputs)[0], block(**inputs)[0], TOLERANCE[torch.float32])


def test_a_model_without_such_modules_comes_back_the_same() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    fused, x = graph_package().fuse(model), torch.randn(2, 3, 8)
    assert torch.equal(fused(x), model(x))
    assert graph_package().fusions(model) == []


def test_frozen_weights_modes_and_dtypes_are_kept(rng: torch.Generator) -> None:
    block = build(vanilla(), BLOCK_CROSS, TINY, rng).to(torch.bfloat16)
    block.mlp[0].weight.requires_grad_(False)
    block.cross_attn.train()
    fused = graph_package().fuse(block)
    assert not fused.mlp[0].weight.requires_grad
    assert (fused.training, fused.cross_attn.training) == (False, True)
    assert {p.dtype for p in fused.parameters()} == {torch.bfloat16}
    assert copy.deepcopy(fused).mlp[0].weight is not fused.mlp[0].weight


def fused_stack_launches_kernels(seed: int) -> None:
    rng = kernels.seeded(seed)
    model = build(vanilla(), STACK, SMALL, rng)
    fused, inputs = graph_package().fuse(model), draw_inputs(STACK, SMALL, rng)
    with torch.no_grad(), kernels.counted_kernels() as launched:
        got = fused(**inputs)
        assert launched, "no kernel ran"
        assert_close(got[0], model(**inputs)[0], TOLERANCE[torch.float32])


def test_the_fused_stack_launches_kernels(interpreted: Callable[..., None], seed: int) -> None:
    interpreted(fused_stack_launches_kernels, seed)
