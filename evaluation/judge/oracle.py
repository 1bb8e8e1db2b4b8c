"""The truth: SPEC A6 and A8 as plain arithmetic on named weights, in whatever precision its tensors have.

The grader's own. It knows neither tree nor suite, and uses none of torch's norms, attentions or rotations.

B batch, L x length, C context length, S = L + C, D model dim, H heads, Dh head dim.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from evaluation.judge.case import CONDITIONED, LINEAR, Case

QK_EPS = 2.0**-23
EPS = 1e-6
THETA = 10000.0

Weights = Mapping[str, Tensor]
Start = int | Tensor | None


def oracle(
    case: Case,
    weights: Weights,
    inputs: Mapping[str, Tensor],
    attn_mask: Tensor | None = None,
    start_pos: Start = None,
) -> dict[str, Tensor]:
    """x_out (B, L, D), and context_out (B, C, D) where the case has a context: differentiable by autograd."""
    x, context = inputs["x"], inputs.get("context")
    if case.kind == "layernorm_adaln":
        return {"x_out": modulated(centred(x), inputs["scale"], inputs["shift"])}
    if case.kind == "rmsnorm_adaln":
        return {"x_out": modulated(normed(x, EPS) * inputs["weight"], inputs["scale"], inputs["shift"])}
    seen = None if attn_mask is None else visible(attn_mask, 0 if context is None else context.shape[1])
    heads = case.sizes.heads
    if case.kind == "stack":
        for layer in range(case.sizes.layers):
            x, context = block(inside(weights, f"layers.{layer}"), x, inputs["y"], context, heads, seen, start_pos)
    elif case.kind.startswith("block"):
        y = inputs["y"] if case.kind in CONDITIONED else None
        x, context = block(weights, x, y, context, heads, seen, start_pos)
    else:
        x, context = attend(weights, x, context, heads, seen, start_pos, case.kind in LINEAR)
    return {"x_out": x} | ({} if context is None else {"context_out": context})


def inside(weights: Weights, name: str) -> Weights:
    return {key[len(name) + 1 :]: value for key, value in weights.items() if key.startswith(f"{name}.")}


def normed(x: Tensor, eps: float) -> Tensor:
    return x * ((x * x).sum(-1, keepdim=True) / x.shape[-1] + eps) ** -0.5


def centred(x: Tensor) -> Tensor:
    return normed(x - x.sum(-1, keepdim=True) / x.shape[-1], EPS)


def modulated(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    size = (h.shape[0], 1, h.shape[2])
    return h + h * scale.reshape(size) + shift.reshape(size)


def affine(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def rotated(x: Tensor, start: Start) -> Tensor:
    """Each pair (2i, 2i + 1) of x (B, L, H, Dh) as a complex number, turned by position * THETA**(-2i / Dh)."""
    begin = torch.as_tensor(0 if start is None else start).double().reshape(-1, 1, 1, 1)
    position = begin + torch.arange(x.shape[1]).double().reshape(1, -1, 1, 1)
    pair = torch.arange(x.shape[3] // 2).double()
    angle = position * torch.exp(pair * (-2.0 / x.shape[3]) * torch.tensor(THETA).double().log())
    turn = torch.complex(angle.cos(), angle.sin())
    pairs = torch.complex(x[..., 0::2].double(), x[..., 1::2].double()) * turn
    return torch.view_as_real(pairs).flatten(-2).to(x.dtype)


def projected(weights: Weights, prefix: str, x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query and key, normalised over the full width, and value; each (B, L, H, Dh)."""
    dim = x.shape[-1]
    joined = affine(weights, f"{prefix}to_qkv", x)
    query = normed(joined[..., :dim], QK_EPS) * weights[f"{prefix}rms_norm_q.weight"]
    key = normed(joined[..., dim : 2 * dim], QK_EPS) * weights[f"{prefix}rms_norm_k.weight"]
    size = (*x.shape[:2], heads, dim // heads)
    return query.reshape(size), key.reshape(size), joined[..., 2 * dim :].reshape(size)


def visible(attn_mask: Tensor, context: int) -> Tensor:
    """(B, L, L) over x -> (B, S, S) bool: who attends to whom, by the three rules of A6."""
    allowed = attn_mask != 0
    batch, length = allowed.shape[:2]
    joint = torch.ones(batch, length + context, length + context, dtype=torch.bool)
    joint[:, :length, :length] = allowed
    joint[:, :length, length:] = allowed.sum(2, keepdim=True) > 0
    joint[:, length:, :length] = allowed.sum(1, keepdim=True) > 0
    return joint


def attend(
    weights: Weights, x: Tensor, context: Tensor | None, heads: int, seen: Tensor | None, start: Start, linear: bool
) -> tuple[Tensor, Tensor | None]:
    """Joint attention, each stream through its own output projection and norm."""
    query, key, value = projected(weights, "", x, heads)
    query, key = rotated(query, start), rotated(key, start)
    if context is not None:
        theirs = projected(weights, "c_", context, heads)
        pairs = zip((query, key, value), theirs, strict=True)
        query, key, value = (torch.cat(pair, dim=1) for pair in pairs)  # (B, S, H, Dh)
    scores = relu_scores(query, key) if linear else softmax_scores(query, key, seen)
    scores = scores if seen is None else scores * seen[:, None]
    total = scores.sum(-1, keepdim=True)
    total = total + EPS if linear else torch.where(total == 0, torch.ones_like(total), total)
    mixed = torch.einsum("bhqk,bkhd->bqhd", scores / total, value).flatten(-2)  # (B, S, D)
    length = x.shape[1]
    x_out = normed(affine(weights, "to_out.0", mixed[:, :length]), QK_EPS) * weights["to_out.1.weight"]
    if context is None:
        return x_out, None
    c_out = normed(affine(weights, "c_to_out.0", mixed[:, length:]), QK_EPS) * weights["c_to_out.1.weight"]
    return x_out, c_out


def relu_scores(query: Tensor, key: Tensor) -> Tensor:
    return torch.einsum("bqhd,bkhd->bhqk", query.clamp(min=0), key.clamp(min=0))


def softmax_scores(query: Tensor, key: Tensor, seen: Tensor | None) -> Tensor:
    """exp(logit - the largest that the row may see), (B, H, S, S)."""
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    hidden = logits.detach() if seen is None else logits.detach().masked_fill(~seen[:, None], -torch.inf)
    peak = hidden.amax(-1, keepdim=True)
    peak = torch.where(peak.isfinite(), peak, torch.zeros_like(peak))
    shifted = logits - peak
    return (shifted if seen is None else shifted.masked_fill(~seen[:, None], 0.0)).exp()


def block(
    weights: Weights,
    x: Tensor,
    y: Tensor | None,
    context: Tensor | None,
    heads: int,
    seen: Tensor | None,
    start: Start,
) -> tuple[Tensor, Tensor | None]:
    """One block in eval mode: attention, then the MLP, of each stream."""
    if y is None:
        h = centred(x) * weights["ln_1.weight"] + weights["ln_1.bias"]
        x = x + attend(inside(weights, "attn"), h, None, heads, seen, start, False)[0]
        return x + perceptron(weights, centred(x) * weights["ln_2.weight"] + weights["ln_2.bias"]), None
    conditions = [six(weights, y)]
    streams = [x]
    if context is not None:
        conditions.append(six(inside(weights, "context_layers"), y))
        streams.append(context)
    ins = [modulated(centred(s), c[0], c[1]) for s, c in zip(streams, conditions, strict=True)]
    own = inside(weights, "attn" if context is None else "cross_attn")
    outs = attend(own, ins[0], ins[1] if context is not None else None, heads, seen, start, False)
    results = []
    for stream, c, mixed, prefix in zip(streams, conditions, outs, ("", "context_layers"), strict=False):
        stream = stream + c[2] * mixed
        layers = inside(weights, prefix) if prefix else weights
        results.append(stream + c[5] * perceptron(layers, modulated(centred(stream), c[3], c[4])))
    return results[0], results[1] if context is not None else None


def six(weights: Weights, y: Tensor) -> list[Tensor]:
    """Scale, shift, gate of the attention, then of the MLP; each (B, 1, D)."""
    flat = affine(weights, "adaLN_modulation.1", silu(y.reshape(y.shape[0], 1, -1)))
    return list(flat.split(flat.shape[-1] // 6, dim=-1))


def perceptron(weights: Weights, x: Tensor) -> Tensor:
    return affine(weights, "mlp.2", silu(affine(weights, "mlp.0", x)))
