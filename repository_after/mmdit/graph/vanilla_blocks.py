"""Whole blocks in fused operators: what a graph of vanilla blocks holds once vanilla.py's patterns were found in it.

Sizes are vanilla.py's. Arguments are named as StreamWeights has them, a context's with c_ before that.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdit.graph import vanilla
from mmdit.graph.vanilla import DH, EPS, FORWARD, MASK, PER_SAMPLE, RMS_EPS, ROW, VECTOR, B, C, D, H, L, P, Spelling
from mmdit.inference.weights import NORM_EPS

Arguments = dict[str, Tensor]
Split = Callable[[Tensor], tuple[Tensor, Tensor]]
ops = torch.ops.mmdit


def _chunks(t: Arguments, stream: str) -> tuple[Tensor, ...]:
    return F.linear(F.silu(t["y"]), t[f"{stream}condition_weight"], t[f"{stream}condition_bias"]).chunk(6, dim=-1)


def _qkv(t: Arguments, h: Tensor, stream: str = "") -> Tensor:
    return F.linear(h, t[f"{stream}qkv_weight"], t[f"{stream}qkv_bias"])


def _attention(t: Arguments, qkv: Tensor, c_qkv: Tensor | None = None) -> Tensor:
    norms = t["query_norm"], t["key_norm"], t.get("c_query_norm"), t.get("c_key_norm")
    heads = ops.pack_heads(qkv, c_qkv, *norms, t["cos"], t["sin"], t["start_pos"], 0, H, RMS_EPS)
    return ops.joint_attention(*heads, t["attn_mask"], 0 if c_qkv is None else C)


def _modulated(t: Arguments, stream: str = "") -> Tensor:
    scale, shift, *_ = _chunks(t, stream)
    return ops.norm_adaln(t[f"{stream}x"], scale, shift, None, EPS, True)


def _updated(t: Arguments, mixed: Tensor, drops: bool, stream: str = "") -> Tensor:
    """A stream after its attention's result and its MLP's were added; drops: whether of that some is dropped."""
    _, _, gate_attn, scale, shift, gate_mlp = _chunks(t, stream)
    bias, norm = t[f"{stream}out_bias"], t[f"{stream}out_norm"]
    branch, gate = F.linear(mixed, t[f"{stream}out_weight"]), gate_attn.squeeze(1)
    mid = ops.gated_residual(branch, t[f"{stream}x"], bias, gate, norm, None, None, RMS_EPS, NORM_EPS)[0]
    h = ops.norm_adaln(mid, scale, shift, None, EPS, True)
    h, bias = F.silu(F.linear(h, t[f"{stream}up_weight"], t[f"{stream}up_bias"])), t[f"{stream}down_bias"]
    branch, bias = _product(h, t[f"{stream}down_weight"], bias, drops)
    gate = gate_mlp.squeeze(1)
    return ops.gated_residual(branch, mid, bias, gate, None, None, None, 0.0, NORM_EPS)[0]


def _product(h: Tensor, weight: Tensor, bias: Tensor, drops: bool) -> tuple[Tensor, Tensor | None]:
    """Of h, and the bias that is still to be added."""
    return (F.dropout(F.linear(h, weight, bias), vanilla.DROPOUT), None) if drops else (F.linear(h, weight), bias)


def split(mixed: Tensor) -> tuple[Tensor, Tensor]:
    return mixed.split([L, C], dim=1)


def slices(mixed: Tensor) -> tuple[Tensor, Tensor]:
    return mixed[:, :L], mixed[:, L:]


def joint_block(parts: Split, index: int, drops: bool, **t: Tensor) -> Tensor:
    """Stream `index` of x and context."""
    mixed = _attention(t, _qkv(t, _modulated(t)), _qkv(t, _modulated(t, "c_"), "c_"))
    return _updated(t, parts(mixed)[index], drops, ("", "c_")[index])


def conditioned_block(drops: bool, **t: Tensor) -> Tensor:
    return _updated(t, _attention(t, _qkv(t, _modulated(t))), drops)


def affine_block(drops: bool, **t: Tensor) -> Tensor:
    h = F.layer_norm(t["x"], (D,), t["norm_1_weight"], t["norm_1_bias"], EPS)
    branch = F.linear(_attention(t, _qkv(t, h)), t["out_weight"])
    mid = ops.gated_residual(branch, t["x"], t["out_bias"], None, t["out_norm"], None, None, RMS_EPS, NORM_EPS)[0]
    h = F.layer_norm(mid, (D,), t["norm_2_weight"], t["norm_2_bias"], EPS)
    h = F.linear(F.silu(F.linear(h, t["up_weight"], t["up_bias"])), t["down_weight"], t["down_bias"])
    return mid + (F.dropout(h, vanilla.DROPOUT) if drops else h)


ATTENTION = {"qkv_weight": (3 * D, D), "qkv_bias": (3 * D,), "query_norm": VECTOR, "key_norm": VECTOR}
OUT = {"out_weight": (D, D), "out_bias": VECTOR, "out_norm": VECTOR}
MLP = {
    "up_weight": (FORWARD, D),
    "up_bias": (FORWARD,),
    "down_weight": (D, FORWARD),
    "down_bias": VECTOR,
}
CONDITION = {"condition_weight": (6 * D, D), "condition_bias": (6 * D,)}
AFFINE = dict.fromkeys(("norm_1_weight", "norm_1_bias", "norm_2_weight", "norm_2_bias"), VECTOR)
TABLES = {"cos": (P, DH // 2), "sin": (P, DH // 2), "start_pos": (B,)} | MASK
ATTENDING, UPDATING = {"x": ROW} | ATTENTION | TABLES, OUT | MLP
CONDITIONED = CONDITION | {"y": PER_SAMPLE}


def _of_context(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"c_{name}": shape for name, shape in shapes.items()}


JOINT = ATTENDING | CONDITIONED | _of_context({"x": (B, C, D)} | ATTENTION | CONDITION)


def _spellings(drops: bool) -> tuple[tuple[Spelling, ...], ...]:
    """The two streams of a block with a context, in each way of parting them; then blocks of one stream."""
    joint = [
        (
            Spelling("block with context", partial(joint_block, parts, 0, drops), JOINT | UPDATING),
            Spelling("block with context", partial(joint_block, parts, 1, drops), JOINT | _of_context(UPDATING)),
        )
        for parts in (split, slices)
    ]
    one, affine = partial(conditioned_block, drops), partial(affine_block, drops)
    return (
        *joint,
        (Spelling("conditioned block", one, ATTENDING | CONDITIONED | UPDATING),),
        (Spelling("block", affine, ATTENDING | AFFINE | UPDATING),),
    )


BLOCKS, DROPPING_BLOCKS = _spellings(False), _spellings(True)
