"""The kernels of a layer's weight gradients: products over all rows of a stream, split over the rows, and the sum of
the parts in a fixed order.

Names and layout are ops/stack_rows/kernel.py's. A split is `span` tiles of one stream: `x_splits` of them are x's, the
others the context's. p_parts (splits, SIZE) fp32 holds, for each, the matrices in the order of MATRICES in op.py.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from mmdit.ops.stack_backward.kernel_parts import SUMS, silu_and_slope
from mmdit.ops.stack_rows.kernel_parts import load_weight


@triton.jit
def first_tile(split, span, x_splits, B, x_tiles, tiles):
    """(is it context, its first tile in the stream, its last one plus 1, tiles of a sample, where they begin there)."""
    is_context = split >= x_splits
    own = tl.where(is_context, tiles - x_tiles, x_tiles)
    first = tl.where(is_context, split - x_splits, split) * span
    return is_context, first, tl.minimum(first + span, B * own), own, tl.where(is_context, x_tiles, 0)


@triton.jit
def rows_of(tile, own, skip, tiles, length, TILE: tl.constexpr):
    """Rows (T,) among all rows of the call, and which are there, of tile number `tile` of a stream."""
    o_stream = tile % own * TILE + tl.arange(0, TILE)
    return (tile // own * tiles + skip).to(tl.int64) * TILE + o_stream, o_stream < length


@triton.jit(do_not_specialize=["L", "C", "x_tiles", "tiles", "B", "span", "x_splits"])
def attention_weights_kernel(
    p_h,  # (B, R, D): what entered the projections
    p_d_qkv,  # (3, B, R, D)
    p_o,  # (B, R, D): attention, heads joined
    p_d_a,  # (B, R, D)
    p_parts,  # (splits, SIZE) fp32, its first 4 D D of each split written: d_Wq, d_Wk, d_Wv, d_Wo
    qkv_part, size,
    L, C, x_tiles, tiles, B, span, x_splits,
    TILE: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """d_W = d_y^T h over the rows of a split. Grid: (splits * 4,)."""
    split, part = tl.program_id(0) // 4, tl.program_id(0) % 4
    is_context, first, last, own, skip = first_tile(split, span, x_splits, B, x_tiles, tiles)
    o_d = tl.arange(0, BLOCK_D)
    m_d = (o_d < DIM)[None, :]
    p_in = tl.where(part == 3, p_o, p_h)
    p_d = tl.where(part == 3, p_d_a, p_d_qkv + part * qkv_part)
    b_sum = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    for tile in tl.range(first, last, num_stages=STAGES):
        o_row, m_row = rows_of(tile, own, skip, tiles, tl.where(is_context, C, L), TILE)
        o_x = o_row[:, None] * DIM + o_d[None, :]
        m_x = m_row[:, None] & m_d
        b_d = tl.load(p_d + o_x, mask=m_x, other=0.0)
        b_in = tl.load(p_in + o_x, mask=m_x, other=0.0)
        b_sum = tl.dot(tl.trans(b_d), b_in, b_sum, input_precision=PRECISION)
    p_parts += split.to(tl.int64) * size + part * DIM * DIM
    tl.store(p_parts + o_d[:, None] * DIM + o_d[None, :], b_sum, mask=(o_d < DIM)[:, None] & m_d)


@triton.jit(do_not_specialize=["L", "C", "x_tiles", "tiles", "B", "span", "x_splits"])
def mlp_weights_kernel(
    p_h,  # (B, R, D): what entered the MLP
    p_d_m,  # (B, R, D)
    p_up_x, p_up_c, p_up_bias_x, p_up_bias_c,  # (F, D), (F,)
    p_down_x, p_down_c,  # (D, F)
    p_parts,  # (splits, SIZE) fp32, what follows the first 4 D D of each written: d_W1, d_W2, d_b1
    size,
    L, C, x_tiles, tiles, B, span, x_splits,
    TILE: tl.constexpr, APPROXIMATE: tl.constexpr, DIM: tl.constexpr, FORWARD: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_F: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """d_W1 = d_pre^T h, d_W2 = d_m^T silu(pre) and d_b1 = sum of d_pre over the rows of a split, for BLOCK_F of the
    features, whose pre = h W1^T + b1 and d_pre = (d_m W2) silu'(pre) are computed again. Grid: (splits * F / BLOCK_F,).
    """
    split, chunk = tl.program_id(0) // (FORWARD // BLOCK_F), tl.program_id(0) % (FORWARD // BLOCK_F)
    is_context, first, last, own, skip = first_tile(split, span, x_splits, B, x_tiles, tiles)
    o_d, o_f = tl.arange(0, BLOCK_D), chunk * BLOCK_F + tl.arange(0, BLOCK_F)
    m_d, m_f = o_d < DIM, o_f < FORWARD
    p_up = tl.where(is_context, p_up_c, p_up_x)
    b_up = tl.load(p_up + o_f[:, None] * DIM + o_d[None, :], mask=m_d[None, :], other=0.0)  # (BLOCK_F, BLOCK_D)
    b_down = load_weight(tl.where(is_context, p_down_c, p_down_x), o_d, o_f, FORWARD, m_d, m_f)  # (BLOCK_F, BLOCK_D)
    b_bias = tl.load(tl.where(is_context, p_up_bias_c, p_up_bias_x) + o_f).to(tl.float32)[:, None]
    b_d_up = tl.zeros((BLOCK_F, BLOCK_D), tl.float32)
    b_d_down = tl.zeros((BLOCK_F, BLOCK_D), tl.float32)
    b_d_bias = tl.zeros((BLOCK_F,), tl.float32)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    for tile in tl.range(first, last, num_stages=STAGES):
        o_row, m_row = rows_of(tile, own, skip, tiles, tl.where(is_context, C, L), TILE)
        o_x = o_row[:, None] * DIM + o_d[None, :]
        m_x = m_row[:, None] & m_d[None, :]
        b_h = tl.load(p_h + o_x, mask=m_x, other=0.0)
        b_d_m = tl.load(p_d_m + o_x, mask=m_x, other=0.0)
        b_pre = tl.dot(b_up, tl.trans(b_h), input_precision=PRECISION) + b_bias  # (BLOCK_F, T)
        b_d_pre = tl.dot(b_down, tl.trans(b_d_m), input_precision=PRECISION)
        b_u, b_slope = silu_and_slope(b_pre, APPROXIMATE)
        b_d_pre *= b_slope
        b_d_bias += tl.sum(b_d_pre, 1)
        b_d_up = tl.dot(b_d_pre.to(b_h.dtype), b_h, b_d_up, input_precision=PRECISION)
        b_d_down = tl.dot(b_u.to(b_h.dtype), b_d_m, b_d_down, input_precision=PRECISION)
    p_parts += split.to(tl.int64) * size + 4 * DIM * DIM
    m_w = m_f[:, None] & m_d[None, :]
    tl.store(p_parts + o_f[:, None] * DIM + o_d[None, :], b_d_up, mask=m_w)
    p_parts += FORWARD * DIM
    tl.store(p_parts + o_d[None, :] * FORWARD + o_f[:, None], b_d_down, mask=m_w)
    tl.store(p_parts + FORWARD * DIM + o_f, b_d_bias, mask=m_f)


@triton.jit(do_not_specialize=["layer", "x_tiles", "tiles", "B", "x_splits", "splits"])
def sum_parts_kernel(
    p_sums,  # (B, tiles, 14, D) fp32, tiles of ROWS rows
    p_parts,  # (splits, SIZE) fp32
    p_d_modulation,  # (B, N, M, 6, D) fp32, written for this layer
    p_d_weights,  # (M, SIZE + 8 D), written
    size,
    layer, x_tiles, tiles, B, x_splits, splits,
    LAYERS: tl.constexpr, STREAMS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Sums in a fixed order. Grid: B * M programs for d_modulation, over the tiles of one stream of one sample; then,
    where weights' gradients are wanted, M * 8 * COLUMNS for parts of the vectors, over all tiles of a stream, and
    M * cdiv(SIZE, BLOCK) for the matrices, over splits.
    """
    program = tl.program_id(0)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < DIM
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if program < B * STREAMS:
        sample, stream = (program // STREAMS).to(tl.int64), program % STREAMS
        p_tile = p_sums + (sample * tiles + stream * x_tiles) * SUMS * DIM
        o_slot = tl.arange(0, 8)
        m_slot = (o_slot < 6)[:, None] & m_d[None, :]
        o_sum = o_slot[:, None] * DIM + o_d[None, :]
        b_six = tl.zeros((8, BLOCK_D), tl.float32)
        for _ in range(tl.where(stream == 1, tiles - x_tiles, x_tiles)):
            b_six += tl.load(p_tile + o_sum, mask=m_slot, other=0.0)
            p_tile += SUMS * DIM
        p_to = p_d_modulation + ((sample * LAYERS + layer) * STREAMS + stream) * 6 * DIM
        tl.store(p_to + o_sum, b_six, mask=m_slot)
    elif program < (B + 8 * COLUMNS) * STREAMS:
        part = program - B * STREAMS
        stream, slot, column = part // (8 * COLUMNS), part // COLUMNS % 8, part % COLUMNS
        own = tl.where(stream == 1, tiles - x_tiles, x_tiles)
        o_column = column * (BLOCK_D // COLUMNS) + tl.arange(0, BLOCK_D // COLUMNS)
        b_rows = tl.zeros((256, BLOCK_D // COLUMNS), tl.float32)
        for start in range(0, B * own, 256):
            o = start + tl.arange(0, 256)
            o_vector = ((o // own * tiles + stream * x_tiles + o % own) * SUMS + 6 + slot).to(tl.int64) * DIM
            m_vector = (o < B * own)[:, None] & (o_column < DIM)[None, :]
            b_rows += tl.load(p_sums + o_vector[:, None] + o_column[None, :], mask=m_vector, other=0.0)
        p_vector = p_d_weights + stream * (size + 8 * DIM) + size + slot * DIM
        tl.store(p_vector + o_column, tl.sum(b_rows, 0).to(p_d_weights.dtype.element_ty), mask=o_column < DIM)
    else:
        block = program - (B + 8 * COLUMNS) * STREAMS
        stream = block // tl.cdiv(size, BLOCK)
        o = block % tl.cdiv(size, BLOCK) * BLOCK + tl.arange(0, BLOCK)
        first, last = tl.where(stream == 1, x_splits, 0), tl.where(stream == 1, splits, x_splits)
        b_sum = tl.zeros((8, BLOCK), tl.float32)
        for start in range(0, last - first, 8):
            o_split = first + start + tl.arange(0, 8)
            m_part = (o_split < last)[:, None] & (o < size)[None, :]
            b_sum += tl.load(p_parts + o_split.to(tl.int64)[:, None] * size + o[None, :], mask=m_part, other=0.0)
        p_matrix = p_d_weights + stream * (size + 8 * DIM)
        tl.store(p_matrix + o, tl.sum(b_sum, 0).to(p_d_weights.dtype.element_ty), mask=o < size)
