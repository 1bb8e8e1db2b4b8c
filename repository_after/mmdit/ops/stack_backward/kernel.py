"""The backward kernels of a stack's rows, on tiles of T rows of one stream of one sample.

Names and layout are ops/stack_rows/kernel.py's; d_t is the gradient of t. Rows that are padding are 0 in all that is
written in 16 bits, so that sums over rows need no mask. p_sums (B, R / ROWS, 14, D) fp32 holds the sums over ROWS rows
each: of the six modulations (see MODULATION), then of the gradients in the order of VECTORS in op.py.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mmdit.ops.stack_rows.kernel_parts import (
    dropout_factor,
    load_angles,
    load_vector,
    locate,
    rotate,
    row_mean,
)

SUMS = tl.constexpr(14)


@triton.jit
def normed(b_x, EPS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """LayerNorm(x) (T, BLOCK_D), 0 in the padding, and 1 / its standard deviation (T, 1)."""
    b_x -= row_mean(b_x, DIM)
    if DIM != BLOCK_D:
        b_x = tl.where((tl.arange(0, BLOCK_D) < DIM)[None, :], b_x, 0.0)
    b_rstd = tl.rsqrt(row_mean(b_x * b_x, DIM) + EPS)
    return b_x * b_rstd, b_rstd


@triton.jit
def normed_backward(b_d, b_normed, b_rstd, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """d_x of normed, from d_normed."""
    b_d = b_rstd * (b_d - row_mean(b_d, DIM) - b_normed * row_mean(b_d * b_normed, DIM))
    if DIM != BLOCK_D:
        b_d = tl.where((tl.arange(0, BLOCK_D) < DIM)[None, :], b_d, 0.0)
    return b_d


@triton.jit
def silu_and_slope(b_x, APPROXIMATE: tl.constexpr):
    """x sigmoid(x), and its derivative."""
    if APPROXIMATE:
        b_half = 0.5 * b_x
        b_s = 0.5 * tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [b_half], tl.float32, True, 1) + 0.5
    else:
        b_s = tl.sigmoid(b_x)
    b_u = b_x * b_s
    return b_u, b_s + b_u * (1.0 - b_s)


@triton.jit
def add_sum(p_sums, slot: tl.constexpr, b_t, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store the sum of t (T, BLOCK_D) over its rows as a tile's sum number `slot`."""
    o_d = tl.arange(0, BLOCK_D)
    tl.store(p_sums + slot * DIM + o_d, tl.sum(b_t, 0), mask=o_d < DIM)


