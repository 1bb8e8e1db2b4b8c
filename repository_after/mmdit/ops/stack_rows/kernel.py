"""The kernels of a stack's rows: everything but attention, on tiles of T rows of one stream of one sample.

B batch, L x length, C context length, D model dim, H heads, Dh head dim, F feed-forward, N layers, M streams. Rows of
a sample: x padded to x_tiles * T, then the context padded likewise, R = tiles * T together. modulation is
(B or 1, N, M, 6, D) fp32, `row` the layer's first (N M, 6, D). Weights end in _x for x's and _c for the context's.

PDL (programmatic dependent launch): a program loads its weights before it waits for the kernel before it, and lets
the next kernel begin right after. So what is read before the wait must have been written two kernels ago.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mmdit.ops.stack_rows.kernel_parts import (
    dropout_factor,
    load_angles,
    load_halves,
    load_projection,
    load_vector,
    load_weight,
    locate,
    modulated_norm,
    normed,
    project,
    row_mean,
    silu,
)


@triton.jit(do_not_specialize=["row", "start", "L", "C", "x_tiles", "tiles"])
def qkv_kernel(
    p_x,  # FIRST: (B, L, D), strides (x_batch, x_row, 1); else mid (B, R, D) fp32
    p_c,  # FIRST: (B, C, D), strides (c_batch, c_row, 1); else partial (SLICES, B, R, D) fp32
    p_modulation,
    p_weight_x, p_weight_c,  # (3 D, D)
    p_bias_x, p_bias_c,  # (3 D,)
    p_qnorm_x, p_qnorm_c, p_knorm_x, p_knorm_c,  # (D,)
    p_down_x, p_down_c,  # (D,): the bias of the MLP's second half in the layer before
    p_cos, p_sin,  # (positions, Dh / 2) fp32
    p_start,  # (B,) int or None
    p_residual,  # (B, R, D) fp32, written; or None
    p_kept,  # (B, R, D), written: residual; or None
    p_qkv,  # (3, B, R, D), written
    x_batch, x_row, c_batch, c_row, modulation_batch, qkv_part, slice_stride,
    row, start, L, C, x_tiles, tiles,
    FIRST: tl.constexpr, SLICES: tl.constexpr, PARTS: tl.constexpr, STREAMS: tl.constexpr, TILE: tl.constexpr,
    SCALE: tl.constexpr, NORM_EPS: tl.constexpr, RMS_EPS: tl.constexpr,
    DIM: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """residual = x, or mid + gate_mlp (sum of partials + bias) of the layer before;
    q = SCALE rotary(rms(h Wq^T + bq) qnorm), k = rotary(rms(h Wk^T + bk) knorm), v = h Wv^T + bv, for
    h = LayerNorm(residual) (1 + scale_attn) + shift_attn; rows that are padding are 0 in q, k and v.

    Grid: (B * tiles * PARTS,): PARTS is 3 for a program each for q, k and v, or 1. Saves nothing for backward.
    """
    sample, is_context, o_row, o_stream, m_row = locate(tl.program_id(0) // PARTS, L, C, x_tiles, tiles, TILE)
    rows = tiles * TILE
    o_d = tl.arange(0, BLOCK_D)
    m_x = m_row[:, None] & (o_d < DIM)[None, :]
    p_weight, p_bias = tl.where(is_context, p_weight_c, p_weight_x), tl.where(is_context, p_bias_c, p_bias_x)
    p_qnorm, p_knorm = tl.where(is_context, p_qnorm_c, p_qnorm_x), tl.where(is_context, p_knorm_c, p_knorm_x)
    p_modulation += sample * modulation_batch + (row + is_context.to(tl.int32)) * 6 * DIM
    part = tl.program_id(0) % PARTS
    if p_start is not None:
        start += tl.load(p_start + sample).to(tl.int32)
    m_rotary = m_row & (is_context == 0)
    if PARTS == 3:
        b_wa, b_wb, b_bias_a, b_bias_b = load_projection(p_weight, p_bias, part, DIM, BLOCK_D)
        b_norm_a, b_norm_b = load_halves(tl.where(part == 0, p_qnorm, p_knorm), part, DIM, BLOCK_D)
        b_cos, b_sin = load_angles(p_cos, p_sin, start + o_stream, m_rotary, HEAD_DIM // 2)
    o_x = o_row[:, None] * DIM + o_d[None, :] + sample * rows * DIM
    if FIRST:
        p_from = tl.where(is_context, p_c + sample * c_batch, p_x + sample * x_batch)
        p_from += o_stream[:, None] * tl.where(is_context, c_row, x_row)
        b_x = tl.load(p_from + o_d[None, :], mask=m_x, other=0.0).to(tl.float32)
        b_h, _ = normed(b_x, NORM_EPS, DIM, BLOCK_D)
    else:
        b_branch = load_vector(tl.where(is_context, p_down_c, p_down_x), DIM, BLOCK_D)
        b_gate = load_vector(p_modulation - (STREAMS * 6 - 5) * DIM, DIM, BLOCK_D)
        b_scale, b_shift = load_vector(p_modulation, DIM, BLOCK_D), load_vector(p_modulation + DIM, DIM, BLOCK_D)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if FIRST:
        b_scale, b_shift = load_vector(p_modulation, DIM, BLOCK_D), load_vector(p_modulation + DIM, DIM, BLOCK_D)
    else:
        b_x = tl.load(p_x + o_x, mask=m_x, other=0.0)
        for index in tl.static_range(SLICES):
            b_branch += tl.load(p_c + index * slice_stride + o_x, mask=m_x, other=0.0)
        b_x += b_gate * b_branch
        b_h, _ = normed(b_x, NORM_EPS, DIM, BLOCK_D)
    if part == 0 and p_residual is not None:
        tl.store(p_residual + o_x, b_x, mask=m_x)
    if part == 0 and p_kept is not None:
        tl.store(p_kept + o_x, b_x.to(p_kept.dtype.element_ty), mask=m_x)
    b_h = (b_h * (1.0 + b_scale) + b_shift).to(p_qkv.dtype.element_ty)
    p_qkv += sample * rows * DIM
    if PARTS == 3:
        project(
            b_h, b_wa, b_wb, b_bias_a, b_bias_b, part, b_norm_a, b_norm_b, b_cos, b_sin,
            p_qkv + part * qkv_part, o_row, m_row,
            SCALE, RMS_EPS, DIM, HEAD_DIM, BLOCK_D, PRECISION,
        )  # fmt: skip
    else:
        project_all(
            b_h, p_weight, p_bias, p_qnorm, p_knorm, p_cos, p_sin, p_qkv, qkv_part, o_row, start + o_stream, m_row,
            m_rotary, SCALE, RMS_EPS, DIM, HEAD_DIM, BLOCK_D, PRECISION,
        )  # fmt: skip


@triton.jit
def project_all(
    b_h, p_weight, p_bias, p_qnorm, p_knorm, p_cos, p_sin, p_qkv, qkv_part, o_row, o_position, m_row, m_rotary,
    SCALE: tl.constexpr, EPS: tl.constexpr, DIM: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """q, k and v of rows h (T, BLOCK_D), one after the other."""
    b_cos, b_sin = load_angles(p_cos, p_sin, o_position, m_rotary, HEAD_DIM // 2)
    for part in tl.static_range(3):
        b_wa, b_wb, b_bias_a, b_bias_b = load_projection(p_weight, p_bias, part, DIM, BLOCK_D)
        b_norm_a, b_norm_b = load_halves(p_qnorm if part == 0 else p_knorm, part, DIM, BLOCK_D)
        project(
            b_h, b_wa, b_wb, b_bias_a, b_bias_b, part, b_norm_a, b_norm_b, b_cos, b_sin,
            p_qkv + part * qkv_part, o_row, m_row,
            SCALE, EPS, DIM, HEAD_DIM, BLOCK_D, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=["row", "start", "L", "C", "x_tiles", "tiles"])
def rows_kernel(
    p_o,  # (B, R, D): attention, heads joined
    p_residual,  # (B, R, D) fp32: x before attention
    p_modulation,
    p_out_x, p_out_c, p_out_bias_x, p_out_bias_c, p_out_norm_x, p_out_norm_c,  # (D, D), (D,), (D,)
    p_up_x, p_up_c, p_up_bias_x, p_up_bias_c,  # (F, D), (F,)
    p_down_x, p_down_c, p_down_bias_x, p_down_bias_c,  # (D, F), (D,)
    p_weight_x, p_weight_c, p_bias_x, p_bias_c,  # of the next layer, as in qkv_kernel; None for LAST or sliced
    p_qnorm_x, p_qnorm_c, p_knorm_x, p_knorm_c,
    p_cos, p_sin, p_start,
    p_seed,  # (1,) int64, or None for no dropout; SLICES is 1
    p_mid,  # (B, R, D) fp32, written: mid, or the residual after the layer; LAST: x_out (B, L, D), written
    p_partial,  # SLICES > 1: (SLICES, B, R, D) fp32, written; LAST: context_out (B, C, D), written
    p_kept,  # (B, R, D), written: the residual after the layer; or None, as for LAST or sliced
    p_qkv,  # (3, B, R, D), written where the MLP is not sliced, and not for LAST
    modulation_batch, qkv_part, slice_stride,
    row, start, L, C, x_tiles, tiles,
    SLICES: tl.constexpr, LAST: tl.constexpr, STREAMS: tl.constexpr, TILE: tl.constexpr,
    SCALE: tl.constexpr, NORM_EPS: tl.constexpr, RMS_EPS: tl.constexpr, APPROXIMATE: tl.constexpr,
    DIM: tl.constexpr, HEAD_DIM: tl.constexpr, FORWARD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, P: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """mid = residual + gate_attn rms(o Wo^T + bo) norm; m = silu(h W1^T + b1) W2^T for
    h = LayerNorm(mid) (1 + scale_mlp) + shift_mlp, each slice of the F features by a program of its own, which writes
    its partial sum. Where there is but one slice, it goes on: residual = mid + gate_mlp (m + b2), of m + b2 the share P
    dropped, which LAST writes out, and of which the others take the next layer's q, k and v as qkv_kernel does.

    Grid: (B * tiles * SLICES,). Saves nothing for backward.
    """
    sample, is_context, o_row, o_stream, m_row = locate(tl.program_id(0) // SLICES, L, C, x_tiles, tiles, TILE)
    part = tl.program_id(0) % SLICES
    rows = tiles * TILE
    o_d, o_f = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F)
    m_d = o_d < DIM
    m_x = m_row[:, None] & m_d[None, :]
    o_x = o_row[:, None] * DIM + o_d[None, :] + sample * rows * DIM
    p_modulation += sample * modulation_batch + (row + is_context.to(tl.int32)) * 6 * DIM
    p_up, p_up_bias = tl.where(is_context, p_up_c, p_up_x), tl.where(is_context, p_up_bias_c, p_up_bias_x)
    p_down = tl.where(is_context, p_down_c, p_down_x)
    b_out = load_weight(tl.where(is_context, p_out_c, p_out_x), o_d, o_d, DIM, m_d, m_d)
    b_out_bias = load_vector(tl.where(is_context, p_out_bias_c, p_out_bias_x), DIM, BLOCK_D)
    b_out_norm = load_vector(tl.where(is_context, p_out_norm_c, p_out_norm_x), DIM, BLOCK_D)
    b_gate = load_vector(p_modulation + 2 * DIM, DIM, BLOCK_D)
    b_scale = load_vector(p_modulation + 3 * DIM, DIM, BLOCK_D)
    b_shift = load_vector(p_modulation + 4 * DIM, DIM, BLOCK_D)
    first = part * (FORWARD // SLICES)
    if FORWARD // SLICES == BLOCK_F:
        b_up = load_weight(p_up, first + o_f, o_d, DIM, o_f < FORWARD, m_d)
        b_up_bias = tl.load(p_up_bias + first + o_f).to(tl.float32)[None, :]
        b_down = load_weight(p_down, o_d, first + o_f, FORWARD, m_d, o_f < FORWARD)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    b_o = tl.load(p_o + o_x, mask=m_x, other=0.0)
    b_x = tl.load(p_residual + o_x, mask=m_x, other=0.0)
    b_a = tl.dot(b_o, b_out, input_precision=PRECISION) + b_out_bias
    b_x += b_gate * (b_a * tl.rsqrt(row_mean(b_a * b_a, DIM) + RMS_EPS) * b_out_norm)
    b_h = modulated_norm(b_x, b_scale, b_shift, NORM_EPS, DIM, BLOCK_D).to(b_o.dtype)
    if FORWARD // SLICES == BLOCK_F:
        b_u = silu(tl.dot(b_h, b_up, input_precision=PRECISION) + b_up_bias, APPROXIMATE)
        b_m = tl.dot(b_u.to(b_o.dtype), b_down, input_precision=PRECISION)
    else:
        b_m = tl.zeros((TILE, BLOCK_D), tl.float32)
        for offset in tl.range(first, first + FORWARD // SLICES, BLOCK_F, num_stages=STAGES):
            m_f = offset + o_f < FORWARD
            b_up = load_weight(p_up, offset + o_f, o_d, DIM, m_f, m_d)
            b_up_bias = tl.load(p_up_bias + offset + o_f, mask=m_f, other=0.0).to(tl.float32)[None, :]
            b_down = load_weight(p_down, o_d, offset + o_f, FORWARD, m_d, m_f)
            b_u = silu(tl.dot(b_h, b_up, input_precision=PRECISION) + b_up_bias, APPROXIMATE)
            b_m = tl.dot(b_u.to(b_o.dtype), b_down, b_m, input_precision=PRECISION)
    if SLICES > 1:
        if part == 0:
            tl.store(p_mid + o_x, b_x, mask=m_x)
        tl.store(p_partial + part * slice_stride + o_x, b_m, mask=m_x)
    else:
        b_m += load_vector(tl.where(is_context, p_down_bias_c, p_down_bias_x), DIM, BLOCK_D)
        if p_seed is not None:
            b_m *= dropout_factor(p_seed, (sample * rows + o_row).to(tl.int32), P, DIM, BLOCK_D)
        b_x += load_vector(p_modulation + 5 * DIM, DIM, BLOCK_D) * b_m
        if LAST:
            store_output(p_mid, p_partial, b_x, sample, is_context, o_stream, m_row, L, C, DIM, BLOCK_D)
        else:
            tl.store(p_mid + o_x, b_x, mask=m_x)
            if p_kept is not None:
                tl.store(p_kept + o_x, b_x.to(p_kept.dtype.element_ty), mask=m_x)
            p_modulation += STREAMS * 6 * DIM
            b_scale, b_shift = load_vector(p_modulation, DIM, BLOCK_D), load_vector(p_modulation + DIM, DIM, BLOCK_D)
            b_h = modulated_norm(b_x, b_scale, b_shift, NORM_EPS, DIM, BLOCK_D).to(b_o.dtype)
            if p_start is not None:
                start += tl.load(p_start + sample).to(tl.int32)
            project_all(
                b_h, tl.where(is_context, p_weight_c, p_weight_x), tl.where(is_context, p_bias_c, p_bias_x),
                tl.where(is_context, p_qnorm_c, p_qnorm_x), tl.where(is_context, p_knorm_c, p_knorm_x), p_cos, p_sin,
                p_qkv + sample * rows * DIM, qkv_part, o_row, start + o_stream, m_row, m_row & (is_context == 0),
                SCALE, RMS_EPS, DIM, HEAD_DIM, BLOCK_D, PRECISION,
            )  # fmt: skip


@triton.jit
def store_output(p_x, p_c, b_x, sample, is_context, o_stream, m_row, L, C, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store rows (T, BLOCK_D) into x (B, L, D) or context (B, C, D)."""
    o_d = tl.arange(0, BLOCK_D)
    p_to = tl.where(is_context, p_c + sample * C * DIM, p_x + sample * L * DIM)
    m_to = m_row[:, None] & (o_d < DIM)[None, :]
    tl.store(p_to + o_stream[:, None] * DIM + o_d[None, :], b_x.to(p_x.dtype.element_ty), mask=m_to)


