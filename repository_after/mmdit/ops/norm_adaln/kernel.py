"""Kernels of LayerNorm or RMSNorm with AdaLN modulation, forward and backward.

B batch, L length, D model dim. Pointers are p_*, block values b_*, offsets o_*, masks m_*.
"""

import triton
import triton.language as tl


@triton.jit
def _normalize(b_x, m_x, D: tl.constexpr, EPS: tl.constexpr, CENTER: tl.constexpr):
    """Rows of b_x (ROWS, BLOCK_D) normalised, zero where m_x is not, and 1 / the divisor (ROWS, 1)."""
    if CENTER:
        b_x = tl.where(m_x, b_x - tl.sum(b_x, 1, keep_dims=True) / D, 0.0)
    b_rstd = tl.rsqrt(tl.sum(b_x * b_x, 1, keep_dims=True) / D + EPS)
    return b_x * b_rstd, b_rstd


@triton.jit(do_not_specialize=["L"])
def norm_adaln_forward_kernel(
    p_x,  # (B, L, D), strides (x_batch, x_row, 1)
    p_scale,  # (B, D), strides (scale_batch, 1)
    p_shift,  # (B, D), strides (shift_batch, 1)
    p_weight,  # (D,) or unused
    p_out,  # (B, L, D), contiguous
    x_batch,
    x_row,
    scale_batch,
    shift_batch,
    L,
    D: tl.constexpr,
    EPS: tl.constexpr,
    CENTER: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = norm(x) * weight * (1 + scale) + shift.

    Grid: (B * cdiv(L, ROWS),), one program per ROWS rows of one sample. Saves nothing for backward.
    """
    tiles = tl.cdiv(L, ROWS)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    o_l = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)[:, None]
    o_d = tl.arange(0, BLOCK_D)[None, :]
    m_d = o_d < D
    m_x = (o_l < L) & m_d

    # (ROWS, BLOCK_D)
    b_x = tl.load(p_x + batch * x_batch + o_l.to(tl.int64) * x_row + o_d, mask=m_x, other=0.0).to(tl.float32)
    # (1, BLOCK_D)
    b_gain = 1.0 + tl.load(p_scale + batch * scale_batch + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_shift = tl.load(p_shift + batch * shift_batch + o_d, mask=m_d, other=0.0).to(tl.float32)
    if HAS_WEIGHT:
        b_gain *= tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_normed, _ = _normalize(b_x, m_x, D, EPS, CENTER)
    b_out = b_normed * b_gain + b_shift
    tl.store(p_out + (batch * L + o_l) * D + o_d, b_out.to(p_out.dtype.element_ty), mask=m_x)


@triton.jit
def _add(b_a, b_b, b_c, b_d):
    return b_a + b_c, b_b + b_d


@triton.jit(do_not_specialize=["L"])
def norm_adaln_backward_kernel(
    p_grad,  # (B, L, D), strides (grad_batch, grad_row, 1)
    p_x,  # (B, L, D), strides (x_batch, x_row, 1)
    p_scale,  # (B, D), strides (scale_batch, 1)
    p_weight,  # (D,) or unused
    p_d_x,  # (B, L, D), contiguous
    p_moment,  # (B, chunks, D)
    p_total,  # (B, chunks, D), at `gap` from here
    grad_batch,
    grad_row,
    x_batch,
    x_row,
    scale_batch,
    gap,
    L,
    D: tl.constexpr,
    EPS: tl.constexpr,
    CENTER: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """With n = norm(x) and g = grad * weight * (1 + scale):

        d_x = (g - n * mean(g * n) [- mean(g) if CENTER]) / divisor
        moment = sum over this chunk's rows of grad * n
        total = sum over this chunk's rows of grad

    Grid: (B * CHUNKS,), one program per chunk of one sample's rows, in steps of ROWS. n is computed again from x.
    With one chunk and no weight, moment and total are d_scale and d_shift; else fp32 partial sums of them.
    """
    batch = (tl.program_id(0) // CHUNKS).to(tl.int64)
    chunk = tl.program_id(0) % CHUNKS
    length = tl.cdiv(tl.cdiv(L, CHUNKS), ROWS) * ROWS
    o_d = tl.arange(0, BLOCK_D)[None, :]
    m_d = o_d < D
    # (1, BLOCK_D)
    b_gain = 1.0 + tl.load(p_scale + batch * scale_batch + o_d, mask=m_d, other=0.0).to(tl.float32)
    if HAS_WEIGHT:
        b_gain *= tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_moment = tl.zeros((ROWS, BLOCK_D), tl.float32)
    b_total = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in tl.range(chunk * length, min(chunk * length + length, L), ROWS, num_stages=STAGES):
        o_l = start + tl.arange(0, ROWS)[:, None]
        m_x = (o_l < L) & m_d
        o_l = o_l.to(tl.int64)
        # (ROWS, BLOCK_D)
        b_x = tl.load(p_x + batch * x_batch + o_l * x_row + o_d, mask=m_x, other=0.0).to(tl.float32)
        b_grad = tl.load(p_grad + batch * grad_batch + o_l * grad_row + o_d, mask=m_x, other=0.0).to(tl.float32)
        b_normed, b_rstd = _normalize(b_x, m_x, D, EPS, CENTER)
        b_moment += b_grad * b_normed
        b_total += b_grad
        b_g = b_grad * b_gain
        # both sums at once: one pass between the warps instead of two
        b_inner, b_sum = tl.reduce((b_g * b_normed, b_g), 1, _add, keep_dims=True)  # (ROWS, 1)
        b_d_x = b_g - b_normed * (b_inner / D)
        if CENTER:
            b_d_x -= b_sum / D
        tl.store(p_d_x + (batch * L + o_l) * D + o_d, (b_d_x * b_rstd).to(p_d_x.dtype.element_ty), mask=m_x)
    o_partial = (batch * CHUNKS + chunk) * D + o_d
    b_moment = tl.sum(b_moment, 0, keep_dims=True)  # (1, BLOCK_D)
    b_total = tl.sum(b_total, 0, keep_dims=True)
    tl.store(p_moment + o_partial, b_moment.to(p_moment.dtype.element_ty), mask=m_d)
    tl.store(p_total + gap + o_partial, b_total.to(p_total.dtype.element_ty), mask=m_d)


@triton.jit(do_not_specialize=["B"])
def norm_adaln_reduce_kernel(
    p_moment,  # (B, CHUNKS, D) fp32, and at `gap` from it total, the same
    p_scale,  # (B, D), strides (scale_batch, 1)
    p_weight,  # (D,) or unused
    p_d_scale,  # (B, D), contiguous
    p_d_shift,  # (B, D), contiguous
    p_d_weight,  # (D,) or unused
    scale_batch,
    gap,
    B,
    D: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Second stage of the backward, in a fixed order:

        d_scale = weight * sum over chunks of moment;  d_shift = sum over chunks of total
        d_weight = sum over samples and chunks of (1 + scale) * moment

    Grid: (cdiv(D, BLOCK_D) * (B + HAS_WEIGHT),): a sample's columns each, and the last ones d_weight's.
    """
    blocks = tl.cdiv(D, BLOCK_D)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    o_d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    o_row = tl.arange(0, ROWS)[:, None]
    m_d = o_d < D
    b_sum = tl.zeros((ROWS, BLOCK_D), tl.float32)
    if batch < B:
        b_total = tl.zeros((ROWS, BLOCK_D), tl.float32)
        for start in range(0, CHUNKS, ROWS):
            o_partial = (batch * CHUNKS + start + o_row) * D + o_d
            m_partial = (start + o_row < CHUNKS) & m_d
            b_sum += tl.load(p_moment + o_partial, mask=m_partial, other=0.0)
            b_total += tl.load(p_moment + gap + o_partial, mask=m_partial, other=0.0)
        b_d_scale = tl.sum(b_sum, 0, keep_dims=True)  # (1, BLOCK_D)
        if HAS_WEIGHT:
            b_d_scale *= tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_d_shift = tl.sum(b_total, 0, keep_dims=True)
        tl.store(p_d_scale + batch * D + o_d, b_d_scale.to(p_d_scale.dtype.element_ty), mask=m_d)
        tl.store(p_d_shift + batch * D + o_d, b_d_shift.to(p_d_shift.dtype.element_ty), mask=m_d)
    elif HAS_WEIGHT:
        for start in range(0, B * CHUNKS, ROWS):
            o_partial = (start + o_row).to(tl.int64)
            m_partial = (o_partial < B * CHUNKS) & m_d
            b_scale = tl.load(p_scale + o_partial // CHUNKS * scale_batch + o_d, mask=m_partial, other=0.0)
            b_moment = tl.load(p_moment + o_partial * D + o_d, mask=m_partial, other=0.0)
            b_sum += (1.0 + b_scale.to(tl.float32)) * b_moment
        b_d_weight = tl.sum(b_sum, 0, keep_dims=True)
        tl.store(p_d_weight + o_d, b_d_weight.to(p_d_weight.dtype.element_ty), mask=m_d)