@triton.jit
def attended(p_a, p_residual, b_norm, b_gate, o_x, m_x, RMS_EPS: tl.constexpr, DIM: tl.constexpr):
    """mid = residual + gate rms(a) norm; rms(a), and its factor (T, 1)."""
    b_a = tl.load(p_a + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_residual = tl.load(p_residual + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_factor = tl.rsqrt(row_mean(b_a * b_a, DIM) + RMS_EPS)
    b_a *= b_factor
    return b_residual + b_gate * (b_a * b_norm), b_a, b_factor


@triton.jit(do_not_specialize=["row", "L", "C", "x_tiles", "tiles"])
def block_backward_kernel(
    p_d_out,  # (B, R, D) fp32: d_residual after the layer; written: before its MLP
    p_residual,  # (B, R, D) fp32: before the layer
    p_o,  # (B, R, D): attention, heads joined
    p_modulation,  # (B or 1, N, M, 6, D) fp32
    p_out_x, p_out_c, p_out_bias_x, p_out_bias_c, p_out_norm_x, p_out_norm_c,  # (D, D), (D,), (D,)
    p_up_x, p_up_c, p_up_bias_x, p_up_bias_c,  # (F, D), (F,)
    p_down_x, p_down_c, p_down_bias_x, p_down_bias_c,  # (D, F), (D,)
    p_seed,  # (1,) int64, or None for no dropout
    p_h,  # (B, R, D), written: what enters the MLP
    p_d_m,  # (B, R, D), written: d of what its last product gives
    p_d_h,  # (B, R, D), scratch; may be p_d_o
    p_d_a,  # (B, R, D), written: d of what Wo's product gives
    p_d_o,  # (B, R, D), written
    p_sums,  # (B, R / ROWS, 14, D) fp32, written but for what heads_backward_kernel writes
    modulation_batch,
    row, L, C, x_tiles, tiles,
    TILE: tl.constexpr, ROWS: tl.constexpr, NORM_EPS: tl.constexpr, RMS_EPS: tl.constexpr, APPROXIMATE: tl.constexpr,
    DIM: tl.constexpr, FORWARD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr, P: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """From d_out to d_mid and d_o, for mid = residual + gate_attn rms(o Wo^T + bo) norm and
    out = mid + gate_mlp drop(silu(h W1^T + b1) W2^T + b2), h = LayerNorm(mid) (1 + scale_mlp) + shift_mlp.

    Grid: (B * tiles,). Recomputes all between o and out. Products take TILE rows, all else ROWS of them at a time, what
    comes before the MLP twice; they hand each other what Wo gives (in p_d_a), h, d_m, d_h and d_a.
    """
    sample, is_context, o_row, _, m_row = locate(tl.program_id(0), L, C, x_tiles, tiles, TILE)
    row0 = tl.program_id(0) % tiles * TILE
    left = tl.where(is_context, C + x_tiles * TILE, L) - row0  # rows that are there
    o_d, o_f = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F)
    m_d = o_d < DIM
    o_rows = tl.arange(0, ROWS)[:, None]
    first = (sample * tiles * TILE + row0) * DIM
    p_d_out, p_residual, p_o, p_h = p_d_out + first, p_residual + first, p_o + first, p_h + first
    p_d_m, p_d_h, p_d_a, p_d_o = p_d_m + first, p_d_h + first, p_d_a + first, p_d_o + first
    p_sums += tl.program_id(0) * (TILE // ROWS) * SUMS * DIM
    p_modulation += sample * modulation_batch + (row + is_context.to(tl.int32)) * 6 * DIM
    p_up, p_up_bias = tl.where(is_context, p_up_c, p_up_x), tl.where(is_context, p_up_bias_c, p_up_bias_x)
    p_down, p_out = tl.where(is_context, p_down_c, p_down_x), tl.where(is_context, p_out_c, p_out_x)
    p_out_bias = tl.where(is_context, p_out_bias_c, p_out_bias_x)
    p_out_norm = tl.where(is_context, p_out_norm_c, p_out_norm_x)
    o_tile, m_tile = (tl.arange(0, TILE) * DIM)[:, None] + o_d[None, :], m_row[:, None] & m_d[None, :]
    o_out, m_out = o_d[:, None] * DIM + o_d[None, :], m_d[:, None] & m_d[None, :]

    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    b_o = tl.load(p_o + o_tile, mask=m_tile, other=0.0)
    b_out = tl.load(p_out + o_out, mask=m_out, other=0.0)
    b_product = tl.dot(b_o, tl.trans(b_out), input_precision=PRECISION) + load_vector(p_out_bias, DIM, BLOCK_D)
    tl.store(p_d_a + o_tile, b_product.to(p_h.dtype.element_ty), mask=m_d[None, :])
    tl.debug_barrier()
    for start in tl.range(0, TILE, ROWS, num_stages=1):
        o_x = (start + o_rows) * DIM + o_d[None, :]
        m_x = (start + o_rows < left) & m_d[None, :]
        b_norm = load_vector(p_out_norm, DIM, BLOCK_D)
        b_gate = load_vector(p_modulation + 2 * DIM, DIM, BLOCK_D)
        b_d_m = tl.load(p_d_out + o_x, mask=m_x, other=0.0)
        b_mid, b_a, b_factor = attended(p_d_a, p_residual, b_norm, b_gate, o_x, m_x, RMS_EPS, DIM)
        b_normed, b_rstd = normed(b_mid, NORM_EPS, DIM, BLOCK_D)
        b_scale = 1.0 + load_vector(p_modulation + 3 * DIM, DIM, BLOCK_D)
        b_h = b_normed * b_scale + load_vector(p_modulation + 4 * DIM, DIM, BLOCK_D)
        tl.store(p_h + o_x, tl.where(m_x, b_h, 0.0).to(p_h.dtype.element_ty), mask=m_d[None, :])
        if p_seed is not None:
            o_all = (sample * tiles * TILE + row0 + start + tl.arange(0, ROWS)).to(tl.int32)
            b_d_m *= dropout_factor(p_seed, o_all, P, DIM, BLOCK_D)
        b_d_m *= load_vector(p_modulation + 5 * DIM, DIM, BLOCK_D)
        add_sum(p_sums + start // ROWS * SUMS * DIM, 13, b_d_m, DIM, BLOCK_D)
        tl.store(p_d_m + o_x, b_d_m.to(p_h.dtype.element_ty), mask=m_d[None, :])

    tl.debug_barrier()
    b_x = tl.load(p_h + o_tile, mask=m_d[None, :], other=0.0)  # to shared memory, as operands that are loaded are
    b_d_y = tl.load(p_d_m + o_tile, mask=m_d[None, :], other=0.0)
    b_m = tl.zeros((TILE, BLOCK_D), tl.float32)
    b_d_h = tl.zeros((TILE, BLOCK_D), tl.float32)
    for offset in tl.range(0, FORWARD, BLOCK_F, num_stages=STAGES):
        b_up = tl.load(p_up + (offset + o_f)[:, None] * DIM + o_d[None, :], mask=m_d[None, :], other=0.0)
        b_down = tl.load(p_down + o_d[:, None] * FORWARD + (offset + o_f)[None, :], mask=m_d[:, None], other=0.0)
        b_pre = tl.dot(b_x, tl.trans(b_up), input_precision=PRECISION)
        b_pre += tl.load(p_up_bias + offset + o_f).to(tl.float32)[None, :]
        b_d_pre = tl.dot(b_d_y, b_down, input_precision=PRECISION)
        b_u, b_slope = silu_and_slope(b_pre, APPROXIMATE)
        b_d_pre *= b_slope
        b_m = tl.dot(b_u.to(b_x.dtype), tl.trans(b_down), b_m, input_precision=PRECISION)
        b_d_h = tl.dot(b_d_pre.to(b_x.dtype), b_up, b_d_h, input_precision=PRECISION)
    tl.store(p_d_h + o_tile, b_d_h.to(p_h.dtype.element_ty), mask=m_d[None, :])
    b_m += load_vector(tl.where(is_context, p_down_bias_c, p_down_bias_x), DIM, BLOCK_D)
    if p_seed is not None:
        b_m *= dropout_factor(p_seed, (sample * tiles * TILE + o_row).to(tl.int32), P, DIM, BLOCK_D)
    add_sum(p_sums, 5, tl.load(p_d_out + o_tile, mask=m_tile, other=0.0) * b_m, DIM, BLOCK_D)
    tl.debug_barrier()

    for start in tl.range(0, TILE, ROWS, num_stages=1):
        o_x = (start + o_rows) * DIM + o_d[None, :]
        m_x = (start + o_rows < left) & m_d[None, :]
        b_norm = load_vector(p_out_norm, DIM, BLOCK_D)
        b_gate = load_vector(p_modulation + 2 * DIM, DIM, BLOCK_D)
        b_loaded = tl.load(p_d_h + o_x, mask=m_x, other=0.0)
        b_mid, b_a, b_factor = attended(p_d_a, p_residual, b_norm, b_gate, o_x, m_x, RMS_EPS, DIM)
        b_normed, b_rstd = normed(b_mid, NORM_EPS, DIM, BLOCK_D)
        b_d = b_loaded.to(tl.float32)
        if start > 0:
            tl.store(p_sums + 5 * DIM + o_d, tl.zeros((BLOCK_D,), tl.float32), mask=m_d)
        add_sum(p_sums, 3, b_d * b_normed, DIM, BLOCK_D)
        add_sum(p_sums, 4, b_d, DIM, BLOCK_D)
        b_d *= 1.0 + load_vector(p_modulation + 3 * DIM, DIM, BLOCK_D)
        b_d = normed_backward(b_d, b_normed, b_rstd, DIM, BLOCK_D) + tl.load(p_d_out + o_x, mask=m_x, other=0.0)
        tl.debug_barrier()
        tl.store(p_d_out + o_x, b_d, mask=m_x)
        add_sum(p_sums, 2, b_d * b_a * b_norm, DIM, BLOCK_D)
        b_d *= b_gate
        add_sum(p_sums, 12, b_d * b_a, DIM, BLOCK_D)
        b_d *= b_norm
        b_d = b_factor * (b_d - b_a * row_mean(b_d * b_a, DIM))
        add_sum(p_sums, 11, b_d, DIM, BLOCK_D)
        tl.debug_barrier()
        tl.store(p_d_a + o_x, b_d.to(p_h.dtype.element_ty), mask=m_d[None, :])
        p_sums += SUMS * DIM
    tl.debug_barrier()
    b_d_a = tl.load(p_d_a + o_tile, mask=m_d[None, :], other=0.0)
    b_out = tl.load(p_out + o_out, mask=m_out, other=0.0)
    b_d_o = tl.dot(b_d_a, b_out, input_precision=PRECISION)
    tl.store(p_d_o + o_tile, b_d_o.to(p_h.dtype.element_ty), mask=m_d[None, :])


@triton.jit(do_not_specialize=["row", "start", "L", "C", "x_tiles", "tiles"])
def heads_backward_kernel(
    p_d_heads,  # (3, B, R, D): d_query, d_key, d_value, as they are stored; written: d of what the projections give
    p_d_residual,  # (B, R, D) fp32: d of what passes by the attention; written: d_residual before the layer
    p_residual,  # (B, R, D) fp32: before the layer
    p_modulation,
    p_weight_x, p_weight_c, p_bias_x, p_bias_c,  # (3 D, D), (3 D,)
    p_qnorm_x, p_qnorm_c, p_knorm_x, p_knorm_c,  # (D,)
    p_cos, p_sin,  # (positions, Dh / 2) fp32
    p_start,  # (B,) int or None
    p_h,  # (B, R, D), written: what enters the projections
    p_y,  # (2, B, R, D), scratch
    p_sums,
    modulation_batch, qkv_part, y_part,
    row, start, L, C, x_tiles, tiles,
    TILE: tl.constexpr, ROWS: tl.constexpr, HALVES: tl.constexpr, SCALE: tl.constexpr, NORM_EPS: tl.constexpr,
    RMS_EPS: tl.constexpr, DIM: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """From d_q, d_k, d_v to d_residual, for q = SCALE rotary(rms(h Wq^T + bq) qnorm),
    k = rotary(rms(h Wk^T + bk) knorm), v = h Wv^T + bv, h = LayerNorm(residual) (1 + scale_attn) + shift_attn.

    Grid: (B * tiles,). HALVES: in each head of q and k the even columns come first. Products take TILE rows, all else
    ROWS of them at a time; they hand each other h, what Wq and Wk give, and d_h.
    """
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    is_context = tl.program_id(0) % tiles >= x_tiles
    HALF: tl.constexpr = HEAD_DIM // 2
    dtype = p_h.dtype.element_ty
    row0 = tl.program_id(0) % tiles * TILE
    stream0 = tl.where(is_context, row0 - x_tiles * TILE, row0)
    left = tl.where(is_context, C, L) - stream0  # rows that are there
    o_d, o_pair = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_D // 2)
    m_d, m_pairs = (o_d < DIM)[None, :], (o_pair < DIM // 2)[None, :]
    o_rows = tl.arange(0, ROWS)[:, None]
    o_tile = (tl.arange(0, TILE) * DIM)[:, None] + o_d[None, :]
    o_weight, m_weight = o_d[:, None] * DIM + o_d[None, :], (o_d < DIM)[:, None] & m_d
    first = (sample * tiles * TILE + row0) * DIM
    p_d_heads, p_d_residual, p_residual = p_d_heads + first, p_d_residual + first, p_residual + first
    p_h, p_y = p_h + first, p_y + first
    p_sums += tl.program_id(0) * (TILE // ROWS) * SUMS * DIM
    p_modulation += sample * modulation_batch + (row + is_context.to(tl.int32)) * 6 * DIM
    p_weight, p_bias = tl.where(is_context, p_weight_c, p_weight_x), tl.where(is_context, p_bias_c, p_bias_x)
    p_qnorm, p_knorm = tl.where(is_context, p_qnorm_c, p_qnorm_x), tl.where(is_context, p_knorm_c, p_knorm_x)
    if p_start is not None:
        start += tl.load(p_start + sample).to(tl.int32)
    start += stream0

    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    for begin in tl.range(0, TILE, ROWS, num_stages=1):
        o_x = (begin + o_rows) * DIM + o_d[None, :]
        m_x = (begin + o_rows < left) & m_d
        b_x = tl.load(p_residual + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_normed, b_rstd = normed(b_x, NORM_EPS, DIM, BLOCK_D)
        b_normed *= 1.0 + load_vector(p_modulation, DIM, BLOCK_D)
        b_normed += load_vector(p_modulation + DIM, DIM, BLOCK_D)
        tl.store(p_h + o_x, tl.where(m_x, b_normed, 0.0).to(dtype), mask=m_d)
    tl.debug_barrier()
    b_h = tl.load(p_h + o_tile, mask=m_d, other=0.0)
    for index in tl.range(0, 2, num_stages=STAGES):
        b_w = tl.load(p_weight + index * DIM * DIM + o_weight, mask=m_weight, other=0.0)
        b_product = tl.dot(b_h, tl.trans(b_w), input_precision=PRECISION)
        b_product += load_vector(p_bias + index * DIM, DIM, BLOCK_D)
        tl.store(p_y + index * y_part + o_tile, b_product.to(dtype), mask=m_d)
    tl.debug_barrier()

    for begin in tl.range(0, TILE, ROWS, num_stages=1):
        o_first = (begin + o_rows) * DIM
        o_x = o_first + o_d[None, :]
        m_there = begin + o_rows < left
        m_x = m_there & m_d
        o_position = begin + tl.arange(0, ROWS)
        m_rotary = (o_position < left) & (is_context == 0)
        b_cos, b_sin = load_angles(p_cos, p_sin, start + o_position, m_rotary, HALF)
        p_tile = p_sums + begin // ROWS * SUMS * DIM
        for part in tl.static_range(3):
            if part == 2:
                b_d = tl.load(p_d_heads + part * qkv_part + o_x, mask=m_x, other=0.0).to(tl.float32)
            else:
                b_y = tl.load(p_y + part * y_part + o_x, mask=m_x, other=0.0).to(tl.float32)
                if HALVES:
                    p_even = (
                        p_d_heads + part * qkv_part + o_first + (o_pair // HALF * HEAD_DIM + o_pair % HALF)[None, :]
                    )
                    b_even = tl.load(p_even, mask=m_there & m_pairs, other=0.0).to(tl.float32)
                    b_odd = tl.load(p_even + HALF, mask=m_there & m_pairs, other=0.0).to(tl.float32)
                else:
                    b_both = tl.load(p_d_heads + part * qkv_part + o_x, mask=m_x, other=0.0).to(tl.float32)
                    b_even, b_odd = tl.split(tl.reshape(b_both, (ROWS, BLOCK_D // 2, 2)))
                b_factor = tl.rsqrt(row_mean(b_y * b_y, DIM) + RMS_EPS)
                b_y *= b_factor
                b_odd, b_even = rotate(b_odd, b_even, b_cos, b_sin, HALF)  # back
                b_d = tl.interleave(b_even, b_odd)
                if part == 0:
                    b_d *= SCALE
                add_sum(p_tile, 9 + part, b_d * b_y, DIM, BLOCK_D)
                b_d *= load_vector(p_qnorm if part == 0 else p_knorm, DIM, BLOCK_D)
                b_d = b_factor * (b_d - b_y * row_mean(b_d * b_y, DIM))
            add_sum(p_tile, 6 + part, b_d, DIM, BLOCK_D)
            tl.debug_barrier()
            tl.store(p_d_heads + part * qkv_part + o_x, b_d.to(dtype), mask=m_d)
    tl.debug_barrier()

    b_d_h = tl.zeros((TILE, BLOCK_D), tl.float32)
    for index in tl.range(0, 3, num_stages=STAGES):
        b_w = tl.load(p_weight + index * DIM * DIM + o_weight, mask=m_weight, other=0.0)
        b_d_y = tl.load(p_d_heads + index * qkv_part + o_tile, mask=m_d, other=0.0)
        b_d_h = tl.dot(b_d_y, b_w, b_d_h, input_precision=PRECISION)
    tl.store(p_y + o_tile, b_d_h.to(dtype), mask=m_d)
    tl.debug_barrier()
    for begin in tl.range(0, TILE, ROWS, num_stages=1):
        o_x = (begin + o_rows) * DIM + o_d[None, :]
        m_x = (begin + o_rows < left) & m_d
        b_past = tl.load(p_d_residual + o_x, mask=m_x, other=0.0)
        b_x = tl.load(p_residual + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_d = tl.load(p_y + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_normed, b_rstd = normed(b_x, NORM_EPS, DIM, BLOCK_D)
        p_tile = p_sums + begin // ROWS * SUMS * DIM
        add_sum(p_tile, 0, b_d * b_normed, DIM, BLOCK_D)
        add_sum(p_tile, 1, b_d, DIM, BLOCK_D)
        b_d *= 1.0 + load_vector(p_modulation, DIM, BLOCK_D)
        b_d = b_past + normed_backward(b_d, b_normed, b_rstd, DIM, BLOCK_D)
        tl.debug_barrier()
        tl.store(p_d_residual + o_x, b_d, mask=m_x)
