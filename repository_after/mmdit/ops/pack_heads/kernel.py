"""The kernel that makes joint attention's queries, keys and values of the streams' projections.

B batch, L x length, C context length, S = L + C, D = H * DH model dim, H heads, DH head dim. Pointers are p_*, block
values b_*, offsets o_*, masks m_*.
"""

import triton
import triton.language as tl


@triton.jit
def _add(b_a, b_b, b_c, b_d):
    return b_a + b_c, b_b + b_d


@triton.jit
def _rotate(b_t, b_cos, b_sin, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Each pair of columns (2i, 2i + 1) of b_t (ROWS, BLOCK_D) turned by its angle."""
    b_even, b_odd = tl.split(tl.reshape(b_t, (ROWS, BLOCK_D // 2, 2)))
    return tl.interleave(b_even * b_cos - b_odd * b_sin, b_even * b_sin + b_odd * b_cos)


@triton.jit(do_not_specialize=["L", "C", "POSITIONS", "START"])
def pack_heads_kernel(
    p_qkv,  # (B, L, 3 D), strides (x_batch, x_row, 1)
    p_qkv_context,  # (B, C, 3 D), strides (context_batch, context_row, 1), or None
    p_query_norm,  # (D,)
    p_key_norm,  # (D,)
    p_context_query_norm,  # (D,) or None
    p_context_key_norm,  # (D,) or None
    p_cos,  # (POSITIONS, DH / 2), contiguous
    p_sin,  # (POSITIONS, DH / 2), contiguous
    p_start,  # (B,) ints or None
    p_query,  # (B, H, S, DH), contiguous
    p_key,  # (B, H, S, DH), contiguous
    p_value,  # (B, H, S, DH), contiguous
    x_batch,
    x_row,
    context_batch,
    context_row,
    L,
    C,
    POSITIONS,
    START,
    H: tl.constexpr,
    DH: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """query, key = rotate(q / sqrt(mean(q^2) + EPS) * weight), each for itself, context not rotated; value = v.

    Row l of x is at position start + START + l, kept within the tables.

    Grid: (B * (cdiv(L, ROWS) + cdiv(C, ROWS)),), ROWS rows of one stream of one sample each. Saves nothing for
    backward.
    """
    D: tl.constexpr = H * DH
    x_tiles = tl.cdiv(L, ROWS)
    tiles = x_tiles + tl.cdiv(C, ROWS)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    length, first, turns = L, 0, True
    p_row, row = p_qkv + batch * x_batch, x_row
    if p_qkv_context is not None:  # noqa: SIM102 (decided while compiling, the next while running)
        if tile >= x_tiles:
            tile -= x_tiles
            length, first, turns = C, L, False
            p_row, row = p_qkv_context + batch * context_batch, context_row
            p_query_norm, p_key_norm = p_context_query_norm, p_context_key_norm
    o_l = tile * ROWS + tl.arange(0, ROWS)[:, None]
    o_d = tl.arange(0, BLOCK_D)[None, :]
    m_l, m_d = o_l < length, o_d < D
    m_t = m_l & m_d

    # (ROWS, BLOCK_D)
    p_row += o_l.to(tl.int64) * row + o_d
    b_q = tl.load(p_row, mask=m_t, other=0.0).to(tl.float32)
    b_k = tl.load(p_row + D, mask=m_t, other=0.0).to(tl.float32)
    b_v = tl.load(p_row + 2 * D, mask=m_t, other=0.0)
    # (1, BLOCK_D)
    b_q_norm = tl.load(p_query_norm + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_k_norm = tl.load(p_key_norm + o_d, mask=m_d, other=0.0).to(tl.float32)

    # (ROWS, BLOCK_D // 2)
    o_pair = tl.arange(0, BLOCK_D // 2)[None, :]
    position = o_l + START
    if p_start is not None:
        position += tl.load(p_start + batch)
    position = tl.minimum(tl.maximum(position, 0), POSITIONS - 1).to(tl.int32)
    o_angle = position * (DH // 2) + o_pair % (DH // 2)
    m_angle = m_l & (2 * o_pair < D) & turns
    b_cos = tl.load(p_cos + o_angle, mask=m_angle, other=1.0).to(tl.float32)
    b_sin = tl.load(p_sin + o_angle, mask=m_angle, other=0.0).to(tl.float32)

    # both sums at once: one pass between the warps instead of two
    b_q_sum, b_k_sum = tl.reduce((b_q * b_q, b_k * b_k), 1, _add, keep_dims=True)  # (ROWS, 1)
    b_q = _rotate(b_q * tl.rsqrt(b_q_sum / D + EPS) * b_q_norm, b_cos, b_sin, ROWS, BLOCK_D)
    b_k = _rotate(b_k * tl.rsqrt(b_k_sum / D + EPS) * b_k_norm, b_cos, b_sin, ROWS, BLOCK_D)
    joint = L + C
    o_out = ((batch * H + o_d // DH) * joint + first + o_l) * DH + o_d % DH
    tl.store(p_query + o_out, b_q.to(p_query.dtype.element_ty), mask=m_t)
    tl.store(p_key + o_out, b_k.to(p_key.dtype.element_ty), mask=m_t)
    tl.store(p_value + o_out, b_v, mask=m_t)
