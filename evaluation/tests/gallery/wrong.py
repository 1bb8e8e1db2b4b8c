"""Wrong modules: one place of the arithmetic changed."""

from evaluation.judge.case import Case
from evaluation.tests.gallery.entry import FUNCTIONS, NEEDLES, SMALL, Edit, Entry, plain

ATTENTION, ROTARY, BLOCK, NORM, MODEL = "attention.py", "rotary.py", "block.py", "norm.py", "model.py"
ADALN, JOINT = "ops/norm_adaln/reference.py", "ops/joint_attention/reference.py"
SDPA = "F.scaled_dot_product_attention(query, key, value)"
MASKED = tuple(Case("cross", SMALL, mask=mask) for mask in ("random", "empty-rows", "empty-columns", "causal"))

LINEAR = (*plain("self-linear", "cross-linear"), Case("cross-linear", SMALL, mask="random", mode="inference"))
CROSS = plain("cross", "self")
OFF = "relative L2 error"

# name: file, old, new, the cases that are enough, and what the grader must tell
_LINES = {
    "scale for shift": (ADALN, "* (1 + scale) + shift)", "* (1 + shift) + scale)", FUNCTIONS, "0.x_out: "),
    "scale without one": (ADALN, "(1 + scale) + shift)", "scale + shift)", FUNCTIONS, "0.x_out: "),
    "shift dropped": (ADALN, "(1 + scale) + shift)", "(1 + scale))", FUNCTIONS, "0.x_out: "),
    "rms for layer norm": (
        ADALN,
        "F.layer_norm(x, [x.shape[2]], None, None, eps)",
        "normalize(x, eps, False)[0]",
        FUNCTIONS,
        "0.x_out: ",
    ),
    "eps ten times as large": (ADALN, "None, None, eps)", "None, None, 10 * eps)", FUNCTIONS, "0.x_out"),
    "eps outside the root": (
        ADALN,
        "torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)",
        "1 / (wide.square().mean(-1, keepdim=True).sqrt() + eps)",
        FUNCTIONS,
        "0.x_out: ",
    ),
    "weight dropped": (ADALN, "normed = normed * weight", "pass", FUNCTIONS, "0.x_out: "),
    "sum over one less": (ADALN, "wide.square().mean(-1", "wide.square().sum(-1", FUNCTIONS, "0.x_out: "),
    "norm in 16 bits": (
        ADALN,
        "    if center:\n        normed = F.layer_norm(",
        "    x = x.half().to(x.dtype)\n    if center:\n        normed = F.layer_norm(",
        FUNCTIONS,
        "0.x_out: ",
    ),
    "key norm missing": (ATTENTION, "self.split_heads(self.rms_norm_k(k))", "self.split_heads(k)", CROSS, "0.x_out: "),
    "norm per head": (
        ATTENTION,
        "self.split_heads(self.rms_norm_q(q))",
        "F.rms_norm(self.split_heads(q), [self.dim // self.num_head])",
        CROSS,
        "0.x_out: ",
    ),
    "value bias missing": (
        ATTENTION,
        "self.rotary(k, start_pos), self.split_heads(v)",
        "self.rotary(k, start_pos), self.split_heads(v - self.to_qkv.bias[2 * self.dim :])",
        CROSS,
        "0.x_out: ",
    ),
    "context key normed as query": (ATTENTION, "self.c_rms_norm_k(k)", "self.c_rms_norm_q(k)", CROSS, "_out: "),
    "context ignored": (
        ATTENTION,
        "self.project_context(context)",
        "self.project_context(context * 0)",
        CROSS,
        "_out: ",
    ),
    "context turned": (
        ATTENTION,
        "return self.split_heads(q), self.split_heads(k), self.split_heads(v)",
        "return self.rotary(self.split_heads(q), 0), self.rotary(self.split_heads(k), 0), self.split_heads(v)",
        CROSS,
        "_out: ",
    ),
    "one output projection for both": (
        ATTENTION,
        "self.c_to_out(context_out)",
        "self.to_out(context_out)",
        CROSS,
        "context_out: ",
    ),
    "output norm missing": (
        ATTENTION,
        "AttentionOutput(self.to_out(x_out)",
        "AttentionOutput(self.to_out[0](x_out)",
        CROSS,
        "0.x_out: ",
    ),
    "linear eps of one": (ATTENTION, "(out[..., -1:] + eps)", "(out[..., -1:] + 1)", LINEAR, "_out: "),
    "linear without relu of the key": (ATTENTION, "F.relu(k).to(wide)", "k.to(wide)", LINEAR, "_out: "),
    "linear mask ignored": (
        ATTENTION,
        "((q @ k.transpose(-2, -1)) * mask)",
        "(q @ k.transpose(-2, -1))",
        LINEAR,
        "_out: ",
    ),
    "softmax scale missing": (JOINT, SDPA, f"{SDPA[:-1]}, scale=1.0)", CROSS, "_out: "),
    "masked softmax scale missing": (
        JOINT,
        "attn_mask=mask | ~some)",
        "attn_mask=mask | ~some, scale=1.0)",
        MASKED,
        "_out: ",
    ),
    "empty row not zero": (JOINT, ".masked_fill(~some, 0.0)", "", MASKED, "x_out: "),
    "context columns hidden": (JOINT, "attn_mask.any(2, keepdim", "attn_mask.all(2, keepdim", MASKED, "_out: "),
    "context rows see all": (
        JOINT,
        "attn_mask.any(1, keepdim=True)",
        "attn_mask.any(1, keepdim=True).logical_or(torch.tensor(True))",
        MASKED,
        "_out: ",
    ),
    "context hidden from itself": (JOINT, "own = torch.ones(", "own = torch.zeros(", MASKED, "_out: "),
    "mask ignored": (JOINT, "    if attn_mask is None:\n        out", "    if True:\n        out", MASKED, "_out: "),
    "mask transposed": (
        JOINT,
        "joint_mask(attn_mask, context_length)",
        "joint_mask(attn_mask.mT, context_length)",
        MASKED,
        "_out: ",
    ),
    "last key dropped": (
        JOINT,
        SDPA,
        SDPA.replace("key, value", "key[:, :, :-1], value[:, :, :-1]"),
        (NEEDLES,),
        "_out: ",
    ),
    "tail of a tile not masked": (
        JOINT,
        SDPA,
        SDPA.replace("key, value", "F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))"),
        CROSS,
        "_out: ",
    ),
    "key at a tile's edge dropped": (
        JOINT,
        SDPA,
        SDPA.replace("key, value", "*(torch.cat((t[:, :, :64], t[:, :, 65:]), dim=2) for t in (key, value))"),
        (NEEDLES,),
        "_out: ",
    ),
    "no rescaling between tiles": (
        JOINT,
        SDPA,
        " + ".join(SDPA.replace("key, value", f"key[:, :, {s}], value[:, :, {s}]") for s in (":8", "8:")),
        CROSS,
        "_out: ",
    ),
    "probabilities in fp16": (
        JOINT,
        SDPA,
        SDPA.replace("query, key, value", "query.half(), key.half(), value.half()") + ".to(query.dtype)",
        CROSS,
        OFF,
    ),
    "heads interleaved": (
        JOINT,
        "out.transpose(1, 2).flatten(2)",
        "out.permute(0, 2, 3, 1).flatten(2)",
        CROSS,
        "_out: ",
    ),
}

ENTRIES = tuple(
    Entry(name, "wrong", (Edit(file, old, new),), cases, told) for name, (file, old, new, cases, told) in _LINES.items()
)
