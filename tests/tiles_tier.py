"""Checks of the inference that does a stack on tiles of rows: for Triton's interpreter in a process of its own (device
"cpu"), and for a GPU. Each raises or returns.

mmdit is imported inside the checks, where it is the tree under test.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import oracle
from tests.adaln import strided
from tests.cases import MASKS, Shape, random_mask
from tests.kernels import seeded
from tests.numerics import Values, assert_accurate
from tests.rows_tier import KINDS, POSITIONS, Inputs, collected, start_of, to
from tests.verify import spread_weights

HOPPER_DIM = 128
LATENCY_ROWS = 1024


@dataclass(frozen=True)
class Case:
    """A stack of `kind` and one call of it. gain: factor of the norm weights of queries and keys."""

    kind: str
    shape: Shape
    dtype: torch.dtype
    forward: int
    mask: str | None = None
    start: str = "none"
    variant: str = "plain"
    gain: float = 1.0
    layers: int = 2

    def __str__(self) -> str:
        given = [name for name in (self.mask, self.start, self.variant) if name not in (None, "none", "plain")]
        return "-".join(
            [self.kind, str(self.shape), f"F{self.forward}", str(self.dtype).removeprefix("torch."), *given]
        )

    @property
    def streams(self) -> int:
        return 2 if self.kind == "cross" and self.shape.context else 1

    @property
    def sliced(self) -> bool:
        """Whether the table has a few rows' MLP shared by several programs."""
        rows = self.shape.batch * (self.shape.length + (self.shape.context if self.streams == 2 else 0))
        return self.dtype != torch.float32 and self.forward % 512 == 0 and rows <= LATENCY_ROWS

    @property
    def fits_hopper(self) -> bool:
        """Whether the kernels for Hopper take these sizes."""
        chunks = self.forward // HOPPER_DIM
        whole = self.shape.dim == HOPPER_DIM and self.forward % HOPPER_DIM == 0 and chunks & (chunks - 1) == 0
        return whole and self.dtype != torch.float32

    @property
    def fits_persistent(self) -> bool:
        """Whether the kernel for a whole stack takes these sizes, on an H200."""
        tiles = -(-self.shape.length // 64) + (-(-self.shape.context // 64) if self.streams == 2 else 0)
        return (tiles, self.shape.heads) == (4, 8) and self.shape.batch > 33


# What is done to the inputs, after their cast to the dtype.
VARIANTS: dict[str, Callable[[Inputs], Inputs]] = {
    "plain": lambda inputs: inputs,
    "strided-rows": lambda inputs: inputs | {n: strided(t) for n, t in inputs.items() if n != "y"},
    "transposed": lambda inputs: {name: t.mT.contiguous().mT for name, t in inputs.items()},
    "expanded": lambda inputs: {name: t[:1].expand_as(t) for name, t in inputs.items()},
    "y-of-rank-3": lambda inputs: inputs | {"y": inputs["y"][:, None]},
    "large": lambda inputs: {name: t * 300 for name, t in inputs.items()},
    "tiny": lambda inputs: {name: t * 1e-3 for name, t in inputs.items()},
}


@contextmanager
def fp32_products(precision: str) -> Iterator[None]:
    """With torch.get_float32_matmul_precision() of `precision`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def draw_stack(case: Case, rng: torch.Generator) -> nn.Module:
    mmdit, shape = import_module("mmdit"), case.shape
    sizes = {"dim_base": shape.dim, "num_attn_head": shape.heads, "dim_feedforward": case.forward}
    stack = mmdit.MMDiT(mmdit.MMDiTConfig(num_layers=case.layers, **sizes, **KINDS[case.kind]))
    for name, parameter in spread_weights(stack, rng).named_parameters():
        if "rms_norm_" in name:
            parameter.data.mul_(case.gain)
    return stack.eval()


def draw_call(case: Case, device: str, rng: torch.Generator) -> tuple[Inputs, dict[str, Any]]:
    """x, y and context as the kind takes them, and what goes beside them."""
    shape = case.shape
    sizes = {"x": (shape.batch, shape.length, shape.dim)}
    if case.kind != "plain":
        sizes["y"] = (shape.batch, shape.dim)
    if case.kind == "cross":
        sizes["context"] = (shape.batch, shape.context, shape.dim)
    drawn = {name: torch.randn(size, generator=rng).to(device, case.dtype) for name, size in sizes.items()}
    mask = None if case.mask is None else MASKS[case.mask](random_mask(shape, rng)).to(device)
    return VARIANTS[case.variant](drawn), {"attn_mask": mask, "start_pos": start_of(case.start, shape.batch, device)}


def launches_of(case: Case, sliced: bool, device: str = "cpu", conditioned: bool = True) -> tuple[str, ...]:
    """What a stack launches, in order."""
    first = ["modulation_kernel"] * (conditioned and case.kind != "plain")
    bits = ["pack_mask_kernel"] * bool(case.mask)
    if sliced:
        return *first, *bits, *["qkv_kernel", "joint_attention_kernel", "rows_kernel"] * case.layers, "sum_kernel"
    hopper = device == "cuda" and torch.cuda.get_device_capability()[0] == 9 and case.fits_hopper
    if hopper and conditioned and case.fits_persistent:
        at_once = torch.cuda.get_device_properties(0).multi_processor_count
        return *first, "pack_kernel", *bits, *["stack_kernel"] * -(-case.shape.batch // at_once)
    rows = "rows_hopper_kernel" if hopper else "rows_kernel"
    return *first, *bits, "qkv_kernel", *["joint_attention_kernel", rows] * case.layers


def launched(explanation: Any) -> tuple[str, ...]:
    """What explain names, with Hopper's two row kernels, for few tiles and for many, under one name."""
    return tuple(name.replace("rows_quad_kernel", "rows_hopper_kernel") for name in explanation.launches)


def outputs_of(pair: Any) -> Values:
    return Values({name: t for name, t in zip(("x", "context"), pair, strict=True) if t is not None}, {})


def truth_of(case: Case, stack: nn.Module, inputs: Inputs, options: dict[str, Any]) -> Callable[[torch.dtype], Values]:
    """The oracle on the stack's weights and the inputs, in a precision to choose."""

    def truth(precision: torch.dtype) -> Values:
        state = {name: p.detach().to(precision) for name, p in stack.named_parameters()}
        return outputs_of(oracle.stack(state, **to(inputs, precision), heads=case.shape.heads, **options))

    return truth


def assert_as_close_as_products(
    got: Values, truth: Callable[[torch.dtype], Values], dtype: torch.dtype, ill_conditioned: bool = False
) -> None:
    """On a GPU fp32 products are TF32's, which has fp16's mantissa."""
    rounds_as_half = dtype == torch.float32 and got.outputs["x"].is_cuda
    assert_accurate(got, truth, torch.float16 if rounds_as_half else dtype, ill_conditioned=ill_conditioned)


def stack_matches_the_oracle(case: Case, as_block: bool, device: str, seed: int) -> None:
    """Through the public modules, in which each layer is called alone if as_block."""
    mmdit, rng, got = import_module("mmdit"), seeded(seed), []
    stack = draw_stack(case, rng).to(device, case.dtype)
    inputs, options = draw_call(case, device, rng)
    before = {name: t.clone() for name, t in inputs.items()}
    module = stack.layers[0] if as_block else stack
    with torch.no_grad(), fp32_products("high"):
        explanation = mmdit.explain(lambda: got.append(module(**inputs, **options)))
    first, *others = explanation.decisions
    assert (first.op, first.path) == ("stack", "fused"), str(explanation)
    if (device, case.dtype) == ("cuda", torch.float32):
        assert "; rows tier, not tiles: fp32" in first.reason, str(explanation)
    else:
        assert "; tiles tier" in first.reason, str(explanation)
        assert not others, str(explanation)
        assert launched(explanation) == launches_of(case, case.sliced, device), str(explanation)
    for name, t in outputs_of(got[0]).outputs.items():
        assert (t.dtype, t.shape, t.is_contiguous()) == (case.dtype, inputs[name].shape, True)
    assert all(torch.equal(t, before[name]) for name, t in inputs.items()), "an input was written to"
    truth = truth_of(case, stack, inputs, options)
    assert_as_close_as_products(outputs_of(got[0]), truth, case.dtype, ill_conditioned=case.gain > 1)


def plan_matches_the_oracle(case: Case, plan: dict[str, int], device: str, seed: int) -> None:
    """With other tiles than the table's, and rotary tables that have NaN on either side."""
    mmdit, rng, got = import_module("mmdit"), seeded(seed), []
    op, tuning = (import_module(f"mmdit.ops.stack_rows.{name}") for name in ("op", "tuning"))
    stack = draw_stack(case, rng).to(device, case.dtype)
    inputs, options = draw_call(case, device, rng)
    tables = mmdit.rotary.rotary_tables(case.shape.dim_head, POSITIONS + case.shape.length, inputs["x"].float())
    tables = [F.pad(t, (0, 0, 64, 64), value=torch.nan)[64:-64] for t in tables]
    layers, modulation = collected(stack, inputs.get("y"))
    if case.streams == 1:
        layers = [layer._replace(context=None) for layer in layers]
    arguments = (inputs["x"], inputs.get("context"), *options.values(), case.shape.heads, *tables)
    with torch.no_grad(), fp32_products("high"):
        explanation = mmdit.explain(
            lambda: got.append(op.run_tiles(layers, modulation, *arguments, plan=tuning.RowTiles(**plan)))
        )
    wanted = launches_of(case, plan["slices"] > 1, device if plan.get("hopper") else "cpu", conditioned=False)
    assert launched(explanation) == wanted, str(explanation)
    assert_as_close_as_products(outputs_of(got[0]), truth_of(case, stack, inputs, options), case.dtype)


def two_runs_give_the_same_bits(case: Case, device: str, seed: int) -> None:
    rng, got = seeded(seed), []
    stack = draw_stack(case, rng).to(device, case.dtype)
    inputs, options = draw_call(case, device, rng)
    with torch.no_grad(), fp32_products("high"):
        for _ in range(2):
            explanation = import_module("mmdit").explain(lambda: got.append(stack(**inputs, **options)))
    assert explanation.path == "fused", str(explanation)
    first, second = (outputs_of(pair).outputs for pair in got)
    assert all(torch.equal(t, second[name]) for name, t in first.items()), "two runs differ"


def shifted(t: Tensor) -> Tensor:
    """t, contiguous, at an address that 16 does not divide."""
    wide = torch.full((t.numel() + 16 // t.element_size(),), torch.nan, device=t.device, dtype=t.dtype)
    moved = wide[1 : 1 + t.numel()].view(t.shape).copy_(t)
    assert moved.data_ptr() % 16
    return moved


def weights_may_lie_at_any_address(case: Case, device: str, seed: int) -> None:
    """As those of a flat buffer or a mapped checkpoint do."""
    rng, got = seeded(seed), []
    stack = draw_stack(case, rng).to(device, case.dtype)
    for parameter in stack.parameters():
        parameter.data = shifted(parameter.data)
    inputs, options = draw_call(case, device, rng)
    inputs["x"] = shifted(inputs["x"])
    with torch.no_grad(), fp32_products("high"):
        explanation = import_module("mmdit").explain(lambda: got.append(stack(**inputs, **options)))
    assert explanation.path == "fused", str(explanation)
    assert_as_close_as_products(outputs_of(got[0]), truth_of(case, stack, inputs, options), case.dtype)


def weights_are_packed(case: Case, aligned: bool, device: str, seed: int) -> None:
    """Every element, in the order that pack_weights tells."""
    stack = draw_stack(case, seeded(seed)).to(device, case.dtype)
    if not aligned:
        for parameter in stack.parameters():
            parameter.data = shifted(parameter.data)
    layers, _ = collected(stack, None if case.kind == "plain" else torch.ones(1, case.shape.dim).to(device, case.dtype))
    streams = [stream for layer in layers for stream in layer if stream is not None]
    square = [t for s in streams for t in (s.out_weight, s.up_weight, s.qkv_weight)]
    vectors = [
        torch.cat((s.qkv_bias, s.query_norm, s.key_norm, s.out_bias, s.out_norm, s.down_bias, s.up_bias))
        for s in streams
    ]
    packed: list[Tensor] = []
    op = import_module("mmdit.ops.stack_persistent.op")
    with torch.no_grad():
        explanation = import_module("mmdit").explain(lambda: packed.extend(op.pack_weights(streams)))
    assert explanation.launches == ("pack_kernel",), str(explanation)
    expected = torch.cat(square), torch.cat([s.down_weight for s in streams]), torch.stack(vectors)
    assert [torch.equal(got, want) for got, want in zip(packed, expected, strict=True)] == [True] * 3
