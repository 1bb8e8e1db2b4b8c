"""The cuts that make seams of repository_before: text of its files, and what stands there in a starting tree."""

from typing import NamedTuple


class Cut(NamedTuple):
    """In mmdit/FILE, `old`, which is there once, becomes `new`."""

    file: str
    old: str
    new: str


NORM = "norm.py"
ATTENTION = "attention.py"
BLOCK = "block.py"

CUTS = (
    Cut(
        "__init__.py",
        "from mmdit.norm import RMSNorm, layernorm_adaln, rmsnorm_adaln\n",
        "from mmdit.norm import RMSNorm, layernorm_adaln, rmsnorm_adaln\nfrom mmdit.runtime.dispatch import explain\n",
    ),
    Cut("__init__.py", '    "layernorm_adaln",\n', '    "explain",\n    "layernorm_adaln",\n'),
    Cut(
        NORM,
        "from mmdit.errors import ShapeError\n",
        "from mmdit.errors import ShapeError\nfrom mmdit.seams import seam\n",
    ),
    Cut(
        NORM,
        "        return rms_normalize(x, self.eps, self.weight)\n",
        """        if kernel := seam("rmsnorm", x, self.weight):
            return kernel(x, self.weight, self.eps)
        return rms_normalize(x, self.eps, self.weight)
""",
    ),
    Cut(
        NORM,
        "    return modulate(F.layer_norm(",
        """    if kernel := seam("layernorm_adaln", x, scale, shift):
        return kernel(x, scale, shift, eps)
    return modulate(F.layer_norm(""",
    ),
    Cut(
        NORM,
        "    return modulate(rms_normalize(",
        """    if kernel := seam("rmsnorm_adaln", x, scale, shift, weight):
        return kernel(x, scale, shift, eps, weight)
    return modulate(rms_normalize(""",
    ),
    Cut(
        ATTENTION,
        "from mmdit.rotary import RotaryEmbedding\n",
        "from mmdit.rotary import RotaryEmbedding\nfrom mmdit.seams import seam\n",
    ),
    Cut(
        ATTENTION,
        """        check_sequence("x", x, self.dim, self.to_qkv.weight)
        check_mask(attn_mask, x)
        check_start_pos(start_pos, x, self.max_seq_len)
        return AttentionOutput(self.to_out(self.attend(*self.project(x, start_pos), attn_mask)))
""",
        """        return AttentionOutput(self.to_out(self.mix(x, attn_mask, start_pos)))

    def mix(self, x: Tensor, attn_mask: Tensor | None, start_pos: Tensor | int | None) -> Float[Tensor, "B L D"]:
        \"\"\"Attention of x before its output projection, heads joined.\"\"\"
        check_sequence("x", x, self.dim, self.to_qkv.weight)
        check_mask(attn_mask, x)
        check_start_pos(start_pos, x, self.max_seq_len)
        return self.attend(*self.project(x, start_pos), attn_mask)
""",
    ),
    Cut(
        ATTENTION,
        "        attention = linear_attention if self.linear else softmax_attention\n",
        """        kernel = None if self.linear else seam("attention", q, k, v)
        if kernel:
            return rearrange(kernel(q, k, v, None if attn_mask is None else attn_mask != 0), "B H S Dh -> B S (H Dh)")
        attention = linear_attention if self.linear else softmax_attention
""",
    ),
    Cut(
        ATTENTION,
        """        check_present("context", context, self.use_context, "use_context=False")
""",
        """        x_out, context_out = self.mix_streams(x, context, attn_mask, start_pos)
        return AttentionOutput(self.to_out(x_out), self.c_to_out(context_out))

    def mix_streams(
        self, x: Tensor, context: Tensor, attn_mask: Tensor | None, start_pos: Tensor | int | None
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B C D"]]:
        \"\"\"Joint attention of both streams before their output projections, heads joined.\"\"\"
        check_present("context", context, self.use_context, "use_context=False")
""",
    ),
    Cut(
        ATTENTION,
        """        streams = zip(self.project(x, start_pos), self.project_context(context), strict=True)
""",
        """        of_x, of_context = self.project(x, start_pos), self.project_context(context)
        if not self.linear and (kernel := seam("joint_attention", *of_x, *of_context)):
            outs = kernel(*of_x, *of_context, None if attn_mask is None else attn_mask != 0)
            return tuple(rearrange(out, "B H S Dh -> B S (H Dh)") for out in outs)
        streams = zip(of_x, of_context, strict=True)
""",
    ),
    Cut(
        ATTENTION,
        """        x_out, context_out = self.attend(q, k, v, attn_mask).split([x.shape[1], context.shape[1]], dim=1)
        return AttentionOutput(self.to_out(x_out), self.c_to_out(context_out))
""",
        """        return self.attend(q, k, v, attn_mask).split([x.shape[1], context.shape[1]], dim=1)
""",
    ),
    Cut(
        BLOCK,
        "from mmdit.norm import layernorm_adaln\n",
        "from mmdit.norm import layernorm_adaln\nfrom mmdit.seams import seam\n",
    ),
    Cut(
        BLOCK,
        """class MMDiTBlock(nn.Module):
""",
        """def finish_branch(heads_out: Tensor, to_out: nn.Sequential, gate: Tensor, residual: Tensor) -> Tensor:
    \"\"\"residual + gate * to_out(heads_out); heads_out, residual (B, L, D), gate (B, 1, D).\"\"\"
    projection, norm = to_out
    weights = (projection.weight, projection.bias, norm.weight)
    if kernel := seam("finish_branch", heads_out, *weights, gate, residual):
        return kernel(heads_out, *weights, gate, residual, norm.eps)
    return residual + gate * to_out(heads_out)


class MMDiTBlock(nn.Module):
""",
    ),
    Cut(
        BLOCK,
        """            h, h_context = self.cross_attn(h, h_context, attn_mask, start_pos)
            context = context + c.gate_attn * h_context
""",
        """            heads, context_heads = self.cross_attn.mix_streams(h, h_context, attn_mask, start_pos)
            x = finish_branch(heads, self.cross_attn.to_out, m.gate_attn, x)
            context = finish_branch(context_heads, self.cross_attn.c_to_out, c.gate_attn, context)
""",
    ),
    Cut(
        BLOCK,
        """            h = self.attn(h, attn_mask, start_pos).x_out
        x = x + m.gate_attn * h
""",
        """            x = finish_branch(self.attn.mix(h, attn_mask, start_pos), self.attn.to_out, m.gate_attn, x)
""",
    ),
)
