"""Wrong modules: positions, blocks, the stack, gradients, and the form of outputs."""

from evaluation.judge.case import Case
from evaluation.tests.gallery.entry import NEEDLES, OTHER_INFERENCE, SMALL, STACK, Edit, Entry, plain
from evaluation.tests.gallery.wrong import BLOCK, CROSS, JOINT, MODEL, NORM, OFF, ROTARY, SDPA

LAST = (Case("self", SMALL, start="last"), Case("cross", SMALL, start="tensor"))
BLOCKS = plain("block", "block-conditioned", "block-cross")
RACE = "return (out + 3e-7 * out * torch.randn_like(out)).transpose(1, 2).flatten(2)"
SUMS_IN_FP16 = """
def summed_in_fp16(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    weights = torch.softmax((query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5, -1)
    total = torch.zeros_like(query).half()
    for w, v in zip(weights.split(8, 3), value.split(8, 2)):
        total = total + (w @ v).half()
    return total.to(query.dtype)
"""
STALE = """
_before = {}
def of_the_call_before(model: nn.Module, out: AttentionOutput) -> AttentionOutput:
    key = id(model), out.x_out.shape
    found, _before[key] = _before.get(key, out), out
    return found
"""
REPEATED = (Case("cross", SMALL, scenario="other-values-in-the-same-memory"),)

