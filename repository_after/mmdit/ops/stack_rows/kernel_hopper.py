"""rows_kernel for Hopper, in 16 bits at D = 128, where there are few tiles: a program of eight warps has a
multiprocessor to itself, and its products run while it takes what does not depend on them.
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

from mmdit.ops.stack_rows.kernel_hopper_parts import (
    BLOCK_BYTES,
    PLAIN,
    TILE,
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

HALF_D = gl.constexpr(64)
STAGES = gl.constexpr(4)  # pairs of blocks of weights


@gluon.jit
def _load_pair(pair, PAIRS: gl.constexpr, ring, weights):
    """Start the copy of a pair of blocks (128, 64), halves of a (128, 128) matrix of a tile's weights: Wo, the first
    128 rows of W1, then by turns the next of W1 and the next columns of W2, then Wq, Wk, Wv.
    """
    b_ring, full = ring
    d_out, d_up, d_down, d_qkv, CHUNKS = weights
    if pair < PAIRS:
        stage = pair % STAGES
        bar = full.index(stage)
        mbarrier.expect(bar, 2 * BLOCK_BYTES)
        for side in gl.static_range(2):
            block = b_ring.index(stage * 2 + side)
            if pair == 0:
                tma.async_copy_global_to_shared(d_out, [0, side * HALF_D], bar, block)
            elif pair == 1:
                tma.async_copy_global_to_shared(d_up, [0, side * HALF_D], bar, block)
            elif pair > 2 * CHUNKS:
                tma.async_copy_global_to_shared(d_qkv, [(pair - 2 * CHUNKS - 1) * D, side * HALF_D], bar, block)
            elif pair == 2 * CHUNKS:
                tma.async_copy_global_to_shared(d_down, [0, (CHUNKS - 1) * D + side * HALF_D], bar, block)
            elif pair % 2 == 0:
                tma.async_copy_global_to_shared(d_up, [pair // 2 * D, side * HALF_D], bar, block)
            else:
                tma.async_copy_global_to_shared(d_down, [0, (pair - 3) // 2 * D + side * HALF_D], bar, block)


@gluon.jit
def _begin(b_a, b_acc, pair, ring, MORE: gl.constexpr = False):
    """Begin a (64, 128, shared) times the transpose of a pair of blocks, plus acc if MORE: two groups of wgmma."""
    b_ring, full = ring
    stage = pair % STAGES
    mbarrier.wait(full.index(stage), pair // STAGES & 1)
    b_first, b_second = b_ring.index(stage * 2), b_ring.index(stage * 2 + 1)
    b_acc = warpgroup_mma(b_a.slice(0, HALF_D, 1), b_first.permute((1, 0)), b_acc, use_acc=MORE, is_async=True)
    return warpgroup_mma(b_a.slice(HALF_D, HALF_D, 1), b_second.permute((1, 0)), b_acc, is_async=True)


@gluon.jit
def _vector(b_from, index, layout: gl.constexpr):
    """Row `index` as fp32 (1, 128)."""
    return gl.expand_dims(b_from.index(index).load(gl.SliceLayout(0, layout)).to(gl.float32), 0)


@gluon.jit
def _row_mean(b_x):
    return gl.expand_dims(gl.sum(b_x, axis=1), 1) * (1.0 / D)


@gluon.jit
def _keep(b_to, b_x):
    """Store to shared memory, for wgmma or TMA to read."""
    b_to.store(b_x.to(b_to.dtype))
    fence_async_shared()
    barrier()


@gluon.jit
def _norm(b_x, b_modulation, index: gl.constexpr, layout: gl.constexpr, EPS: gl.constexpr):
    b_x = b_x - _row_mean(b_x)
    b_x = b_x * gl.rsqrt(_row_mean(b_x * b_x) + EPS)
    return b_x * (1.0 + _vector(b_modulation, index, layout)) + _vector(b_modulation, index + 1, layout)


@gluon.jit
def _finish_hidden(b_u, chunk, PAIRS: gl.constexpr, ring, weights):
    """A chunk's product with W1, the one of the chunk before with W2 being in flight; the free stages are refilled."""
    b_h = warpgroup_mma_wait(2, deps=(b_u,))
    barrier()
    if chunk > 1:
        _load_pair(2 * chunk - 1 + STAGES, PAIRS, ring, weights)
    _load_pair(2 * chunk + STAGES, PAIRS, ring, weights)
    return b_h


