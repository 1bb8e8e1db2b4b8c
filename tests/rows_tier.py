"""Checks of the inference that leaves matrix products to PyTorch and has a kernel for all that lies between them: for
Triton's interpreter in a process of its own (device "cpu"), and for a GPU. Each raises or returns.

mmdit is imported inside the checks, where it is the tree under test.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import oracle
from tests.adaln import strided
from tests.cases import MASKS, Shape, random_mask
from tests.kernels import OpCalls, leaf, seeded
from tests.numerics import Values, assert_accurate, evaluate
from tests.oracle import StartPos
from tests.verify import spread_weights

Inputs = dict[str, Tensor | None]
Outputs = dict[str, Tensor]

SMALL = Shape(2, 7, 5, 5, 16)
POSITIONS = 50  # in the rotary tables, beside the length's own
STARTS: dict[str, Callable[[int], StartPos]] = {
    "none": lambda batch: None,
    "int": lambda batch: 13,
    "tensor": lambda batch: torch.arange(3, 3 + batch),
    "int32-tensor": lambda batch: torch.arange(3, 3 + batch, dtype=torch.int32),
    "spaced-tensor": lambda batch: torch.arange(3, 3 + 4 * batch)[::4],
}
VARIANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda t: t,
    "strided-rows": strided,
    "transposed": lambda t: t.mT.contiguous().mT,
    "eps-counts": lambda t: t * 1e-3,
}
PACK = ("qkv", "qkv_context", "query_norm", "key_norm", "context_query_norm", "context_key_norm")
RESIDUAL = ("residual", "branch", "bias", "gate", "rms_weight", "scale", "shift")
KINDS = {
    "plain": {"conditioning": False, "use_cross_attn": False},
    "conditioned": {"use_cross_attn": False},
    "cross": {},
}


def to(inputs: Inputs, *args: Any) -> Inputs:
    return {name: None if t is None else t.to(*args) for name, t in inputs.items()}


def start_of(name: str, batch: int, device: str) -> StartPos:
    """STARTS[name] on the device, as far apart as there."""
    start = STARTS[name](batch)
    if not isinstance(start, Tensor):
        return start
    wide = torch.zeros(batch, start.stride(0), dtype=start.dtype, device=device)
    wide[:, 0] = start
    return wide[:, 0]


def draw_pack(shape: Shape, rng: torch.Generator) -> Inputs:
    """The tensors of PACK; a context of no rows is none."""
    sizes = dict.fromkeys(PACK[2:] if shape.context else PACK[2:4], (shape.dim,))
    sizes |= {"qkv": (shape.batch, shape.length, 3 * shape.dim)}
    if shape.context:
        sizes["qkv_context"] = (shape.batch, shape.context, 3 * shape.dim)
    return dict.fromkeys(PACK) | {name: torch.randn(size, generator=rng) for name, size in sizes.items()}


def packed(inputs: Inputs, heads: int, start_pos: StartPos) -> Outputs:
    """What pack_heads must give, in its inputs' precision."""
    streams = []
    for qkv, *norms in ([inputs[n] for n in PACK[0:1] + PACK[2:4]], [inputs[n] for n in PACK[1:2] + PACK[4:]]):
        if qkv is not None:
            query, key, value = qkv.chunk(3, dim=-1)
            query, key = (oracle.rms_norm(t, w, oracle.QK_EPS) for t, w in zip((query, key), norms, strict=True))
            query, key, value = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
            turned = [query, key] if streams else [oracle.rotate(t, start_pos) for t in (query, key)]
            streams.append([*turned, value])
    joined = [torch.cat(parts, dim=2) for parts in zip(*streams, strict=True)]
    return dict(zip(("query", "key", "value"), joined, strict=True))