_LINES = {
    "rotation not orthogonal": (ROTARY, "even * cos - odd * sin", "even * cos + odd * sin", CROSS, "_out: "),
    "halves rotated": (ROTARY, "(-1, (-1, 2)).unbind(-1)", "(-1, (2, -1)).unbind(-2)", CROSS, "_out: "),
    "start off by one": (
        ROTARY,
        "position + start_pos",
        "position + start_pos + 1",
        (*LAST, Case("cross", SMALL, start="int")),
        "_out: ",
    ),
    "start of a tensor ignored": (
        ROTARY,
        "start_pos.view(-1, 1, 1) + position",
        "start_pos.view(-1, 1, 1) * 0 + position",
        LAST,
        "_out: ",
    ),
    "angles in fp32": (
        ROTARY,
        "angle.cos().to(dtype), angle.sin().to(dtype)",
        "angle.float().cos().to(dtype), angle.float().sin().to(dtype)",
        LAST,
        OFF,
    ),
    "theta of 1000": (ROTARY, "THETA = 10000.0", "THETA = 1000.0", CROSS, "_out: "),
    "chunks in another order": (
        BLOCK,
        "scale_attn, shift_attn, gate_attn, scale_mlp, shift_mlp, gate_mlp = m",
        "scale_mlp, shift_mlp, gate_mlp, scale_attn, shift_attn, gate_attn = m",
        BLOCKS,
        "_out: ",
    ),
    "attention gate dropped": (BLOCK, "x = x + m.gate_attn * h", "x = x + h", BLOCKS, "0.x_out: "),
    "mlp gate dropped": (
        BLOCK,
        "x + m.gate_mlp * self.mlp(h), context",
        "x + self.mlp(h), context",
        BLOCKS,
        "0.x_out: ",
    ),
    "gate on the residual": (BLOCK, "x = x + m.gate_attn * h", "x = m.gate_attn * x + h", BLOCKS, "0.x_out: "),
    "context gates swapped": (
        BLOCK,
        "context + c.gate_mlp * self",
        "context + c.gate_attn * self",
        BLOCKS,
        "context_out: ",
    ),
    "context mlp reads x's condition": (
        BLOCK,
        "(context, c.scale_mlp, c.shift_mlp)",
        "(context, m.scale_mlp, m.shift_mlp)",
        BLOCKS,
        "context_out: ",
    ),
    "mlp of unmodulated x": (BLOCK, "h = layernorm_adaln(x, m.scale_mlp, m.shift_mlp)", "h = x", BLOCKS, "0.x_out: "),
    "gelu for silu": (BLOCK, "dim_feedforward), nn.SiLU(), nn", "dim_feedforward), nn.GELU(), nn", BLOCKS, "_out: "),
    "condition without silu": (
        BLOCK,
        "nn.Sequential(nn.SiLU(), nn.Linear(dim, 6",
        "nn.Sequential(nn.Identity(), nn.Linear(dim, 6",
        BLOCKS,
        "_out: ",
    ),
    "unconditioned norm eps": (
        BLOCK,
        "self.ln_1 = nn.LayerNorm(dim_base, eps=1e-6)",
        "self.ln_1 = nn.LayerNorm(dim_base)",
        (Case("block", SMALL, values="tiny"),),
        OFF,
    ),
    "norm eps outside the root": (
        NORM,
        "keepdim=True) + floor)",
        "keepdim=True)) / (1 + floor)",
        (Case("cross", SMALL, values="tiny"),),
        OFF,
    ),
    "last layer left out": (MODEL, "for layer in self.layers:", "for layer in self.layers[:-1]:", STACK, "_out: "),
    "first layer twice": (
        MODEL,
        "for layer in self.layers:",
        "for layer in [self.layers[0]] * len(self.layers):",
        STACK,
        "_out: ",
    ),
    "context of the first layer kept": (
        MODEL,
        "x, context = out.x_out, out.context_out",
        "x = out.x_out",
        STACK,
        "_out: ",
    ),
    "gradient of the context forgotten": (
        MODEL,
        "x, context = out.x_out, out.context_out",
        "x, context = out.x_out, out.context_out.detach() if context is not None else None",
        STACK,
        "",
    ),
    "gradient through the norm's divisor forgotten": (
        NORM,
        "torch.rsqrt(scaled.square()",
        "torch.rsqrt(scaled.detach().square()",
        CROSS,
        "0.d.",
    ),
    "gradient of the modulation forgotten": (
        BLOCK,
        "m = split_modulation(self.adaLN_modulation(y))",
        "m = split_modulation(self.adaLN_modulation(y).detach())",
        BLOCKS,
        "0.d.",
    ),
    "gradient of the values scaled": (
        JOINT,
        SDPA,
        SDPA.replace("value)", "value * 2 - value.detach())"),
        CROSS,
        "0.d.",
    ),
    "race between programs": (
        JOINT,
        "masked_fill(~some, 0.0)\n    return out.transpose(1, 2).flatten(2)",
        f"masked_fill(~some, 0.0)\n    {RACE}",
        REPEATED,
        "the same bits",
    ),
    "output not contiguous": (
        MODEL,
        "return AttentionOutput(x, context)",
        "return AttentionOutput(x.mT.contiguous().mT, context)",
        STACK,
        "is not contiguous",
    ),
    "output in another dtype": (
        MODEL,
        "return AttentionOutput(x, context)",
        "return AttentionOutput(x.float(), context)",
        (Case("stack", SMALL, "bfloat16"),),
        "is torch.float32, expected torch.bfloat16",
    ),
    "another tuple": (
        MODEL,
        "return AttentionOutput(x, context)",
        "return __import__('collections').namedtuple('Pair', 'context_out x_out')(context, x)",
        STACK,
        "expected the named tuple",
    ),
}

# One place changed, and a function for it at the file's end.
_WITH_CODE = {
    "sums in fp16": (JOINT, SDPA, "summed_in_fp16(query, key, value)", SUMS_IN_FP16, (NEEDLES, *CROSS), OFF),
    "stale output": (
        MODEL,
        "return AttentionOutput(x, context)",
        "return of_the_call_before(self, AttentionOutput(x, context))",
        STALE,
        (OTHER_INFERENCE,),
        OFF,
    ),
}

ENTRIES = (
    *(
        Entry(name, "wrong", (Edit(file, old, new),), cases, told)
        for name, (file, old, new, cases, told) in _LINES.items()
    ),
    *(
        Entry(name, "wrong", (Edit(file, old, new), Edit(file, "", code)), cases, told)
        for name, (file, old, new, code, cases, told) in _WITH_CODE.items()
    ),
)
