"""What the kernels of the backward of a stack's rows share; names as in ops/stack_rows/kernel_parts.py."""

import triton
import triton.language as tl

from mmdit.ops.stack_rows.kernel_parts import row_mean

SUMS = tl.constexpr(14)


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
def add_sum(p_sums, slot: tl.constexpr, b_t, DIM: tl.constexpr, BLOCK_D: tl.constexpr, dtype: tl.constexpr):
    """Store the sum of t (T, BLOCK_D) fp32 over its rows as a tile's sum number `slot`.

    In 16 bits by a product with ones, of t rounded to TF32 (2^-11): a reduction over rows by warps that hold 8 columns
    a thread has 16-way bank conflicts, a quarter of these kernels' time.
    """
    o_d = tl.arange(0, BLOCK_D)
    p_to = p_sums + slot * DIM + o_d
    if dtype == tl.float32:
        tl.store(p_to, tl.sum(b_t, 0), mask=o_d < DIM)
    else:
        b_rounded = ((b_t.to(tl.uint32, bitcast=True) + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)
        b_t = b_rounded + 0.0 * b_t  # a GPU's NaN, all ones, would become -0
        b_sum = tl.dot(tl.full((16, b_t.shape[0]), 1.0, tl.float32), b_t, input_precision="tf32")
        o_copy = tl.arange(0, 16)[:, None]
        tl.store(p_to[None, :] + o_copy, b_sum, mask=(o_copy == 0) & (o_d < DIM)[None, :])
