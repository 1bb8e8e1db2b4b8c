"""The backward of a layer's queries, keys and values; names and layout as in kernel.py."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mmdit.ops.stack_backward.kernel_parts import SUMS, add_sum, normed_backward
from mmdit.ops.stack_rows.kernel_parts import load_angles, load_vector, normed, rotate, row_mean


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
        loaded = ()  # all of it before anything is written over it
        for part in tl.static_range(2):
            b_y = tl.load(p_y + part * y_part + o_x, mask=m_x, other=0.0)
            if HALVES:
                p_even = p_d_heads + part * qkv_part + o_first + (o_pair // HALF * HEAD_DIM + o_pair % HALF)[None, :]
                b_even = tl.load(p_even, mask=m_there & m_pairs, other=0.0)
                b_odd = tl.load(p_even + HALF, mask=m_there & m_pairs, other=0.0)
            else:
                b_both = tl.load(p_d_heads + part * qkv_part + o_x, mask=m_x, other=0.0)
                b_even, b_odd = tl.split(tl.reshape(b_both, (ROWS, BLOCK_D // 2, 2)))
            loaded += (b_y, b_even, b_odd)
        b_d_value = tl.load(p_d_heads + 2 * qkv_part + o_x, mask=m_x, other=0.0).to(tl.float32)
        tl.debug_barrier()
        for part in tl.static_range(2):
            b_y = loaded[3 * part].to(tl.float32)
            b_even, b_odd = loaded[3 * part + 1].to(tl.float32), loaded[3 * part + 2].to(tl.float32)
            b_factor = tl.rsqrt(row_mean(b_y * b_y, DIM) + RMS_EPS)
            b_y *= b_factor
            b_odd, b_even = rotate(b_odd, b_even, b_cos, b_sin, HALF)  # back
            b_d = tl.interleave(b_even, b_odd)
            if part == 0:
                b_d *= SCALE
            add_sum(p_tile, 9 + part, b_d * b_y, DIM, BLOCK_D, dtype)
            b_d *= load_vector(p_qnorm if part == 0 else p_knorm, DIM, BLOCK_D)
            b_d = b_factor * (b_d - b_y * row_mean(b_d * b_y, DIM))
            add_sum(p_tile, 6 + part, b_d, DIM, BLOCK_D, dtype)
            tl.store(p_d_heads + part * qkv_part + o_x, b_d.to(dtype), mask=m_d)
        add_sum(p_tile, 8, b_d_value, DIM, BLOCK_D, dtype)
        tl.store(p_d_heads + 2 * qkv_part + o_x, b_d_value.to(dtype), mask=m_d)
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
        add_sum(p_tile, 0, b_d * b_normed, DIM, BLOCK_D, dtype)
        add_sum(p_tile, 1, b_d, DIM, BLOCK_D, dtype)
        b_d *= 1.0 + load_vector(p_modulation, DIM, BLOCK_D)
        b_d = b_past + normed_backward(b_d, b_normed, b_rstd, DIM, BLOCK_D)
        tl.debug_barrier()
        tl.store(p_d_residual + o_x, b_d, mask=m_x)
