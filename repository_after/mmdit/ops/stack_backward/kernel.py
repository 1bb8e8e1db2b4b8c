"""The backward kernels of a stack's rows, on tiles of T rows of one stream of one sample.

Names and layout are ops/stack_rows/kernel.py's; d_t is the gradient of t. Rows that are padding are 0 in all that is
written in 16 bits, so that sums over rows need no mask. p_sums (B, R / ROWS, 14, D) fp32 holds the sums over ROWS rows
each: of d_scale, d_shift and d_gate of the attention, then of the MLP, then of VECTORS in op.py, in its order.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mmdit.ops.stack_backward.kernel_parts import SUMS, add_sum, normed_backward, silu_and_slope
from mmdit.ops.stack_rows.kernel_parts import dropout_factor, load_vector, locate, normed, row_mean


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
    dtype = p_h.dtype.element_ty
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
    tl.store(p_d_a + o_tile, b_product.to(dtype), mask=m_d[None, :])
    tl.debug_barrier()
    for start in tl.range(0, TILE, ROWS, num_stages=1, disable_licm=True):
        o_x = (start + o_rows) * DIM + o_d[None, :]
        m_x = (start + o_rows < left) & m_d[None, :]
        b_norm = load_vector(p_out_norm, DIM, BLOCK_D)
        b_gate = load_vector(p_modulation + 2 * DIM, DIM, BLOCK_D)
        b_d_m = tl.load(p_d_out + o_x, mask=m_x, other=0.0)
        b_mid, b_a, b_factor = attended(p_d_a, p_residual, b_norm, b_gate, o_x, m_x, RMS_EPS, DIM)
        b_normed, b_rstd = normed(b_mid, NORM_EPS, DIM, BLOCK_D)
        b_scale = 1.0 + load_vector(p_modulation + 3 * DIM, DIM, BLOCK_D)
        b_h = b_normed * b_scale + load_vector(p_modulation + 4 * DIM, DIM, BLOCK_D)
        tl.store(p_h + o_x, tl.where(m_x, b_h, 0.0).to(dtype), mask=m_d[None, :])
        if p_seed is not None:
            o_all = (sample * tiles * TILE + row0 + start + tl.arange(0, ROWS)).to(tl.int32)
            b_d_m *= dropout_factor(p_seed, o_all, P, DIM, BLOCK_D)
        b_d_m *= load_vector(p_modulation + 5 * DIM, DIM, BLOCK_D)
        add_sum(p_sums + start // ROWS * SUMS * DIM, 13, b_d_m, DIM, BLOCK_D, dtype)
        tl.store(p_d_m + o_x, b_d_m.to(dtype), mask=m_d[None, :])

    tl.debug_barrier()
    b_x = tl.load(p_h + o_tile, mask=m_d[None, :], other=0.0)  # to shared memory, as operands that are loaded are
    b_d_y = tl.load(p_d_m + o_tile, mask=m_d[None, :], other=0.0)
    b_m = tl.zeros((TILE, BLOCK_D), tl.float32)
    b_d_h = tl.zeros((TILE, BLOCK_D), tl.float32)
    for offset in tl.range(0, FORWARD, BLOCK_F, num_stages=STAGES, disable_licm=True):
        b_up = tl.load(p_up + (offset + o_f)[:, None] * DIM + o_d[None, :], mask=m_d[None, :], other=0.0)
        b_down = tl.load(p_down + o_d[:, None] * FORWARD + (offset + o_f)[None, :], mask=m_d[:, None], other=0.0)
        b_pre = tl.dot(b_x, tl.trans(b_up), input_precision=PRECISION)
        b_pre += tl.load(p_up_bias + offset + o_f).to(tl.float32)[None, :]
        b_d_pre = tl.dot(b_d_y, b_down, input_precision=PRECISION)
        b_u, b_slope = silu_and_slope(b_pre, APPROXIMATE)
        b_d_pre *= b_slope
        b_m = tl.dot(b_u.to(b_x.dtype), tl.trans(b_down), b_m, input_precision=PRECISION)
        b_d_h = tl.dot(b_d_pre.to(b_x.dtype), b_up, b_d_h, input_precision=PRECISION)
    tl.store(p_d_h + o_tile, b_d_h.to(dtype), mask=m_d[None, :])
    b_m += load_vector(tl.where(is_context, p_down_bias_c, p_down_bias_x), DIM, BLOCK_D)
    if p_seed is not None:
        b_m *= dropout_factor(p_seed, (sample * tiles * TILE + o_row).to(tl.int32), P, DIM, BLOCK_D)
    add_sum(p_sums, 5, tl.load(p_d_out + o_tile, mask=m_tile, other=0.0) * b_m, DIM, BLOCK_D, dtype)
    tl.debug_barrier()

    for start in tl.range(0, TILE, ROWS, num_stages=1, disable_licm=True):
        o_x = (start + o_rows) * DIM + o_d[None, :]
        m_x = (start + o_rows < left) & m_d[None, :]
        b_norm = load_vector(p_out_norm, DIM, BLOCK_D)
        b_gate = load_vector(p_modulation + 2 * DIM, DIM, BLOCK_D)
        b_loaded = tl.load(p_d_h + o_x, mask=m_x, other=0.0)
        b_past = tl.load(p_d_out + o_x, mask=m_x, other=0.0)
        b_mid, b_a, b_factor = attended(p_d_a, p_residual, b_norm, b_gate, o_x, m_x, RMS_EPS, DIM)
        b_normed, b_rstd = normed(b_mid, NORM_EPS, DIM, BLOCK_D)
        b_d = b_loaded.to(tl.float32)
        if start > 0:
            tl.store(p_sums + 5 * DIM + o_d, tl.zeros((BLOCK_D,), tl.float32), mask=m_d)
        add_sum(p_sums, 3, b_d * b_normed, DIM, BLOCK_D, dtype)
        add_sum(p_sums, 4, b_d, DIM, BLOCK_D, dtype)
        b_d *= 1.0 + load_vector(p_modulation + 3 * DIM, DIM, BLOCK_D)
        b_d = normed_backward(b_d, b_normed, b_rstd, DIM, BLOCK_D) + b_past
        tl.debug_barrier()
        tl.store(p_d_out + o_x, b_d, mask=m_x)
        add_sum(p_sums, 2, b_d * b_a * b_norm, DIM, BLOCK_D, dtype)
        b_d *= b_gate
        add_sum(p_sums, 12, b_d * b_a, DIM, BLOCK_D, dtype)
        b_d *= b_norm
        b_d = b_factor * (b_d - b_a * row_mean(b_d * b_a, DIM))
        add_sum(p_sums, 11, b_d, DIM, BLOCK_D, dtype)
        tl.debug_barrier()
        tl.store(p_d_a + o_x, b_d.to(dtype), mask=m_d[None, :])
        p_sums += SUMS * DIM
    tl.debug_barrier()
    b_d_a = tl.load(p_d_a + o_tile, mask=m_d[None, :], other=0.0)
    b_out = tl.load(p_out + o_out, mask=m_out, other=0.0)
    b_d_o = tl.dot(b_d_a, b_out, input_precision=PRECISION)
    tl.store(p_d_o + o_tile, b_d_o.to(dtype), mask=m_d[None, :])
