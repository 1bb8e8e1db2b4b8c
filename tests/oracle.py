"""An independent oracle of SPEC A6 and A8: plain real arithmetic on a state_dict, differentiable by autograd.

Given fp64 tensors it is the truth; given 16-bit ones it is the plain reference whose rounding bounds a tree's.
It imports neither tree, and uses no fused softmax, no attention primitive and no complex number.

B batch, L x length, C context length, S = L + C, D model dim, H heads, Dh head dim.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, einsum

QK_EPS = 2.0**-23
NORM_EPS = 1e-6
LINEAR_EPS = 1e-6
THETA = 10000.0

State = Mapping[str, Tensor]
StartPos = int | Tensor | None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def layer_norm(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def per_row(modulation: Tensor) -> Tensor:
    return modulation[:, None] if modulation.dim() == 2 else modulation  # (B, 1, D)


def layernorm_adaln(x: Tensor, scale: Tensor, shift: Tensor, eps: float = NORM_EPS) -> Tensor:
    return layer_norm(x, eps) * (1 + per_row(scale)) + per_row(shift)


def rmsnorm_adaln(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float = NORM_EPS, weight: Tensor | None = None
) -> Tensor:
    weight = torch.ones_like(x[0, 0]) if weight is None else weight
    return rms_norm(x, weight, eps) * (1 + per_row(scale)) + per_row(shift)


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def below(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return einsum("...i,oi->...o", x, state[f"{name}.weight"]) + state[f"{name}.bias"]


def rotate(x: Tensor, start_pos: StartPos) -> Tensor:
    """Turn the pair (2i, 2i+1) of x (B, H, L, Dh) by position * THETA**(-2i / Dh)."""
    fp64 = {"dtype": torch.float64, "device": x.device}
    start = torch.as_tensor(0 if start_pos is None else start_pos, **fp64).reshape(-1, 1)  # (B or 1, 1)
    position = start + torch.arange(x.shape[2], **fp64)  # (B or 1, L)
    frequency = THETA ** (-torch.arange(0, x.shape[3], 2, **fp64) / x.shape[3])
    angle = einsum("bl,f->blf", position, frequency)[:, None]  # (B or 1, 1, L, Dh/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def project(state: State, prefix: str, x: Tensor, heads: int) -> list[Tensor]:
    """Query, key and value of one stream, each (B, H, L, Dh); query and key normalised over the full dim."""
    query, key, value = linear(state, f"{prefix}to_qkv", x).chunk(3, dim=-1)
    query = rms_norm(query, state[f"{prefix}rms_norm_q.weight"], QK_EPS)
    key = rms_norm(key, state[f"{prefix}rms_norm_k.weight"], QK_EPS)
    return [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value)]


def relu_arguments(
    state: State, x: Tensor, context: Tensor | None = None, *, heads: int, start_pos: StartPos = None
) -> Tensor:
    """All that linear attention puts through its relu, flat."""
    found = [rotate(t, start_pos) for t in project(state, "", x, heads)[:2]]
    found += [] if context is None else project(state, "c_", context, heads)[:2]
    return torch.cat([t.flatten() for t in found])


def joint_mask(mask: Tensor, context_length: int) -> Tensor:
    """(B, L, L) over x -> (B, S, S), by the three rules of A6."""
    visible = mask != 0
    batch, length, _ = visible.shape
    sees_anything = visible.any(dim=2, keepdim=True).expand(batch, length, context_length)
    seen_by_anyone = visible.any(dim=1, keepdim=True).expand(batch, context_length, length)
    context_context = visible.new_ones(batch, context_length, context_length)
    x_rows = torch.cat((visible, sees_anything), dim=2)
    context_rows = torch.cat((seen_by_anyone, context_context), dim=2)
    return torch.cat((x_rows, context_rows), dim=1)


def softmax_weights(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    logits = einsum("bhid,bhjd->bhij", query, key) * query.shape[-1] ** -0.5
    peak = logits.detach().masked_fill(~visible, -torch.inf).amax(-1, keepdim=True)
    numerator = (logits - peak.nan_to_num(neginf=0.0)).masked_fill(~visible, -torch.inf).exp()
    denominator = numerator.sum(-1, keepdim=True)
    return numerator / denominator.masked_fill(denominator == 0, 1.0)


def linear_weights(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    weights = einsum("bhid,bhjd->bhij", query.relu(), key.relu()) * visible
    return weights / (weights.sum(-1, keepdim=True) + LINEAR_EPS)


def attention(
    state: State,
    x: Tensor,
    context: Tensor | None = None,
    *,
    heads: int,
    attn_mask: Tensor | None = None,
    start_pos: StartPos = None,
    linear_kernel: bool = False,
    hidden_key: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Joint attention of x (B, L, D) and context (B, C, D); hidden_key takes one of the S keys from every row."""
    batch, length, _ = x.shape
    query, key, value = project(state, "", x, heads)
    query, key = rotate(query, start_pos), rotate(key, start_pos)
    mask = x.new_ones(batch, length, length) if attn_mask is None else attn_mask
    visible = joint_mask(mask, 0 if context is None else context.shape[1])[:, None]  # (B, 1, S, S)
    if context is not None:
        streams = zip((query, key, value), project(state, "c_", context, heads), strict=True)
        query, key, value = (torch.cat(pair, dim=2) for pair in streams)  # (B, H, S, Dh)
    if hidden_key is not None:
        visible[..., hidden_key] = False
    weights = (linear_weights if linear_kernel else softmax_weights)(query, key, visible)
    mixed = einsum("bhij,bhjd->bhid", weights, value).transpose(1, 2).flatten(-2)  # (B, S, D)
    x_out = rms_norm(linear(state, "to_out.0", mixed[:, :length]), state["to_out.1.weight"], QK_EPS)
    if context is None:
        return x_out, None
    context_out = linear(state, "c_to_out.0", mixed[:, length:])
    return x_out, rms_norm(context_out, state["c_to_out.1.weight"], QK_EPS)