@triton.jit(do_not_specialize=["row", "L", "C", "x_tiles", "tiles"])
def sum_kernel(
    p_mid,  # (B, R, D) fp32
    p_partial,  # (SLICES, B, R, D) fp32
    p_modulation,
    p_down_bias_x, p_down_bias_c,  # (D,)
    p_x,  # (B, L, D), written
    p_c,  # (B, C, D), written
    modulation_batch, slice_stride,
    row, L, C, x_tiles, tiles,
    SLICES: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """x, c = mid + gate_mlp (sum of partials + bias): the end of the last layer where its MLP is sliced.

    Grid: (B * tiles,). Saves nothing for backward.
    """
    sample, is_context, o_row, o_stream, m_row = locate(tl.program_id(0), L, C, x_tiles, tiles, TILE)
    o_d = tl.arange(0, BLOCK_D)
    m_x = m_row[:, None] & (o_d < DIM)[None, :]
    o_x = o_row[:, None] * DIM + o_d[None, :] + sample * tiles * TILE * DIM
    p_modulation += sample * modulation_batch + ((row + is_context.to(tl.int32)) * 6 + 5) * DIM
    b_gate = load_vector(p_modulation, DIM, BLOCK_D)
    b_branch = load_vector(tl.where(is_context, p_down_bias_c, p_down_bias_x), DIM, BLOCK_D)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    for index in tl.static_range(SLICES):
        b_branch += tl.load(p_partial + index * slice_stride + o_x, mask=m_x, other=0.0)
    b_x = tl.load(p_mid + o_x, mask=m_x, other=0.0) + b_gate * b_branch
    store_output(p_x, p_c, b_x, sample, is_context, o_stream, m_row, L, C, DIM, BLOCK_D)