@gluon.jit
def _normed(
    b_y, b_vectors, bias: gl.constexpr, weight: gl.constexpr, SCALE: gl.constexpr, layout: gl.constexpr,
    EPS: gl.constexpr,
):  # fmt: skip
    """RMSNorm(y + bias) * weight * SCALE."""
    b_y += _vector(b_vectors, bias, layout)
    return b_y * (gl.rsqrt(_row_mean(b_y * b_y) + EPS) * SCALE) * _vector(b_vectors, weight, layout)


@gluon.jit(do_not_specialize=["row", "start", "L", "C", "x_tiles", "tiles", "B"])
def rows_hopper_kernel(
    d_o,  # (B R, D), blocks (64, D)
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
    acc: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 64, 16])
    dtype: gl.constexpr = d_o.dtype
    CHUNKS: gl.constexpr = FORWARD // D
    PAIRS: gl.constexpr = 1 + 2 * CHUNKS + (0 if LAST else 3)
    b_ring = gl.allocate_shared_memory(dtype, [2 * STAGES, 128, 64], d_out_x.layout)
    b_a = gl.allocate_shared_memory(dtype, [TILE, D], d_o.layout)
    b_b = gl.allocate_shared_memory(dtype, [2, TILE, D], d_o.layout)
    b_modulation = gl.allocate_shared_memory(gl.float32, [8, D], PLAIN)
    b_vectors = gl.allocate_shared_memory(dtype, [8, D], PLAIN)
    b_bias = gl.allocate_shared_memory(dtype, [CHUNKS, D], PLAIN)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    arrived = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
    mbarrier.init(arrived, count=1)
    fence_async_shared()
    sample, tile = gl.program_id(0) // tiles, gl.program_id(0) % tiles
    rows, row0 = tiles * TILE, tile * TILE
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
        _load_pair(stage, PAIRS, ring, weights)
    fetch_vectors(b_modulation, b_vectors, b_bias, p_modulation, chosen[5:], STREAMS * 6 * D, LAST)
    if not LAST:
        if p_starts is not None:
            start += gl.load(p_starts + sample).to(gl.int32)
        ROTATED: gl.constexpr = HEAD_DIM // 2
        b_cos = angles(p_cos, start + stream0, stream0, rotated, 1.0, ROTATED)
        b_sin = angles(p_sin, start + stream0, stream0, rotated, 0.0, ROTATED)
    o_row = row0 + gl.arange(0, TILE, layout=gl.SliceLayout(1, acc))
    o_stream = stream0 + gl.arange(0, TILE, layout=gl.SliceLayout(1, acc))
    o_d = gl.expand_dims(gl.arange(0, D, layout=gl.SliceLayout(0, acc)), 0)
    o_x = gl.expand_dims(o_row, 1) * D + o_d
    m_x = gl.expand_dims(o_stream < length, 1)
    p_residual += sample.to(gl.int64) * rows * D
    b_x = gl.load(p_residual + o_x)
    async_copy.wait_group(0)
    if PDL:
        grid_wait()
        grid_launch()
    mbarrier.expect(arrived, TILE * D * 2)
    tma.async_copy_global_to_shared(d_o, [sample * rows + row0, 0], arrived, b_a)
    b_none = gl.zeros([TILE, D], gl.float32, acc)
    barrier()
    mbarrier.wait(arrived, 0)
    b_y = warpgroup_mma_wait(0, deps=(_begin(b_a, b_none, 0, ring),)) + _vector(b_vectors, 0, acc)
    barrier()
    _load_pair(STAGES, PAIRS, ring, weights)
    b_gate = _vector(b_modulation, 2, acc) * _vector(b_vectors, 1, acc)
    b_x += b_gate * (b_y * gl.rsqrt(_row_mean(b_y * b_y) + RMS_EPS))
    _keep(b_a, _norm(b_x, b_modulation, 3, acc, NORM_EPS))

    b_h = warpgroup_mma_wait(0, deps=(_begin(b_a, b_none, 1, ring),))
    barrier()
    _load_pair(1 + STAGES, PAIRS, ring, weights)
    if CHUNKS > 1:  # the next chunk's W1 in flight while this one's silu is taken
        b_u = _begin(b_a, b_none, 2, ring)
    _keep(b_b.index(0), silu(b_h + _vector(b_bias, 0, acc)))
    b_m = _begin(b_b.index(0), b_none, 3 if CHUNKS > 1 else 2, ring)
    for chunk in gl.static_range(1, CHUNKS - 1):
        b_h = _finish_hidden(b_u, chunk, PAIRS, ring, weights)
        b_u = _begin(b_a, b_none, 2 * chunk + 2, ring)
        _keep(b_b.index(chunk % 2), silu(b_h + _vector(b_bias, chunk, acc)))
        b_m = _begin(b_b.index(chunk % 2), b_m, 2 * chunk + 3, ring, True)
    if CHUNKS > 1:
        b_h = _finish_hidden(b_u, CHUNKS - 1, PAIRS, ring, weights)
        _keep(b_b.index((CHUNKS - 1) % 2), silu(b_h + _vector(b_bias, CHUNKS - 1, acc)))
        b_m = _begin(b_b.index((CHUNKS - 1) % 2), b_m, 2 * CHUNKS, ring, True)
    b_m = warpgroup_mma_wait(0, deps=(b_m,))
    b_x += _vector(b_modulation, 5, acc) * (b_m + _vector(b_vectors, 2, acc))
    if LAST:
        o_out = gl.expand_dims(o_stream, 1) * D + o_d + sample.to(gl.int64) * length * D
        gl.store(p_out + o_out, b_x.to(dtype), mask=m_x)
    else:
        _keep(b_a, _norm(b_x, b_modulation, 6, acc, NORM_EPS))
        _load_pair(2 * CHUNKS - 1 + STAGES, PAIRS, ring, weights)
        b_q = _begin(b_a, b_none, 2 * CHUNKS + 1, ring)
        b_k = _begin(b_a, b_none, 2 * CHUNKS + 2, ring)
        gl.store(p_residual + o_x, b_x, mask=m_x)
        if p_kept is not None:
            gl.store(p_kept + sample.to(gl.int64) * rows * D + o_x, b_x.to(dtype), mask=m_x)
        b_q = warpgroup_mma_wait(2, deps=(b_q,))
        b_v = _begin(b_a, b_none, 2 * CHUNKS + 3, ring)
        b_q = _normed(b_q, b_vectors, 3, 6, SCALE, acc, RMS_EPS)
        b_q = rotate(b_q, b_cos, b_sin, ROTATED, acc)
        _keep(b_b.index(0), gl.where(m_x, b_q, 0.0))
        tma.async_copy_shared_to_global(d_heads, [sample * rows + row0, 0], b_b.index(0))
        b_k = warpgroup_mma_wait(2, deps=(b_k,))
        b_k = rotate(_normed(b_k, b_vectors, 4, 7, 1.0, acc, RMS_EPS), b_cos, b_sin, ROTATED, acc)
        _keep(b_b.index(1), gl.where(m_x, b_k, 0.0))
        tma.async_copy_shared_to_global(d_heads, [(B + sample) * rows + row0, 0], b_b.index(1))
        b_v = warpgroup_mma_wait(0, deps=(b_v,)) + _vector(b_vectors, 5, acc)
        tma.store_wait(1)
        barrier()
        _keep(b_b.index(0), gl.where(m_x, b_v, 0.0))
        tma.async_copy_shared_to_global(d_heads, [(2 * B + sample) * rows + row0, 0], b_b.index(0))
        tma.store_wait(0)
