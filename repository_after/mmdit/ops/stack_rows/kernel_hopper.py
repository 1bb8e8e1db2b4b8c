"""rows_kernel for Hopper, in 16 bits at D = 128: wgmma on tiles of 64 rows, weights streamed through a ring by TMA."""

from typing import Any

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
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

_barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # its name in Triton 3.6, and from 3.7 on
D = gl.constexpr(128)
TILE = gl.constexpr(64)
HALF_D = gl.constexpr(64)
BLOCK_BYTES = gl.constexpr(128 * 64 * 2)
SWIZZLED = gl.NVMMASharedLayout(128, 16, 2)


def describe(matrix: Any, rows: int, columns: int) -> TensorDescriptor:
    """A TMA descriptor of matrix (N, K), contiguous, of 16 bits an element, copied in blocks (rows, columns)."""
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns], SWIZZLED)


@gluon.jit
def _grid_wait():
    gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], gl.int32, False, 1)


@gluon.jit
def _grid_launch():
    gl.inline_asm_elementwise("griddepcontrol.launch_dependents; // $0", "=r", [], gl.int32, False, 1)


@gluon.jit
def _load_block(index, BLOCKS: gl.constexpr, ring, weights):
    """Start the copy of block `index` of a tile's weights, (128, 64) each: 2 of Wo, for each 128 features 2 of W1 and
    2 of W2, 6 of Wqkv.
    """
    b_ring, full = ring
    d_out, d_up, d_down, d_qkv, CHUNKS = weights
    if index < BLOCKS:
        stage = index % b_ring.shape[0]
        bar, block = full.index(stage), b_ring.index(stage)
        mbarrier.expect(bar, BLOCK_BYTES)
        side = index % 2 * HALF_D
        if index < 2:
            tma.async_copy_global_to_shared(d_out, [0, side], bar, block)
        elif index >= 2 + 4 * CHUNKS:
            tma.async_copy_global_to_shared(d_qkv, [(index - 2 - 4 * CHUNKS) // 2 * D, side], bar, block)
        elif (index - 2) % 4 < 2:
            tma.async_copy_global_to_shared(d_up, [(index - 2) // 4 * D, side], bar, block)
        else:
            tma.async_copy_global_to_shared(d_down, [0, (index - 2) // 4 * D + side], bar, block)


@gluon.jit
def _product(b_a, b_acc, index, BLOCKS: gl.constexpr, ring, weights):
    """acc + a (64, 128, in shared memory) times the transpose of blocks index and index + 1, whose stages then take
    the blocks that follow.
    """
    b_ring, full = ring
    STAGES: gl.constexpr = b_ring.shape[0]
    for side in gl.static_range(2):
        stage = (index + side) % STAGES
        mbarrier.wait(full.index(stage), (index + side) // STAGES & 1)
        b_w = b_ring.index(stage).permute((1, 0))
        b_acc = warpgroup_mma(b_a.slice(side * HALF_D, HALF_D, 1), b_w, b_acc, is_async=True)
    b_acc = warpgroup_mma_wait(0, deps=(b_acc,))
    _barrier()
    for side in gl.static_range(2):
        _load_block(index + side + STAGES, BLOCKS, ring, weights)
    return b_acc


@gluon.jit
def _fetch(b_to, index: gl.constexpr, p_from, SIZE: gl.constexpr):
    """Start the copy of SIZE elements to the rows of b_to from `index` on, (rows, 128)."""
    EACH: gl.constexpr = 128 // p_from.dtype.element_ty.primitive_bitwidth
    layout: gl.constexpr = gl.BlockedLayout([EACH], [32], [8], [0])
    for row in gl.static_range(SIZE // D):
        o = gl.arange(0, D, layout=layout)
        async_copy.async_copy_global_to_shared(b_to.index(index + row), p_from + row * D + o)


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
    _barrier()


@gluon.jit
def _norm(b_x, b_modulation, index: gl.constexpr, layout: gl.constexpr, EPS: gl.constexpr):
    b_x = b_x - _row_mean(b_x)
    b_x = b_x * gl.rsqrt(_row_mean(b_x * b_x) + EPS)
    return b_x * (1.0 + _vector(b_modulation, index, layout)) + _vector(b_modulation, index + 1, layout)


@gluon.jit
def _silu(b_x):
    b_half = 0.5 * b_x
    b_tanh = gl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [b_half], gl.float32, True, 1)
    return b_half + b_half * b_tanh


@gluon.jit
def _rotate(b_y, b_cos, b_sin, HALF: gl.constexpr, layout: gl.constexpr):
    """Rotate the pairs (2 i, 2 i + 1) of each head of y (64, 128): they are neighbours in a thread's registers."""
    b_even, b_odd = gl.split(gl.reshape(b_y, [TILE, D // (2 * HALF), HALF, 2]))
    b_cos = gl.expand_dims(gl.convert_layout(b_cos, gl.SliceLayout(1, b_even.type.layout)), 1)
    b_sin = gl.expand_dims(gl.convert_layout(b_sin, gl.SliceLayout(1, b_even.type.layout)), 1)
    b_y = gl.join(b_even * b_cos - b_odd * b_sin, b_even * b_sin + b_odd * b_cos)
    return gl.convert_layout(gl.reshape(b_y, [TILE, D]), layout)


@gluon.jit
def _angles(p_table, position, stream0, length, other, HALF: gl.constexpr, layout: gl.constexpr):
    """A tile's rows of a rotary table, (64, Dh / 2)."""
    o_row = gl.arange(0, TILE, layout=gl.SliceLayout(1, layout))
    o_angle = gl.expand_dims(position + o_row, 1) * HALF
    o_angle += gl.expand_dims(gl.arange(0, HALF, layout=gl.SliceLayout(0, layout)), 0)
    return gl.load(p_table + o_angle, mask=gl.expand_dims(stream0 + o_row < length, 1), other=other)


@gluon.jit(do_not_specialize=["row", "start", "L", "C", "x_tiles", "tiles", "B"])
def rows_hopper_kernel(
    d_o,  # (B R, D), blocks (64, D)
    d_out_x, d_out_c, d_up_x, d_up_c, d_down_x, d_down_c, d_qkv_x, d_qkv_c,
    d_heads,  # (3 B R, D): q, k, v, written
    p_residual, p_modulation,
    p_out_bias_x, p_out_bias_c, p_out_norm_x, p_out_norm_c, p_up_bias_x, p_up_bias_c, p_down_bias_x, p_down_bias_c,
    p_bias_x, p_bias_c, p_qnorm_x, p_qnorm_c, p_knorm_x, p_knorm_c,
    p_cos, p_sin, p_starts, p_x_out, p_c_out,
    modulation_batch,
    row, start, L, C, x_tiles, tiles, B,
    LAST: gl.constexpr, STREAMS: gl.constexpr, SCALE: gl.constexpr, NORM_EPS: gl.constexpr, RMS_EPS: gl.constexpr,
    HEAD_DIM: gl.constexpr, FORWARD: gl.constexpr, STAGES: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    acc: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 64, 16])
    dtype: gl.constexpr = d_o.dtype
    CHUNKS: gl.constexpr = FORWARD // D
    BLOCKS: gl.constexpr = 2 + 4 * CHUNKS + (0 if LAST else 6)
    b_ring = gl.allocate_shared_memory(dtype, [STAGES, 128, 64], d_out_x.layout)
    b_a = gl.allocate_shared_memory(dtype, [TILE, D], d_o.layout)
    b_b = gl.allocate_shared_memory(dtype, [TILE, D], d_o.layout)
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    b_modulation = gl.allocate_shared_memory(gl.float32, [8, D], plain)
    b_vectors = gl.allocate_shared_memory(dtype, [8, D], plain)
    b_bias = gl.allocate_shared_memory(dtype, [CHUNKS, D], plain)
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
    if is_context:
        d_out, d_up, d_down, d_qkv = d_out_c, d_up_c, d_down_c, d_qkv_c
        p_out_bias, p_out_norm, p_up_bias, p_down_bias = p_out_bias_c, p_out_norm_c, p_up_bias_c, p_down_bias_c
        p_bias, p_qnorm, p_knorm, p_out = p_bias_c, p_qnorm_c, p_knorm_c, p_c_out
        stream0, length, rotated = row0 - x_tiles * TILE, C, 0
    else:
        d_out, d_up, d_down, d_qkv = d_out_x, d_up_x, d_down_x, d_qkv_x
        p_out_bias, p_out_norm, p_up_bias, p_down_bias = p_out_bias_x, p_out_norm_x, p_up_bias_x, p_down_bias_x
        p_bias, p_qnorm, p_knorm, p_out = p_bias_x, p_qnorm_x, p_knorm_x, p_x_out
        stream0, length, rotated = row0, L, L
    ring, weights = (b_ring, full), (d_out, d_up, d_down, d_qkv, CHUNKS)
    for stage in gl.static_range(STAGES):
        _load_block(stage, BLOCKS, ring, weights)
    _fetch(b_modulation, 0, p_modulation, 6 * D)
    _fetch(b_vectors, 0, p_out_bias, D)
    _fetch(b_vectors, 1, p_out_norm, D)
    _fetch(b_vectors, 2, p_down_bias, D)
    _fetch(b_bias, 0, p_up_bias, FORWARD)
    if not LAST:
        _fetch(b_modulation, 6, p_modulation + STREAMS * 6 * D, 2 * D)
        _fetch(b_vectors, 3, p_bias, 3 * D)
        _fetch(b_vectors, 6, p_qnorm, D)
        _fetch(b_vectors, 7, p_knorm, D)
        if p_starts is not None:
            start += gl.load(p_starts + sample).to(gl.int32)
        HALF: gl.constexpr = HEAD_DIM // 2
        pair: gl.constexpr = gl.BlockedLayout([1, 1], [32 // 8, 8], [8, 1], [1, 0])
        b_cos = _angles(p_cos, start + stream0, stream0, rotated, 1.0, HALF, pair)
        b_sin = _angles(p_sin, start + stream0, stream0, rotated, 0.0, HALF, pair)
    o_row = row0 + gl.arange(0, TILE, layout=gl.SliceLayout(1, acc))
    o_stream = stream0 + gl.arange(0, TILE, layout=gl.SliceLayout(1, acc))
    o_d = gl.expand_dims(gl.arange(0, D, layout=gl.SliceLayout(0, acc)), 0)
    o_x = gl.expand_dims(o_row, 1) * D + o_d
    m_x = gl.expand_dims(o_stream < length, 1)
    p_residual += sample.to(gl.int64) * rows * D
    b_x = gl.load(p_residual + o_x)
    async_copy.commit_group()
    async_copy.wait_group(0)
    if PDL:
        _grid_wait()
        _grid_launch()
    mbarrier.expect(arrived, TILE * D * 2)
    tma.async_copy_global_to_shared(d_o, [sample * rows + row0, 0], arrived, b_a)
    b_y = gl.zeros([TILE, D], gl.float32, acc)
    _barrier()
    mbarrier.wait(arrived, 0)
    b_y = _product(b_a, b_y, 0, BLOCKS, ring, weights) + _vector(b_vectors, 0, acc)
    b_gate = _vector(b_modulation, 2, acc) * _vector(b_vectors, 1, acc)
    b_x += b_gate * (b_y * gl.rsqrt(_row_mean(b_y * b_y) + RMS_EPS))
    _keep(b_a, _norm(b_x, b_modulation, 3, acc, NORM_EPS))

    b_m = gl.zeros([TILE, D], gl.float32, acc)
    for chunk in range(CHUNKS):
        index = 2 + 4 * chunk
        b_u = gl.zeros([TILE, D], gl.float32, acc)
        b_u = _product(b_a, b_u, index, BLOCKS, ring, weights)
        _keep(b_b, _silu(b_u + _vector(b_bias, chunk, acc)))
        b_m = _product(b_b, b_m, index + 2, BLOCKS, ring, weights)
    b_x += _vector(b_modulation, 5, acc) * (b_m + _vector(b_vectors, 2, acc))
    if LAST:
        o_out = gl.expand_dims(o_stream, 1) * D + o_d + sample.to(gl.int64) * length * D
        gl.store(p_out + o_out, b_x.to(dtype), mask=m_x)
    else:
        gl.store(p_residual + o_x, b_x, mask=m_x)
        _keep(b_a, _norm(b_x, b_modulation, 6, acc, NORM_EPS))
        for part in gl.static_range(3):
            b_y = gl.zeros([TILE, D], gl.float32, acc)
            b_y = _product(b_a, b_y, 2 + 4 * CHUNKS + 2 * part, BLOCKS, ring, weights)
            b_y += _vector(b_vectors, 3 + part, acc)
            if part < 2:
                b_factor = gl.rsqrt(_row_mean(b_y * b_y) + RMS_EPS)
                if part == 0:
                    b_factor *= SCALE
                b_y = b_y * b_factor * _vector(b_vectors, 6 + part, acc)
                b_y = _rotate(b_y, b_cos, b_sin, HALF, acc)
            if part > 0:
                tma.store_wait(0)
                _barrier()
            _keep(b_b, gl.where(m_x, b_y, 0.0))
            tma.async_copy_shared_to_global(d_heads, [(part * B + sample) * rows + row0, 0], b_b)
        tma.store_wait(0)
