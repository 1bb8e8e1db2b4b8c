"""The kernel of a gated residual and the modulated norm after it.

B batch, L length, D model dim. Pointers are p_*, block values b_*, offsets o_*, masks m_*.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["L"])
def gated_residual_kernel(
    p_branch,  # (B, L, D), strides (branch_batch, branch_row, 1)
    p_residual,  # (B, L, D), strides (residual_batch, residual_row, 1)
    p_bias,  # (D,) or None
    p_gate,  # (B, D), strides (gate_batch, 1), or None
    p_rms_weight,  # (D,) or None
    p_scale,  # (B, D), strides (scale_batch, 1), or None
    p_shift,  # (B, D), strides (shift_batch, 1), or None
    p_out,  # (B, L, D), contiguous
    p_normed,  # (B, L, D), contiguous, unused without p_scale
    branch_batch,
    branch_row,
    residual_batch,
    residual_row,
    gate_batch,
    scale_batch,
    shift_batch,
    L,
    D: tl.constexpr,
    RMS_EPS: tl.constexpr,
    NORM_EPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """With b = branch + bias:

        out = residual + gate * b [/ sqrt(mean(b^2) + RMS_EPS) * rms_weight]
        normed = (out - mean(out)) / sqrt(var(out) + NORM_EPS) * (1 + scale) + shift

    Grid: (B * cdiv(L, ROWS),), one program per ROWS rows of one sample. Saves nothing for backward.
    """
    tiles = tl.cdiv(L, ROWS)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    o_l = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)[:, None]
    o_d = tl.arange(0, BLOCK_D)[None, :]
    m_d = o_d < D
    m_x = (o_l < L) & m_d
    o_row = o_l.to(tl.int64)

    # (ROWS, BLOCK_D)
    b_branch = tl.load(p_branch + batch * branch_batch + o_row * branch_row + o_d, mask=m_x, other=0.0).to(tl.float32)
    b_out = tl.load(p_residual + batch * residual_batch + o_row * residual_row + o_d, mask=m_x, other=0.0)
    b_out = b_out.to(tl.float32)
    # (1, BLOCK_D)
    if p_bias is not None:
        b_branch += tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    if p_rms_weight is not None:
        b_weight = tl.load(p_rms_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_branch *= tl.rsqrt(tl.sum(b_branch * b_branch, 1, keep_dims=True) / D + RMS_EPS) * b_weight
    if p_gate is not None:
        b_branch *= tl.load(p_gate + batch * gate_batch + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_out += b_branch
    o_out = (batch * L + o_l) * D + o_d
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_x)
    if p_scale is not None:
        b_gain = 1.0 + tl.load(p_scale + batch * scale_batch + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_shift = tl.load(p_shift + batch * shift_batch + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_out = tl.where(m_d, b_out - tl.sum(b_out, 1, keep_dims=True) / D, 0.0)
        b_out *= tl.rsqrt(tl.sum(b_out * b_out, 1, keep_dims=True) / D + NORM_EPS)
        tl.store(p_normed + o_out, (b_out * b_gain + b_shift).to(p_normed.dtype.element_ty), mask=m_x)