def pack(inputs: Inputs, shape: Shape, start_pos: StartPos) -> Outputs:
    """What pack_heads does give, from tables with NaN on either side."""
    mmdit_op, rotary = import_module("mmdit.ops.pack_heads.op"), import_module("mmdit.rotary")
    qkv = inputs["qkv"]
    tables = rotary.rotary_tables(shape.dim_head, POSITIONS + shape.length, torch.empty(0, device=qkv.device))
    tables = [F.pad(t, (0, 0, 64, 64), value=torch.nan)[64:-64] for t in tables]
    tensors = (inputs[n] for n in PACK)
    outputs = mmdit_op.pack_heads(*tensors, *tables, start_pos, shape.heads, oracle.QK_EPS)
    assert all(t.dtype == qkv.dtype and t.is_contiguous() for t in outputs)
    return dict(zip(("query", "key", "value"), outputs, strict=True))


def draw_residual(shape: Shape, samples: int, device: str, rng: torch.Generator) -> Inputs:
    """The tensors of RESIDUAL; gate, scale and shift are chunks of one modulation that is NaN elsewhere."""
    size, vectors = (shape.batch, shape.length, shape.dim), ("bias", "rms_weight")
    sizes = {"residual": size, "branch": size} | dict.fromkeys(vectors, (shape.dim,))
    inputs = {name: torch.randn(sizes[name], generator=rng).to(device) for name in sizes}
    modulation = torch.full((samples, 6, shape.dim), torch.nan, device=device)
    modulation[:, 2:5] = torch.randn(samples, 3, shape.dim, generator=rng).to(device)
    return inputs | dict(zip(("gate", "scale", "shift"), modulation.unbind(1)[2:5], strict=True))


def gated(inputs: Inputs) -> Outputs:
    """What gated_residual must give, in its inputs' precision."""
    out = inputs["branch"] if inputs["bias"] is None else inputs["branch"] + inputs["bias"]
    if inputs["rms_weight"] is not None:
        out = oracle.rms_norm(out, inputs["rms_weight"], oracle.QK_EPS)
    out = inputs["residual"] + (out if inputs["gate"] is None else inputs["gate"][:, None] * out)
    if inputs["scale"] is None:
        return {"out": out}
    return {"out": out, "normed": oracle.layernorm_adaln(out, inputs["scale"], inputs["shift"])}


def gate(inputs: Inputs) -> Outputs:
    """What gated_residual does give."""
    op = import_module("mmdit.ops.gated_residual.op").gated_residual
    out, normed = op(*(inputs[n] for n in RESIDUAL), oracle.QK_EPS, oracle.NORM_EPS)
    assert out.dtype == inputs["residual"].dtype
    assert (normed is None) == (inputs["scale"] is None)
    return {"out": out} if normed is None else {"out": out, "normed": normed}


def assert_kernel_matches(
    kernel: str, call: Callable[[Inputs], Outputs], truth: Callable[[Inputs], Any], inputs: Inputs
) -> None:
    """One launch of kernel, and each of call's outputs as close as its own dtype allows."""
    got: Outputs = {}
    explanation = import_module("mmdit").explain(lambda: got.update(call(inputs)))
    assert (explanation.path, explanation.launches) == ("fused", (kernel,)), str(explanation)
    assert got.keys() == truth(inputs).keys()
    for name, t in got.items():
        assert_accurate(
            Values({name: t}, {}), lambda p, name=name: Values({name: truth(to(inputs, p))[name]}, {}), t.dtype
        )


def heads_are_packed(shape: Shape, dtype: torch.dtype, start: str, variant: str, device: str, seed: int) -> None:
    inputs, start_pos = to(draw_pack(shape, seeded(seed)), device, dtype), start_of(start, shape.batch, device)
    inputs |= {name: VARIANTS[variant](inputs[name]) for name in PACK[:2] if inputs[name] is not None}
    assert_kernel_matches(
        "pack_heads_kernel",
        lambda inputs: pack(inputs, shape, start_pos),
        lambda inputs: packed(inputs, shape.heads, start_pos),
        inputs,
    )


