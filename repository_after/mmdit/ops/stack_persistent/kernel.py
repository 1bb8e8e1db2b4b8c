"""A whole stack in one launch on Hopper, in 16 bits, at D = 128, 8 heads and 256 rows a sample: each program keeps a
tile of 64 rows through all layers, and waits for the sample's other tiles only to read their keys.

B batch, L x length, C context length, N layers, M streams, F feed-forward. Rows of a sample: x padded to x_tiles * 64,
then the context padded likewise, 256 together. Padding is 0 in k and v. Pointers are p_*, TMA descriptors d_*, block
values and shared memory b_*, offsets o_*, masks m_*.
"""

import triton.language as tl
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

from mmdit.ops.stack_persistent.kernel_attention import attend
from mmdit.ops.stack_persistent.kernel_parts import (
    HEAD_DIM,
    HEADS,
    NARROW,
    NARROWS,
    ROWS,
    SWIZZLEDS,
    arrive,
    await_block,
    await_count,
    fetch,
    stores_done,
)
from mmdit.ops.stack_persistent.kernel_rows import PAIRS, angles_like, keep_heads, tile_offsets, tile_rows
from mmdit.ops.stack_rows.kernel_hopper_halves import HALF, halves, keep, norm, row_mean, vector
from mmdit.ops.stack_rows.kernel_hopper_parts import BLOCK_BYTES, PLAIN, SWIZZLED, D, barrier, rotate, silu

TILES = gl.constexpr(4)  # of a sample


