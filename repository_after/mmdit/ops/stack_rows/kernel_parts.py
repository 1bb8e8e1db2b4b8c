"""What the kernels of a stack's rows share, on tiles of T rows of one stream of one sample.

D model dim (padded to BLOCK_D), H heads, Dh head dim. Pointers are p_*, block values b_*, offsets o_*, masks m_*.
Weights are (out, in), as nn.Linear has them.
"""

import triton
import triton.language as tl


@triton.jit
def locate(program, L, C, x_tiles, tiles, TILE: tl.constexpr):
    """(sample, is it context, rows within the sample (T,), rows within the stream (T,), which of them are there)."""
    sample, tile = program // tiles, program % tiles
    is_context = tile >= x_tiles
    o_row = tile * TILE + tl.arange(0, TILE)
    o_stream = tl.where(is_context, o_row - x_tiles * TILE, o_row)
    return sample.to(tl.int64), is_context, o_row, o_stream, o_stream < tl.where(is_context, C, L)


@triton.jit
def load_vector(p_vector, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """(1, BLOCK) fp32, 0 past SIZE."""
    o = tl.arange(0, BLOCK)
    return tl.load(p_vector + o, mask=o < SIZE, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_weight(p_weight, o_out, o_in, row, m_out, m_in):
    """weight[o_out, o_in]^T (in, out), where a row of weight is `row` long."""
    return tl.load(p_weight + o_out[None, :] * row + o_in[:, None], mask=m_in[:, None] & m_out[None, :], other=0.0)


@triton.jit
def row_mean(b_x, DIM: tl.constexpr):
    """(T, BLOCK_D) -> (T, 1), over the DIM columns that are not padding (which is 0)."""
    return tl.sum(b_x, 1, keep_dims=True) / DIM


@triton.jit
def normed(b_x, EPS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """LayerNorm(x) without weights, fp32 (T, BLOCK_D), 0 in the padding, and 1 / its standard deviation (T, 1)."""
    b_x -= row_mean(b_x, DIM)
    if DIM != BLOCK_D:
        b_x = tl.where((tl.arange(0, BLOCK_D) < DIM)[None, :], b_x, 0.0)
    b_rstd = tl.rsqrt(row_mean(b_x * b_x, DIM) + EPS)
    return b_x * b_rstd, b_rstd


@triton.jit
def modulated_norm(b_x, b_scale, b_shift, EPS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """LayerNorm(x) * (1 + scale) + shift, fp32 (T, BLOCK_D)."""
    b_normed, _ = normed(b_x, EPS, DIM, BLOCK_D)
    return b_normed * (1.0 + b_scale) + b_shift


@triton.jit
def silu(b_x, APPROXIMATE: tl.constexpr):
    """x * sigmoid(x), as x/2 + x/2 tanh(x/2) where the hardware's own tanh (relative error 5e-4) will do."""
    if APPROXIMATE:
        b_half = 0.5 * b_x
        b_tanh = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [b_half], tl.float32, True, 1)
        return b_half + b_half * b_tanh
    return b_x * tl.sigmoid(b_x)


@triton.jit
def dropout_factor(p_seed, o_row, P: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """0 with probability P, else 1 / (1 - P): (T, BLOCK_D) fp32, for rows o_row (T,) of all the rows of a call.

    Column 4 j + i of a row has word i of Philox 4x32-10 (Salmon et al., 2011) at the counter row * DIM / 4 + j.
    """
    T: tl.constexpr = o_row.shape[0]
    o = o_row[:, None] * (DIM // 4) + tl.arange(0, BLOCK_D // 4)[None, :]
    b_0, b_1, b_2, b_3 = tl.randint4x(tl.load(p_seed), o)
    b_bits = tl.reshape(tl.join(tl.join(b_0, b_2), tl.join(b_1, b_3)), (T, BLOCK_D))
    return tl.where(b_bits.to(tl.uint32, bitcast=True) >= int(P * 4294967296.0), 1.0 / (1.0 - P), 0.0)


@triton.jit
def columns(part, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Two halves (D / 2,) of the D columns: the even and the odd ones of q and k (parts 0 and 1), so that rotating a
    pair needs no shuffle; the first and the second half of v (part 2).
    """
    o_pair = tl.arange(0, BLOCK_D // 2)
    if part < 2:
        step, skip = 2, 1
    else:
        step, skip = 1, DIM // 2
    return o_pair * step, o_pair * step + skip


@triton.jit
def load_projection(p_weight, p_bias, part, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Weights (BLOCK_D, BLOCK_D / 2) and biases (1, BLOCK_D / 2) of the two halves of q, k or v."""
    o_d, m_d = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_D) < DIM
    m_half = tl.arange(0, BLOCK_D // 2) < DIM // 2
    o_a, o_b = columns(part, DIM, BLOCK_D)
    o_a += part * DIM
    o_b += part * DIM
    b_a = load_weight(p_weight, o_a, o_d, DIM, m_half, m_d)
    b_b = load_weight(p_weight, o_b, o_d, DIM, m_half, m_d)
    b_bias_a = tl.load(p_bias + o_a, mask=m_half, other=0.0).to(tl.float32)[None, :]
    b_bias_b = tl.load(p_bias + o_b, mask=m_half, other=0.0).to(tl.float32)[None, :]
    return b_a, b_b, b_bias_a, b_bias_b


@triton.jit
def load_angles(p_cos, p_sin, o_position, m_rotary, HALF: tl.constexpr):
    """Cosines and sines (T, HALF)."""
    o_angle = o_position[:, None] * HALF + tl.arange(0, HALF)[None, :]
    b_cos = tl.load(p_cos + o_angle, mask=m_rotary[:, None], other=1.0)
    b_sin = tl.load(p_sin + o_angle, mask=m_rotary[:, None], other=0.0)
    return b_cos, b_sin


@triton.jit
def load_halves(p_norm, part, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The weights (1, BLOCK_D / 2) of q's or k's norm, for both halves."""
    o_a, o_b = columns(part, DIM, BLOCK_D)
    m_half = tl.arange(0, BLOCK_D // 2) < DIM // 2
    b_a = tl.load(p_norm + o_a, mask=m_half, other=0.0).to(tl.float32)[None, :]
    return b_a, tl.load(p_norm + o_b, mask=m_half, other=0.0).to(tl.float32)[None, :]


@triton.jit
def rotate(b_a, b_b, b_cos, b_sin, HALF: tl.constexpr):
    """Rotate the pairs (a, b), each (T, D / 2), whose angles are those of a head (T, HALF)."""
    b_cos, b_sin = tl.expand_dims(b_cos, 1), tl.expand_dims(b_sin, 1)
    b_a = tl.reshape(b_a, b_a.shape[0], b_a.shape[1] // HALF, HALF)
    b_b = tl.reshape(b_b, b_b.shape[0], b_b.shape[1] // HALF, HALF)
    b_first, b_second = b_a * b_cos - b_b * b_sin, b_a * b_sin + b_b * b_cos
    T: tl.constexpr = b_a.shape[0]
    return tl.reshape(b_first, T, b_a.shape[1] * HALF), tl.reshape(b_second, T, b_a.shape[1] * HALF)


@triton.jit
def project(
    b_h, b_wa, b_wb, b_bias_a, b_bias_b, part, b_norm_a, b_norm_b, b_cos, b_sin, p_out, o_row, m_row,
    SCALE: tl.constexpr, EPS: tl.constexpr, DIM: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Store q, k or v of rows h (T, BLOCK_D) as (rows, D): h weight^T + bias; of that, for q and k, the RMSNorm,
    rotated, q also times SCALE. In each head of q and k the even columns come first: q k^T is the same for that.
    Rows outside m_row become 0.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    o_pair = tl.arange(0, BLOCK_D // 2)
    m_half = o_pair < DIM // 2
    b_a = tl.dot(b_h, b_wa, input_precision=PRECISION) + b_bias_a
    b_b = tl.dot(b_h, b_wb, input_precision=PRECISION) + b_bias_b
    if part < 2:
        b_factor = tl.rsqrt(tl.sum(b_a * b_a + b_b * b_b, 1) / DIM + EPS)[:, None]
        if part == 0:
            b_factor *= SCALE
        b_a, b_b = rotate(b_a * b_factor * b_norm_a, b_b * b_factor * b_norm_b, b_cos, b_sin, HALF)
        run, skip = HEAD_DIM, HALF
    else:
        run, skip = HALF, DIM // 2
    o_a = o_pair // HALF * run + o_pair % HALF
    o_a = tl.max_contiguous(tl.multiple_of(o_a, HALF), HALF)
    b_a = tl.where(m_row[:, None], b_a, 0.0).to(p_out.dtype.element_ty)
    b_b = tl.where(m_row[:, None], b_b, 0.0).to(p_out.dtype.element_ty)
    p_out += o_row[:, None] * DIM
    tl.store(p_out + o_a[None, :], b_a, mask=m_half[None, :])
    tl.store(p_out + skip + o_a[None, :], b_b, mask=m_half[None, :])
