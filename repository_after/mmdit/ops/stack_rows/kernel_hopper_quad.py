"""rows_kernel for Hopper, in 16 bits at D = 128, where there are many tiles: four programs of four warps share a
multiprocessor, so that its tensor cores work for one while another takes a norm.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from mmdit.ops.stack_rows.kernel_hopper_halves import HALF, halves, keep, norm, row_mean, vector
from mmdit.ops.stack_rows.kernel_hopper_parts import (
    BLOCK_BYTES,
    PLAIN,
    D,
    angles,
    barrier,
    choose,
    fetch_vectors,
    grid_launch,
    grid_wait,
    rotate,
    silu,
)

STAGES = gl.constexpr(2)  # blocks of weights


@gluon.jit
def _prefetch(p_from, LINES: gl.constexpr):
    """Ask for LINES lines of 128 bytes to be brought into L2."""
    o = gl.arange(0, LINES, layout=gl.BlockedLayout([1], [32], [4], [0])) * 32
    gl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [p_from + o], gl.int32, False, 1)


@gluon.jit
def _load(index, BLOCKS: gl.constexpr, ring, weights):
    """Start the copy of block `index` of a tile's weights, (128, 64) each: 2 of Wo, for each 64 features 1 of W1 (its
    halves of D one under the other) and 1 of W2, then 2 each of Wq, Wk, Wv.
    """
    b_ring, full = ring
    d_out, d_up, d_down, d_qkv, CHUNKS = weights
    if index < BLOCKS:
        bar, block = full.index(index % STAGES), b_ring.index(index % STAGES)
        mbarrier.expect(bar, BLOCK_BYTES)
        chunk, side = (index - 2) // 2, index % 2
        if index < 2:
            tma.async_copy_global_to_shared(d_out, [0, side * HALF], bar, block)
        elif index >= 2 + 2 * CHUNKS:
            tma.async_copy_global_to_shared(d_qkv, [(chunk - CHUNKS) * D, side * HALF], bar, block)
        elif side == 0:
            tma.async_copy_global_to_shared(d_up, [chunk * HALF, 0], bar, block.slice(0, HALF, 0))
            tma.async_copy_global_to_shared(d_up, [chunk * HALF, HALF], bar, block.slice(HALF, HALF, 0))
        else:
            tma.async_copy_global_to_shared(d_down, [0, chunk * HALF], bar, block)


@gluon.jit
def _arrived(index, ring):
    """Wait for block `index`, and return its upper and lower half (64, 64), transposed."""
    b_ring, full = ring
    mbarrier.wait(full.index(index % STAGES), index // STAGES & 1)
    return halves(b_ring.index(index % STAGES))


@gluon.jit
def _product(b_first, b_second, index, BLOCKS: gl.constexpr, ring, weights, layout: gl.constexpr):
    """[first second] (64, 128) times the transpose of blocks index and index + 1, in halves (64, 64) fp32."""
    b_none = gl.zeros([HALF, HALF], gl.float32, layout)
    b_upper, b_lower = _arrived(index, ring)
    b_y0 = warpgroup_mma(b_first, b_upper, b_none, use_acc=False, is_async=True)
    b_y1 = warpgroup_mma(b_first, b_lower, b_none, use_acc=False, is_async=True)
    b_upper, b_lower = _arrived(index + 1, ring)
    b_y0 = warpgroup_mma(b_second, b_upper, b_y0, is_async=True)
    b_y1 = warpgroup_mma(b_second, b_lower, b_y1, is_async=True)
    b_y0, b_y1, b_first = warpgroup_mma_wait(2, deps=(b_y0, b_y1, b_first))
    barrier()
    _load(index + 2, BLOCKS, ring, weights)
    b_y0, b_y1, b_second = warpgroup_mma_wait(0, deps=(b_y0, b_y1, b_second))
    barrier()
    _load(index + 3, BLOCKS, ring, weights)
    return b_y0, b_y1


@gluon.jit(do_not_specialize=["row", "start", "L", "C", "x_tiles", "tiles", "B"])
def rows_quad_kernel(
    d_o,  # (B R, D)
    d_out_x, d_out_c, d_up_x, d_up_c, d_down_x, d_down_c, d_qkv_x, d_qkv_c,
    d_heads,  # (3 B R, D): q, k, v, written
    p_residual,  # (B, R, D) fp32: x before attention
    p_kept,  # (B, R, D), written: the residual after the layer; or None, as for LAST
    p_modulation,
    p_out_bias_x, p_out_bias_c, p_out_norm_x, p_out_norm_c, p_up_bias_x, p_up_bias_c, p_down_bias_x, p_down_bias_c,
    p_bias_x, p_bias_c, p_qnorm_x, p_qnorm_c, p_knorm_x, p_knorm_c,
    p_cos, p_sin, p_starts, p_x_out, p_c_out,
    modulation_batch,
    row, start, L, C, x_tiles, tiles, B,
    LAST: gl.constexpr, STREAMS: gl.constexpr, SCALE: gl.constexpr, NORM_EPS: gl.constexpr, RMS_EPS: gl.constexpr,
    HEAD_DIM: gl.constexpr, FORWARD: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    dtype: gl.constexpr = d_o.dtype
    CHUNKS: gl.constexpr = FORWARD // HALF
    BLOCKS: gl.constexpr = 2 + 2 * CHUNKS + (0 if LAST else 6)
    PAIRS: gl.constexpr = HEAD_DIM // 2
    b_ring = gl.allocate_shared_memory(dtype, [STAGES, D, HALF], d_o.layout)
    b_a = gl.allocate_shared_memory(dtype, [2, HALF, HALF], d_o.layout)
    b_modulation = gl.allocate_shared_memory(gl.float32, [8, D], PLAIN)
    b_vectors = gl.allocate_shared_memory(dtype, [8, D], PLAIN)
    b_bias = gl.allocate_shared_memory(dtype, [CHUNKS, HALF], PLAIN)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    arrived = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
    mbarrier.init(arrived, count=1)
    fence_async_shared()
    sample, tile = gl.program_id(0) // tiles, gl.program_id(0) % tiles
    rows, row0 = tiles * HALF, tile * HALF
    is_context = tile >= x_tiles
    p_modulation += sample * modulation_batch + (row + is_context.to(gl.int32)) * 6 * D
    chosen, stream0, length, rotated = choose(
        is_context, tile, x_tiles, L, C,
        (d_out_x, d_up_x, d_down_x, d_qkv_x, p_x_out, p_out_bias_x, p_out_norm_x, p_up_bias_x, p_down_bias_x, p_bias_x,
         p_qnorm_x, p_knorm_x),
        (d_out_c, d_up_c, d_down_c, d_qkv_c, p_c_out, p_out_bias_c, p_out_norm_c, p_up_bias_c, p_down_bias_c, p_bias_c,
         p_qnorm_c, p_knorm_c),
    )  # fmt: skip
    d_out, d_up, d_down, d_qkv, p_out = chosen[:5]
    ring, weights = (b_ring, full), (d_out, d_up, d_down, d_qkv, CHUNKS)
    for stage in gl.static_range(STAGES):
        _load(stage, BLOCKS, ring, weights)
    fetch_vectors(b_modulation, b_vectors, b_bias, p_modulation, chosen[5:], STREAMS * 6 * D, LAST)
    if not LAST and p_starts is not None:
        start += gl.load(p_starts + sample).to(gl.int32)
    o_row = gl.expand_dims(gl.arange(0, HALF, layout=gl.SliceLayout(1, layout)), 1)
    o_d = gl.expand_dims(gl.arange(0, HALF, layout=gl.SliceLayout(0, layout)), 0)
    m_x = stream0 + o_row < length
    o_x = o_row * D + o_d
    p_residual += (sample.to(gl.int64) * rows + row0) * D
    _prefetch(p_residual, HALF * D // 32)
    async_copy.wait_group(0)
    if PDL:
        grid_wait()
        grid_launch()
    mbarrier.expect(arrived, HALF * D * 2)
    for side in gl.static_range(2):
        tma.async_copy_global_to_shared(d_o, [sample * rows + row0, side * HALF], arrived, b_a.index(side))
    b_x0 = gl.load(p_residual + o_x)
    barrier()
    mbarrier.wait(arrived, 0)
    b_y0, b_y1 = _product(b_a.index(0), b_a.index(1), 0, BLOCKS, ring, weights, layout)
    b_y0 += vector(b_vectors, 0, 0, layout)
    b_y1 += vector(b_vectors, 0, 1, layout)
    b_factor = gl.rsqrt(row_mean(b_y0 * b_y0, b_y1 * b_y1) + RMS_EPS)
    b_x0 += vector(b_modulation, 2, 0, layout) * vector(b_vectors, 1, 0, layout) * (b_y0 * b_factor)
    b_x1 = gl.load(p_residual + HALF + o_x)
    b_x1 += vector(b_modulation, 2, 1, layout) * vector(b_vectors, 1, 1, layout) * (b_y1 * b_factor)
    gl.store(p_residual + o_x, b_x0)  # kept there, not in registers, while the MLP is taken
    gl.store(p_residual + HALF + o_x, b_x1)
    b_h0, b_h1 = norm(b_x0, b_x1, b_modulation, 3, dtype, layout, NORM_EPS)
    keep(b_a, b_h0, b_h1)

    b_none = gl.zeros([HALF, HALF], gl.float32, layout)
    b_m0, b_m1 = b_none, b_none
    for chunk in range(CHUNKS):
        index = 2 + 2 * chunk
        b_first, b_second = _arrived(index, ring)
        b_u = warpgroup_mma(b_a.index(0), b_first, b_none, use_acc=False, is_async=True)
        b_u = warpgroup_mma(b_a.index(1), b_second, b_u, is_async=True)
        b_u = warpgroup_mma_wait(0, deps=(b_u,))
        barrier()
        _load(index + 2, BLOCKS, ring, weights)
        b_u += gl.expand_dims(b_bias.index(chunk).load(gl.SliceLayout(0, layout)).to(gl.float32), 0)
        b_u = gl.convert_layout(silu(b_u).to(dtype), operand)
        b_upper, b_lower = _arrived(index + 1, ring)
        b_m0 = warpgroup_mma(b_u, b_upper, b_m0, is_async=True)
        b_m1 = warpgroup_mma(b_u, b_lower, b_m1, is_async=True)
        b_m0, b_m1, b_u = warpgroup_mma_wait(0, deps=(b_m0, b_m1, b_u))
        barrier()
        _load(index + 3, BLOCKS, ring, weights)
    b_x0 = gl.load(p_residual + o_x)
    b_x1 = gl.load(p_residual + HALF + o_x)
    b_x0 += vector(b_modulation, 5, 0, layout) * (b_m0 + vector(b_vectors, 2, 0, layout))
    b_x1 += vector(b_modulation, 5, 1, layout) * (b_m1 + vector(b_vectors, 2, 1, layout))
    if LAST:
        p_out += (sample.to(gl.int64) * length + stream0) * D
        gl.store(p_out + o_x, b_x0.to(dtype), mask=m_x)
        gl.store(p_out + HALF + o_x, b_x1.to(dtype), mask=m_x)
    else:
        gl.store(p_residual + o_x, b_x0)
        gl.store(p_residual + HALF + o_x, b_x1)
        if p_kept is not None:
            p_kept += (sample.to(gl.int64) * rows + row0) * D
            gl.store(p_kept + o_x, b_x0.to(dtype))
            gl.store(p_kept + HALF + o_x, b_x1.to(dtype))
        b_cos = angles(p_cos, start + stream0, stream0, rotated, 1.0, PAIRS)
        b_sin = angles(p_sin, start + stream0, stream0, rotated, 0.0, PAIRS)
        b_h0, b_h1 = norm(b_x0, b_x1, b_modulation, 6, dtype, layout, NORM_EPS)
        b_h0, b_h1 = gl.convert_layout(b_h0, operand), gl.convert_layout(b_h1, operand)
        for part in gl.static_range(3):
            b_y0, b_y1 = _product(b_h0, b_h1, 2 + 2 * CHUNKS + 2 * part, BLOCKS, ring, weights, layout)
            b_y0 += vector(b_vectors, 3 + part, 0, layout)
            b_y1 += vector(b_vectors, 3 + part, 1, layout)
            if part < 2:
                b_factor = gl.rsqrt(row_mean(b_y0 * b_y0, b_y1 * b_y1) + RMS_EPS)
                if part == 0:
                    b_factor *= SCALE
                b_y0 = rotate(b_y0 * b_factor * vector(b_vectors, 6 + part, 0, layout), b_cos, b_sin, PAIRS, layout)
                b_y1 = rotate(b_y1 * b_factor * vector(b_vectors, 6 + part, 1, layout), b_cos, b_sin, PAIRS, layout)
            if part > 0:
                tma.store_wait(0)
                barrier()
            keep(b_a, gl.where(m_x, b_y0, 0.0).to(dtype), gl.where(m_x, b_y1, 0.0).to(dtype))
            for side in gl.static_range(2):
                tma.async_copy_shared_to_global(
                    d_heads, [(part * B + sample) * rows + row0, side * HALF], b_a.index(side)
                )
        tma.store_wait(0)
