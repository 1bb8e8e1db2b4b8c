"""The kernel of all modulations of a stack.

B batch, D model dim, N layers, M streams. Pointers are p_*, block values b_*, offsets o_*, masks m_*.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents


@triton.jit(do_not_specialize=["B"])
def modulation_kernel(
    p_y,  # (B, D), row stride y_row
    p_weights,  # (N M,) int64: addresses of weights (6 D, D)
    p_biases,  # (N M,) int64: addresses of biases (6 D,)
    p_out,  # (B, N M, 6 D) fp32
    y_row,
    B,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """out = silu(y) weight^T + bias, for the N M weights.

    Grid: (cdiv(B, BLOCK_B) * N M * cdiv(6 D, BLOCK_N),). Saves nothing for backward. PDL lets the next kernel begin.
    """
    blocks: tl.constexpr = (6 * DIM + BLOCK_N - 1) // BLOCK_N
    row = tl.program_id(0) // blocks % ROWS
    o_n = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    o_b = tl.program_id(0) // (blocks * ROWS) * BLOCK_B + tl.arange(0, BLOCK_B)
    o_d = tl.arange(0, BLOCK_D)
    m_n, m_b, m_d = o_n < 6 * DIM, o_b < B, o_d < DIM
    p_weight = tl.multiple_of(tl.load(p_weights + row).to(p_y.dtype), 16)
    p_bias = tl.multiple_of(tl.load(p_biases + row).to(p_y.dtype), 16)
    b_weight = tl.load(p_weight + o_n[None, :] * DIM + o_d[:, None], mask=m_d[:, None] & m_n[None, :], other=0.0)
    b_bias = tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
    b_y = tl.load(p_y + o_b[:, None] * y_row + o_d[None, :], mask=m_b[:, None] & m_d[None, :], other=0.0)
    b_wide = b_y.to(tl.float32)
    b_y = (b_wide * tl.sigmoid(b_wide)).to(b_y.dtype)
    b_out = tl.dot(b_y, b_weight, input_precision=PRECISION) + b_bias[None, :]
    o_out = (o_b.to(tl.int64)[:, None] * ROWS + row) * (6 * DIM) + o_n[None, :]
    tl.store(p_out + o_out, b_out, mask=m_b[:, None] & m_n[None, :])
