"""What fuse_mmdit puts in the place of a match: the fused operators' calls, and what they need made beside them."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from mmdit.graph.expression import aten, base, dtype_of, express, source
from mmdit.graph.match import Match
from mmdit.ops.joint_attention.op import MAX_HEAD_DIM, MAX_TRAINED_HEAD_DIM

ops = torch.ops.mmdit
Emit = Callable[..., fx.Node]


def head_limit(match: Match, training: bool) -> int:
    """The widest heads that attention has a kernel for."""
    return (MAX_TRAINED_HEAD_DIM if training else MAX_HEAD_DIM).get(dtype_of(match.arguments["q"]), 0)


def per_sample(modulation: Any, emit: Emit) -> Any:
    """(B, D) of (B, 1, D)."""
    return emit(aten.squeeze.dim, modulation, 1)


def _rms_norm(match: Match, emit: Emit, training: bool) -> fx.Node:
    x, weight = match.arguments["x"], match.arguments.get("weight")
    return emit(aten.rms_norm.default, x, [match.numbers["D"]], weight, match.numbers["rms_eps"])


def _scaled_dot_product_attention(match: Match, emit: Emit, training: bool) -> fx.Node:
    q, k, v = (match.arguments[name] for name in "qkv")
    return emit(aten.scaled_dot_product_attention.default, q, k, v)


def _norm_adaln(match: Match, emit: Emit, training: bool) -> fx.Node:
    a = match.arguments
    center = match.spelling.name == "modulated LayerNorm"
    eps, shift = match.numbers["eps" if center else "rms_eps"], a["shift"]
    if a.get("bias") is not None:  # modulated as well
        gained = emit(aten.mul.Tensor, a["bias"], emit(aten.add.Scalar, a["scale"], 1))
        shift = emit(aten.add.Tensor, gained, shift)
    return emit(ops.norm_adaln.default, a["x"], a["scale"], shift, a.get("weight"), eps, center)


def _gated_residual(match: Match, emit: Emit, training: bool) -> fx.Node:
    a = match.arguments
    branch = a["branch"] if "branch" in a else emit(aten.linear.default, a["h"], a["weight"])
    gate = per_sample(a["gate"], emit) if "gate" in a else None
    rms_eps = match.numbers.get("rms_eps", 0.0)
    arguments = (branch, a["residual"], a.get("bias"), gate, a.get("norm"), None, None, rms_eps, 1e-6)
    return emit(operator.getitem, emit(ops.gated_residual.default, *arguments), 0)


def _joint_attention(match: Match, emit: Emit, training: bool) -> fx.Node:
    a, sizes = match.arguments, match.numbers
    heads = pack_heads(a, sizes, emit)
    mask = emit(aten.ne.Scalar, a["attn_mask"], 0) if "attn_mask" in a else None
    if sizes["Dh"] > head_limit(match, training):
        attended = emit(aten.scaled_dot_product_attention.default, *heads)
        return emit(aten.flatten.using_ints, emit(aten.transpose.int, attended, 1, 2), 2)
    length = sizes.get("C", 0)
    if isinstance(length, torch.SymInt):
        length = emit(aten.sym_size.int, a["c_q"], 1)
    if training:  # with what backward needs
        return emit(operator.getitem, emit(ops.joint_attention_forward.default, *heads, mask, length), 0)
    return emit(ops.joint_attention.default, *heads, mask, length)


def pack_heads(a: dict[str, Any], sizes: dict[str, Any], emit: Emit) -> list[fx.Node]:
    """Joint query, key and value of the arguments of a pattern: projections, norms and rotations."""
    qkv = _joined(a["q"], a["k"], a["v"], emit)
    context = _joined(a["c_q"], a["c_k"], a["c_v"], emit) if "c_q" in a else None
    norms = (a["q_norm"], a["k_norm"], a.get("c_q_norm"), a.get("c_k_norm"))
    packed = emit(ops.pack_heads.default, qkv, context, *norms, *_rotations(a, emit), 0, sizes["H"], sizes["rms_eps"])
    return [emit(operator.getitem, packed, i) for i in range(3)]


def _rotations(a: dict[str, Any], emit: Emit) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """cos and sin (positions, Dh / 2), and at which position each sample begins, (B,), or None for 0."""
    if "turns" in a:
        parts = emit(aten.view_as_real.default, a["turns"])
        cos, sin = emit(aten.select.int, parts, -1, 0), emit(aten.select.int, parts, -1, 1)
    else:
        cos, sin = a["cos"], a["sin"]
    if cos.meta["val"].ndim == 2:
        return cos, sin, None
    # (B, 1, L, Dh / 2), each sample's own: one table of them all, in which each begins where the one before ends
    length = emit(aten.sym_size.int, cos, 2)
    cos, sin = (emit(aten.flatten.using_ints, t, 0, 2) for t in (cos, sin))
    rows = emit(aten.arange.default, emit(aten.sym_size.int, cos, 0), device=cos.meta["val"].device)
    return cos, sin, emit(aten.select.int, emit(aten.view.default, rows, [-1, length]), 1, 0)


def _joined(q: fx.Node, k: fx.Node, v: fx.Node, emit: Emit) -> fx.Node:
    """(B, rows, 3 D) of three (B, rows, D): what they are parts of, or one product in the place of three."""
    parts = [express(source(t)) for t in (q, k, v)]
    wholes = {part.inputs[0] for part in parts if part.inputs and isinstance(part.inputs[0], fx.Node)}
    thirds = [part.name.startswith(f"part {i} of") and part.numbers == (2,) for i, part in enumerate(parts)]
    if len(wholes) == 1 and all(thirds) and wholes.copy().pop().meta["val"].shape[2] == 3 * q.meta["val"].shape[2]:
        return wholes.pop()
    linears = [source(t) for t in (q, k, v)]
    products = all(n.target is aten.linear.default and len(n.args) == 3 for n in linears)
    if products and len({base(n.args[0]) for n in linears}) == 1:
        weight, bias = (emit(aten.cat.default, [n.args[i] for n in linears]) for i in (1, 2))
        return emit(aten.linear.default, linears[0].args[0], weight, bias)
    return emit(aten.cat.default, [q, k, v], -1)


REWRITES: dict[str, Callable[[Match, Emit, bool], fx.Node]] = {
    "RMS norm": _rms_norm,
    "softmax attention": _scaled_dot_product_attention,
    "modulated LayerNorm": _norm_adaln,
    "modulated RMSNorm": _norm_adaln,
    "joint attention": _joint_attention,
    "self attention": _joint_attention,
    "gated residual of a normed projection": _gated_residual,
    "residual of a normed projection": _gated_residual,
    "gated residual of a projection": _gated_residual,
    "gated residual": _gated_residual,
}