def mlp(state: State, x: Tensor) -> Tensor:
    return linear(state, "mlp.2", silu(linear(state, "mlp.0", x)))


def modulation(state: State, y: Tensor) -> tuple[Tensor, ...]:
    return linear(state, "adaLN_modulation.1", silu(per_row(y))).chunk(6, dim=-1)  # 6 of (B, 1, D)


def affine_norm(state: State, name: str, x: Tensor) -> Tensor:
    return layer_norm(x, NORM_EPS) * state[f"{name}.weight"] + state[f"{name}.bias"]


def block(
    state: State,
    x: Tensor,
    y: Tensor | None = None,
    context: Tensor | None = None,
    *,
    heads: int,
    attn_mask: Tensor | None = None,
    start_pos: StartPos = None,
) -> tuple[Tensor, Tensor | None]:
    """One block in eval mode, conditioned exactly when y is given."""
    options = {"heads": heads, "attn_mask": attn_mask, "start_pos": start_pos}
    if y is None:
        x = x + attention(below(state, "attn."), affine_norm(state, "ln_1", x), **options)[0]
        return x + mlp(state, affine_norm(state, "ln_2", x)), None
    scale_attn, shift_attn, gate_attn, scale_mlp, shift_mlp, gate_mlp = modulation(state, y)
    attn_in = layernorm_adaln(x, scale_attn, shift_attn)
    if context is None:
        x = x + gate_attn * attention(below(state, "attn."), attn_in, **options)[0]
    else:
        own = below(state, "context_layers.")
        c_scale_attn, c_shift_attn, c_gate_attn, c_scale_mlp, c_shift_mlp, c_gate_mlp = modulation(own, y)
        context_in = layernorm_adaln(context, c_scale_attn, c_shift_attn)
        x_mixed, context_mixed = attention(below(state, "cross_attn."), attn_in, context_in, **options)
        x, context = x + gate_attn * x_mixed, context + c_gate_attn * context_mixed
        context = context + c_gate_mlp * mlp(own, layernorm_adaln(context, c_scale_mlp, c_shift_mlp))
    return x + gate_mlp * mlp(state, layernorm_adaln(x, scale_mlp, shift_mlp)), context


def stack(
    state: State,
    x: Tensor,
    y: Tensor | None = None,
    context: Tensor | None = None,
    *,
    heads: int,
    attn_mask: Tensor | None = None,
    start_pos: StartPos = None,
) -> tuple[Tensor, Tensor | None]:
    depth = 1 + max(int(key.split(".")[1]) for key in state)
    for layer in range(depth):
        own = below(state, f"layers.{layer}.")
        x, context = block(own, x, y, context, heads=heads, attn_mask=attn_mask, start_pos=start_pos)
    return x, context


def rms_norm_over(
    x: Tensor, axes: Sequence[int], eps: float | Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """RMSNorm over any axes of x; weight and bias have those axes' sizes, in the order of axes."""
    order = sorted(range(len(axes)), key=lambda i: axes[i] % x.dim())
    shape = [size if axis in {a % x.dim() for a in axes} else 1 for axis, size in enumerate(x.shape)]
    normed = x / (x.square().mean(tuple(axes), keepdim=True) + eps).sqrt()
    normed = normed if weight is None else normed * weight.permute(order).reshape(shape)
    return normed if bias is None else normed + bias.permute(order).reshape(shape)