@gluon.jit(do_not_specialize=["LAYERS", "start", "L", "C", "x_tiles", "B"])
def stack_kernel(
    d_keys,  # (2, B 8 256, 16): k and v by samples and heads, read by (2, 256, 16)
    d_keys_tile,  # (2 B 8, 256, 16): the same, written by (8, 64, 16)
    d_out,  # (8, N M (512 + F), 16): by heads of D, each layer's and stream's Wo, W1 and Wqkv, by (4, 128, 16)
    d_up,  # (2, N M (512 + F), 64): the same by halves of D, by (2, 64, 64)
    d_qkv,  # (N M (512 + F), 128): the same, by (128, 64)
    d_down,  # (N M 128, F): W2, by (128, 64)
    p_residual,  # (B, 256, 128) fp32, scratch
    p_modulation,  # (B or 1, N, M, 6, 128) fp32
    p_vectors,  # (N M, 1024 + F): biases of qkv, norms of q and k, bias and norm of Wo, biases of W2 and W1
    p_x, p_c,  # (B, L, 128), (B, C, 128): strides (batch, row, 1)
    p_bits,  # (B, 256, 8) int32 or None
    p_cos, p_sin,  # (positions, 8) fp32
    p_starts,  # (B,) int or None
    p_counts,  # (B, 32) int32, zeros
    p_x_out, p_c_out,  # (B, L, 128), (B, C, 128), written
    x_batch, x_row, c_batch, c_row, modulation_batch,
    LAYERS, start, L, C, x_tiles, B,
    STREAMS: gl.constexpr, FORWARD: gl.constexpr, SCALE: gl.constexpr, LARGEST: gl.constexpr, NORM_EPS: gl.constexpr,
    RMS_EPS: gl.constexpr,
):  # fmt: skip
    """x_out, context_out after N layers, each as qkv_kernel, joint_attention_kernel and rows_kernel compute it.

    Grid: (4 B,), all resident at once (a cooperative launch). Saves nothing for backward.

    A program's weights, k and v come by TMA in blocks of 16 KB through two slots: of each layer the k and v of the
    heads by turns; Wo, half of the heads each; 64 rows of W1, and 64 columns of W2; halves of D of the next layer's Wk,
    Wv and Wq. The residual is in global memory; q, o and the MLP's input in b_a. A sample's count goes up by 4 when its
    tiles have written the keys of a layer, and by 4 when all have read them.
    """
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    dtype: gl.constexpr = d_qkv.dtype
    CHUNKS: gl.constexpr = FORWARD // HALF
    KEYS: gl.constexpr = 64 if p_bits is None else 32  # at a time
    b_0 = gl.allocate_shared_memory(dtype, [D, HALF], SWIZZLED)
    b_1 = gl.allocate_shared_memory(dtype, [D, HALF], SWIZZLED)
    full_0 = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    full_1 = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    b_a = gl.allocate_shared_memory(dtype, [2, HALF, HALF], SWIZZLED)
    b_heads = b_a._reinterpret(dtype, [HEADS, HALF, HEAD_DIM], NARROW)
    b_all = b_a._reinterpret(dtype, [HEADS, HALF, HEAD_DIM], NARROWS)
    b_modulation = gl.allocate_shared_memory(gl.float32, [8, D], PLAIN)
    b_vectors = gl.allocate_shared_memory(dtype, [8, D], PLAIN)
    b_bias = gl.allocate_shared_memory(dtype, [CHUNKS, HALF], PLAIN)
    mbarrier.init(full_0, count=1)
    mbarrier.init(full_1, count=1)
    fence_async_shared()
    barrier()
    mbarrier.expect(full_0, BLOCK_BYTES)
    mbarrier.expect(full_1, BLOCK_BYTES)
    slot_0, slot_1 = (b_0, full_0), (b_1, full_1)
    b_keys_0 = b_0._reinterpret(dtype, [2, ROWS, HEAD_DIM], NARROWS)
    b_keys_1 = b_1._reinterpret(dtype, [2, ROWS, HEAD_DIM], NARROWS)
    b_out_0 = b_0._reinterpret(dtype, [4, D, HEAD_DIM], NARROWS)
    b_out_1 = b_1._reinterpret(dtype, [4, D, HEAD_DIM], NARROWS)
    b_up = b_0._reinterpret(dtype, [2, HALF, HALF], SWIZZLEDS)
    tile, sample = gl.program_id(0) % TILES, gl.program_id(0) // TILES
    row0, heads0 = tile * HALF, sample * HEADS
    p_count = p_counts + sample * 32
    is_context = tile >= x_tiles
    stream = is_context.to(gl.int32)
    stream0 = (tile - x_tiles) * HALF if is_context else row0
    length = C if is_context else L
    p_from = p_c if is_context else p_x
    p_to = p_c_out if is_context else p_x_out
    from_batch = c_batch if is_context else x_batch
    from_row = c_row if is_context else x_row
    p_modulation += sample.to(gl.int64) * modulation_batch
    p_residual += (sample.to(gl.int64) * ROWS + row0) * D
    p_from += sample.to(gl.int64) * from_batch + stream0 * from_row
    p_to += (sample.to(gl.int64) * length + stream0) * D
    if p_starts is not None:
        start += gl.load(p_starts + sample).to(gl.int32)
    if p_bits is not None:
        per_row: gl.constexpr = gl.SliceLayout(1, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16]))
        o_query = gl.arange(0, HALF, layout=per_row)
        p_bits += (sample * ROWS + row0 + o_query) * (ROWS // 32)
    o_row = tile_rows(layout)
    o_d = gl.expand_dims(gl.arange(0, HALF, layout=gl.SliceLayout(0, layout)), 0)
    m_x = gl.expand_dims(stream0 + o_row < length, 1)
    o_from = gl.expand_dims(o_row * from_row, 1) + o_d
    o_x = tile_offsets(layout)
    gl.store(p_residual + o_x, gl.load(p_from + o_from, mask=m_x, other=0.0).to(gl.float32))
    gl.store(p_residual + HALF + o_x, gl.load(p_from + HALF + o_from, mask=m_x, other=0.0).to(gl.float32))
    b_none = gl.zeros([HALF, HALF], gl.float32, layout)

    for layer in tl.range(-1, LAYERS, disable_licm=True):  # each its attention and MLP, and the next one's q, k and v
        now = gl.maximum(layer, 0) * STREAMS + stream
        then = gl.minimum(layer + 1, LAYERS - 1) * STREAMS + stream
        row, then_row = now * (4 * D + FORWARD), then * (4 * D + FORWARD) + D + FORWARD
        fetch(b_modulation, b_vectors, b_bias, p_modulation, p_vectors, now, then)
        if layer < 0:
            tma.async_copy_global_to_shared(d_qkv, [then_row + D, 0], full_0, b_0)
            tma.async_copy_global_to_shared(d_qkv, [then_row + D, HALF], full_1, b_1)
            o_x = tile_offsets(layout)
            b_x0 = gl.load(p_residual + o_x)
            b_x1 = gl.load(p_residual + HALF + o_x)
            async_copy.wait_group(0)
            barrier()
        else:
            await_count(p_count, TILES * (2 * layer + 1))
            tma.async_copy_global_to_shared(d_keys, [0, heads0 * ROWS, 0], full_0, b_keys_0)
            tma.async_copy_global_to_shared(d_keys, [0, (heads0 + 1) * ROWS, 0], full_1, b_keys_1)
            for pair in tl.range(HEADS // 2, disable_licm=True):
                keys_row = (heads0 + 2 * pair + 2) * ROWS
                b_q = b_heads.index(2 * pair)
                await_block(slot_0, 1 + pair)
                b_o = attend(b_q, b_0, (L, C, x_tiles * HALF), p_bits, LARGEST, KEYS)
                barrier()
                if pair < HEADS // 2 - 1:
                    tma.async_copy_global_to_shared(d_keys, [0, keys_row, 0], full_0, b_keys_0)
                else:
                    tma.async_copy_global_to_shared(d_out, [0, row, 0], full_0, b_out_0)
                b_q.store(b_o)
                b_q = b_heads.index(2 * pair + 1)
                await_block(slot_1, 1 + pair)
                b_o = attend(b_q, b_1, (L, C, x_tiles * HALF), p_bits, LARGEST, KEYS)
                barrier()
                if pair < HEADS // 2 - 1:
                    tma.async_copy_global_to_shared(d_keys, [0, keys_row + ROWS, 0], full_1, b_keys_1)
                else:
                    tma.async_copy_global_to_shared(d_out, [4, row, 0], full_1, b_out_1)
                b_q.store(b_o)
            async_copy.wait_group(0)
            fence_async_shared()
            barrier()
            arrive(p_count)

            b_y0, b_y1 = b_none, b_none
            for side in gl.static_range(2):
                await_block(slot_1 if side else slot_0, 1)
                b_weights = (b_1 if side else b_0)._reinterpret(dtype, [4, D, HEAD_DIM], NARROW)
                for head in gl.static_range(4):
                    b_upper, b_lower = halves(b_weights.index(head))
                    b_y0 = warpgroup_mma(b_heads.index(4 * side + head), b_upper, b_y0, is_async=True)
                    b_y1 = warpgroup_mma(b_heads.index(4 * side + head), b_lower, b_y1, is_async=True)
            b_y0, b_y1 = warpgroup_mma_wait(0, deps=(b_y0, b_y1))
            barrier()
            tma.async_copy_global_to_shared(d_up, [0, row + D, 0], full_0, b_up)
            tma.async_copy_global_to_shared(d_down, [now * D, 0], full_1, b_1)
            o_x = tile_offsets(layout)
            b_x0 = gl.load(p_residual + o_x)
            b_y0 += vector(b_vectors, 5, 0, layout)
            b_y1 += vector(b_vectors, 5, 1, layout)
            b_factor = gl.rsqrt(row_mean(b_y0 * b_y0, b_y1 * b_y1) + RMS_EPS)
            b_x0 += vector(b_modulation, 2, 0, layout) * vector(b_vectors, 6, 0, layout) * (b_y0 * b_factor)
            b_x1 = gl.load(p_residual + HALF + o_x)
            b_x1 += vector(b_modulation, 2, 1, layout) * vector(b_vectors, 6, 1, layout) * (b_y1 * b_factor)
            gl.store(p_residual + o_x, b_x0)  # kept there, not in registers, while the MLP is taken
            gl.store(p_residual + HALF + o_x, b_x1)
            b_h0, b_h1 = norm(b_x0, b_x1, b_modulation, 3, dtype, layout, NORM_EPS)
            keep(b_a, b_h0, b_h1)

            b_m0, b_m1 = b_none, b_none
            for chunk in tl.range(CHUNKS, disable_licm=True):
                await_block(slot_0, chunk)
                b_first, b_second = halves(b_0)
                b_u = warpgroup_mma(b_a.index(0), b_first, b_none, use_acc=False, is_async=True)
                b_u = warpgroup_mma_wait(0, deps=(warpgroup_mma(b_a.index(1), b_second, b_u, is_async=True),))
                barrier()
                if chunk < CHUNKS - 1:
                    tma.async_copy_global_to_shared(d_up, [0, row + D + (chunk + 1) * HALF, 0], full_0, b_up)
                elif layer < LAYERS - 1:
                    tma.async_copy_global_to_shared(d_qkv, [then_row + D, 0], full_0, b_0)
                b_up_bias = b_bias.index(chunk).load(gl.SliceLayout(0, layout)).to(gl.float32)
                b_u = gl.convert_layout(silu(b_u + gl.expand_dims(b_up_bias, 0)).to(dtype), operand)
                await_block(slot_1, chunk)
                b_first, b_second = halves(b_1)
                b_m0 = warpgroup_mma(b_u, b_first, b_m0, is_async=True)
                b_m1 = warpgroup_mma(b_u, b_second, b_m1, is_async=True)
                b_m0, b_m1, b_u = warpgroup_mma_wait(0, deps=(b_m0, b_m1, b_u))
                barrier()
                if chunk < CHUNKS - 1:
                    tma.async_copy_global_to_shared(d_down, [now * D, (chunk + 1) * HALF], full_1, b_1)
                elif layer < LAYERS - 1:
                    tma.async_copy_global_to_shared(d_qkv, [then_row + D, HALF], full_1, b_1)
            o_x = tile_offsets(layout)
            b_x0 = gl.load(p_residual + o_x)
            b_x1 = gl.load(p_residual + HALF + o_x)
            b_x0 += vector(b_modulation, 5, 0, layout) * (b_m0 + vector(b_vectors, 7, 0, layout))
            b_x1 += vector(b_modulation, 5, 1, layout) * (b_m1 + vector(b_vectors, 7, 1, layout))
            gl.store(p_residual + o_x, b_x0)
            gl.store(p_residual + HALF + o_x, b_x1)

        if layer < LAYERS - 1:
            o_row = tile_rows(layout)
            m_there = stream0 + o_row < length
            m_x = gl.expand_dims(m_there, 1)
            m_rotary = m_there & (is_context == 0)
            b_cos = angles_like(b_x0, p_cos, start + stream0 + o_row, m_rotary, 1.0)
            b_sin = angles_like(b_x0, p_sin, start + stream0 + o_row, m_rotary, 0.0)
            b_h0, b_h1 = norm(b_x0, b_x1, b_modulation, 6, dtype, layout, NORM_EPS)
            b_h0, b_h1 = gl.convert_layout(b_h0, operand), gl.convert_layout(b_h1, operand)
            for step in gl.static_range(3):
                part = (step + 1) % 3  # k, v, q
                await_block(slot_0, step)
                b_first, b_second = halves(b_0)
                b_y0 = warpgroup_mma(b_h0, b_first, b_none, use_acc=False, is_async=True)
                b_y1 = warpgroup_mma(b_h0, b_second, b_none, use_acc=False, is_async=True)
                await_block(slot_1, step)
                b_first, b_second = halves(b_1)
                b_y0 = warpgroup_mma(b_h1, b_first, b_y0, is_async=True)
                b_y1 = warpgroup_mma(b_h1, b_second, b_y1, is_async=True)
                b_y0, b_y1, b_h0, b_h1 = warpgroup_mma_wait(0, deps=(b_y0, b_y1, b_h0, b_h1))
                if step > 0:
                    tma.store_wait(0)
                barrier()
                if step < 2:
                    following = then_row + (part + 1) % 3 * D
                    tma.async_copy_global_to_shared(d_qkv, [following, 0], full_0, b_0)
                    tma.async_copy_global_to_shared(d_qkv, [following, HALF], full_1, b_1)
                b_y0 += vector(b_vectors, part, 0, layout)
                b_y1 += vector(b_vectors, part, 1, layout)
                if part < 2:
                    b_factor = gl.rsqrt(row_mean(b_y0 * b_y0, b_y1 * b_y1) + RMS_EPS)
                    b_factor = gl.where(m_x, b_factor * SCALE if part == 0 else b_factor, 0.0)
                    b_y0 = rotate(b_y0 * b_factor * vector(b_vectors, 3 + part, 0, layout), b_cos, b_sin, PAIRS, layout)
                    b_y1 = rotate(b_y1 * b_factor * vector(b_vectors, 3 + part, 1, layout), b_cos, b_sin, PAIRS, layout)
                else:
                    b_y0, b_y1 = gl.where(m_x, b_y0, 0.0), gl.where(m_x, b_y1, 0.0)
                if step == 0:
                    await_count(p_count, TILES * (2 * layer + 2))  # the others have read the keys before these
                keep_heads(b_heads, 0, b_y0.to(dtype))
                keep_heads(b_heads, 4, b_y1.to(dtype))
                fence_async_shared()
                barrier()
                if step < 2:
                    tma.async_copy_shared_to_global(d_keys_tile, [step * B * HEADS + heads0, row0, 0], b_all)
            stores_done()
            barrier()
            arrive(p_count)
    o_row = tile_rows(layout)
    m_x = gl.expand_dims(stream0 + o_row < length, 1)
    o_x = tile_offsets(layout)
    gl.store(p_to + o_x, gl.load(p_residual + o_x).to(dtype), mask=m_x)
    gl.store(p_to + HALF + o_x, gl.load(p_residual + HALF + o_x).to(dtype), mask=m_x)