def positions_stay_in_the_tables(start: int, as_tensor: bool, device: str, seed: int) -> None:
    inputs = to(draw_pack(SMALL, seeded(seed)), device)
    last = POSITIONS + SMALL.length - 1
    got = pack(inputs, SMALL, torch.full((SMALL.batch,), start, device=device) if as_tensor else start)["query"]
    for row in (0, SMALL.length - 1):
        alone = inputs | {"qkv": inputs["qkv"][:, row : row + 1]}
        want = packed(alone, SMALL.heads, min(max(start + row, 0), last))["query"]
        torch.testing.assert_close(got[:, :, row], want[:, :, 0])


def residual_is_gated(
    shape: Shape, dtype: torch.dtype, without: tuple[str, ...], variant: str, samples: int, device: str, seed: int
) -> None:
    inputs = draw_residual(shape, samples, device, seeded(seed)) | dict.fromkeys(without)
    for name in ("branch", "bias", "rms_weight"):
        inputs[name] = None if inputs[name] is None else inputs[name].to(dtype)
    inputs |= {name: VARIANTS[variant](inputs[name]) for name in ("branch", "residual")}
    assert_kernel_matches("gated_residual_kernel", gate, gated, inputs)


def residual_may_have_the_branch_s_dtype(dtype: torch.dtype, device: str, seed: int) -> None:
    inputs = to(draw_residual(SMALL, SMALL.batch, device, seeded(seed)), dtype)
    assert_kernel_matches("gated_residual_kernel", gate, gated, inputs)


def recorded_gradients_take_pytorch(op: str, device: str, seed: int) -> None:
    rng = seeded(seed)
    drawn = draw_pack(SMALL, rng) if op == "pack_heads" else draw_residual(SMALL, SMALL.batch, device, rng)
    inputs = to(drawn, device)
    leaves = {name: t.detach().clone().requires_grad_() for name, t in inputs.items()}
    calls = (lambda i: pack(i, SMALL, 3), lambda i: packed(i, SMALL.heads, 3)) if op == "pack_heads" else (gate, gated)
    cotangents = {name: torch.randn(t.shape, generator=rng).to(t) for name, t in calls[1](inputs).items()}
    got: list[Values] = []
    explanation = import_module("mmdit").explain(
        lambda: got.append(evaluate(lambda: calls[0](leaves).values(), leaves, cotangents))
    )
    assert (explanation.path, explanation.launches) == ("pytorch", ()), str(explanation)
    assert "gradients" in str(explanation)

    def truth(precision: torch.dtype) -> Values:
        doubles = {name: t.detach().to(precision).requires_grad_() for name, t in inputs.items()}
        return evaluate(lambda: calls[1](doubles).values(), doubles, cotangents)

    assert_accurate(got[0], truth, torch.float32)


def ops_pass_opcheck(op: str, device: str, seed: int) -> None:
    rng = seeded(seed)
    with OpCalls() as recorded:
        if op == "pack_heads":
            pack(to(draw_pack(SMALL, rng), device), SMALL, 3)
        else:
            inputs = draw_residual(SMALL, SMALL.batch, device, rng)
            gate(inputs), gate(inputs | dict.fromkeys(("scale", "shift", "gate", "rms_weight")))
    assert recorded.calls, "no op of torch.ops.mmdit was called"
    for func, args, kwargs in recorded.calls:
        torch.library.opcheck(func, tuple(leaf(a, False) for a in args), kwargs)


def collected(stack: nn.Module, y: Tensor | None) -> tuple[list[Any], Tensor]:
    """run_rows's layers and modulation of a stack of MMDiTBlocks."""
    weights = import_module("mmdit.inference.weights")
    layers, chunks = [], []
    for block in stack.layers:
        attention = block.cross_attn if block.use_cross_attn else block.attn
        streams = [("", block.mlp, getattr(block, "adaLN_modulation", None))]
        if block.use_cross_attn:
            streams.append(("c_", block.context_layers["mlp"], block.context_layers["adaLN_modulation"]))
        found = []
        for prefix, mlp, modulation in streams:
            qkv, (out, out_norm) = getattr(attention, f"{prefix}to_qkv"), getattr(attention, f"{prefix}to_out")
            norms = [getattr(attention, f"{prefix}rms_norm_{n}").weight for n in "qk"]
            found.append(
                weights.StreamWeights(
                    *(qkv.weight, qkv.bias, *norms, out.weight, out.bias, out_norm.weight),
                    *(mlp[0].weight, mlp[0].bias, mlp[2].weight, mlp[2].bias),
                )
            )
            if modulation is None:
                ones = torch.ones_like(block.ln_1.weight)
                affine = [(n.weight - 1, n.bias, ones) for n in (block.ln_1, block.ln_2)]
                chunks.append(torch.stack([*affine[0], *affine[1]]).float().unsqueeze(0))  # (1, 6, D)
            else:
                linear = modulation[1]
                m = F.linear(F.silu(y.float()), linear.weight.float(), linear.bias.float())
                chunks.append(m.unflatten(-1, (6, -1)))  # (B, 6, D)
        layers.append(weights.LayerWeights(found[0], found[1] if block.use_cross_attn else None))
    return layers, torch.stack(chunks, dim=1).unflatten(1, (len(layers), -1))


def layers_match_the_oracle(
    kind: str, shape: Shape, dtype: torch.dtype, mask: str | None, start: str, compiled: bool, device: str, seed: int
) -> None:
    mmdit, rows, rng = import_module("mmdit"), import_module("mmdit.inference.rows"), seeded(seed)
    sizes = {"dim_base": shape.dim, "num_attn_head": shape.heads, "dim_feedforward": 3 * shape.dim + 8}
    stack = spread_weights(mmdit.MMDiT(mmdit.MMDiTConfig(num_layers=2, **sizes, **KINDS[kind])), rng).to(device, dtype)
    lengths = {"x": (shape.length,), "y": () if kind != "plain" else None}
    lengths["context"] = (shape.context,) if kind == "cross" else None
    inputs = {
        name: torch.randn(shape.batch, *length, shape.dim, generator=rng).to(device, dtype)
        for name, length in lengths.items()
        if length is not None
    }
    attn_mask = None if mask is None else MASKS[mask](random_mask(shape, rng)).to(device)
    options = {"attn_mask": attn_mask, "start_pos": start_of(start, shape.batch, device)}
    run = torch.compile(rows.run_rows, fullgraph=True, backend="aot_eager") if compiled else rows.run_rows
    tables = mmdit.rotary.rotary_tables(shape.dim_head, POSITIONS + shape.length, inputs["x"].float())

    def call() -> None:
        streams = (inputs["x"], inputs.get("context"))
        got.extend(run(*collected(stack, inputs.get("y")), *streams, *options.values(), shape.heads, *tables))

    got: list[Tensor | None] = []
    with torch.no_grad():
        explanation = mmdit.explain(call)
    assert {d.path for d in explanation.decisions if d.op != "joint_attention"} <= {"fused"}, str(explanation)
    attention = ("pack_mask_kernel", "joint_attention_kernel")
    streams = 2 if kind == "cross" and shape.context else 1
    layer = ["pack_heads_kernel", *["gated_residual_kernel"] * 2 * streams]
    others = [name for name in explanation.launches if name not in attention]
    assert others == ["norm_adaln_forward_kernel"] * streams + 2 * layer, str(explanation)
    by_kernel = shape.dim_head <= import_module("mmdit.ops.joint_attention.op").MAX_HEAD_DIM[dtype]
    packed = 0 if mask is None or not by_kernel else 2 if compiled else 1
    assert [explanation.launches.count(name) for name in attention] == [packed, 2 * by_kernel], str(explanation)
    outputs = {name: t for name, t in zip(("x", "context"), got, strict=True) if t is not None}
    assert all(t.dtype == dtype and t.shape == inputs[name].shape for name, t in outputs.items())

    def truth(precision: torch.dtype) -> Values:
        state = {name: p.detach().to(precision) for name, p in stack.named_parameters()}
        found = oracle.stack(state, **to(inputs, precision), heads=shape.heads, **options)
        return Values({name: t for name, t in zip(("x", "context"), found, strict=True) if t is not None}, {})

    assert_accurate(Values(outputs, {}), truth, dtype)
