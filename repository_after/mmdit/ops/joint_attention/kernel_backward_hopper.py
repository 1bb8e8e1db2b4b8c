"""The backward of joint attention for Hopper, where all keys of a head fit one program. The legend is kernel.py's."""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from mmdit.ops.joint_attention.kernel_backward import LN_2
from mmdit.ops.stack_persistent.kernel_parts import HEAD_DIM, NARROW
from mmdit.ops.stack_rows.kernel_hopper_parts import SWIZZLED, TILE, barrier, grid_launch, grid_wait

UNIT = gl.constexpr(1024.0)  # of the first of three parts, for fp16 to hold them
FAR = gl.constexpr(-30000.0)  # times UNIT, an exponent of 2 below all others: gives 0


@gluon.jit
def _tiles(b_rows):
    """Rows (rows, 16) in shared memory, as tiles of 64."""
    ROWS: gl.constexpr = b_rows.shape[0]
    b_shared = gl.allocate_shared_memory(b_rows.dtype, [ROWS, HEAD_DIM], NARROW, b_rows)
    return b_shared._reinterpret(b_rows.dtype, [ROWS // TILE, TILE, HEAD_DIM], NARROW)


@gluon.jit
def _columns(b_x, last: gl.constexpr, o_d, dtype: gl.constexpr):
    """(rows, 16) in 16 bits: UNIT times column 0, plus columns 1 and 2, is x (rows,) fp32; column 3 is `last`."""
    b_x = gl.expand_dims(b_x, 1)
    b_high = (b_x / UNIT).to(dtype).to(gl.float32)
    b_left = b_x - UNIT * b_high
    b_middle = b_left.to(dtype).to(gl.float32)
    b_columns = gl.where(o_d == 0, b_high, gl.where(o_d == 1, b_middle, gl.where(o_d == 2, b_left - b_middle, 0.0)))
    return gl.where(o_d == 3, last, b_columns).to(dtype)


@gluon.jit
def _store(p_to, b_x, row, tile, R):
    """Rows of a head from x (64, 16) fp32, those of its `tile`th 64."""
    layout: gl.constexpr = b_x.type.layout
    o_row = tile * TILE + gl.expand_dims(gl.arange(0, TILE, layout=gl.SliceLayout(1, layout)), 1)
    o_d = gl.expand_dims(gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, layout)), 0)
    gl.store(p_to + o_row * row + o_d, b_x.to(p_to.dtype.element_ty), mask=o_row < R)


@gluon.jit(do_not_specialize=["L", "C", "x_rows", "R"])
def attention_backward_hopper_kernel(
    p_grad, p_out, p_q, p_k, p_v, p_lse, p_gradients,  # as in attention_backward_kernel, heads of 16, in 16 bits
    grad_batch, grad_row, out_batch, out_row,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, gradient_stride,
    L, C, x_rows, R,
    H: gl.constexpr, SCALE: gl.constexpr, ROWS: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """What attention_backward_kernel computes, for R up to ROWS, 128 or 256, and without masks.

    Grid: (B * H,), of four warps.

    Scores are held by key and query, 64 x 64 at a time. -lse, -delta and what hides padding are columns beside q and
    d_out, against units beside k and v: out of the tensor cores come the exponents, and what the weights are multiplied
    with. In three parts each, as 16 bits do not hold them.
    """
    BLOCKS: gl.constexpr = ROWS // TILE  # even, for the buffers to alternate from tile to tile
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    narrow: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    loaded: gl.constexpr = gl.BlockedLayout([1, 16], [32, 1], [4, 1], [1, 0])
    dtype: gl.constexpr = p_q.dtype.element_ty
    head = gl.program_id(0) % H
    batch = (gl.program_id(0) // H).to(gl.int64)
    o_row = gl.arange(0, ROWS, layout=gl.SliceLayout(1, loaded))
    m_row = (o_row < L) | ((o_row >= x_rows) & (o_row < x_rows + C))
    o_d = gl.expand_dims(gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, loaded)), 0)
    o_rows, m_rows = gl.expand_dims(o_row, 1), gl.expand_dims(m_row, 1)
    if PDL:
        grid_wait()
        grid_launch()
    b_q = gl.load(p_q + batch * q_batch + head * q_head + o_rows * q_row + o_d, mask=m_rows, other=0.0)
    b_k = gl.load(p_k + batch * k_batch + head * k_head + o_rows * k_row + o_d, mask=m_rows, other=0.0)
    b_grad = gl.load(p_grad + batch * grad_batch + head * HEAD_DIM + o_rows * grad_row + o_d, mask=m_rows, other=0.0)
    b_out = gl.load(p_out + batch * out_batch + head * HEAD_DIM + o_rows * out_row + o_d, mask=m_rows, other=0.0)
    b_v = gl.load(p_v + batch * v_batch + head * v_head + o_rows * v_row + o_d, mask=m_rows, other=0.0)
    b_lse = gl.load(p_lse + (batch * H + head) * R + o_row, mask=m_row, other=float("inf"))
    b_delta = gl.sum(b_grad.to(gl.float32) * b_out.to(gl.float32), axis=1)
    s_q, s_k, s_grad, s_v = _tiles(b_q), _tiles(b_k), _tiles(b_grad), _tiles(b_v)
    s_lse = _tiles(_columns(gl.maximum(-b_lse / SCALE, UNIT * FAR), FAR, o_d, dtype))
    s_delta = _tiles(_columns(-b_delta, 0.0, o_d, dtype))
    b_units = gl.where((o_d == 0) | ((o_d == 3) & (m_rows == 0)), UNIT, gl.where((o_d == 1) | (o_d == 2), 1.0, 0.0))
    s_units = _tiles(b_units.to(dtype))
    s_even = gl.allocate_shared_memory(dtype, [TILE, TILE], SWIZZLED)
    s_odd = gl.allocate_shared_memory(dtype, [TILE, TILE], SWIZZLED)
    fence_async_shared()
    barrier()

    p_gradients += batch * R * H * HEAD_DIM + head * HEAD_DIM
    b_none = gl.zeros([TILE, TILE], gl.float32, wide)
    b_zero = gl.zeros([TILE, HEAD_DIM], gl.float32, narrow)
    all_dq = ()
    for _ in gl.static_range(BLOCKS):
        all_dq += (b_zero,)
    for block in tl.range(gl.cdiv(R, TILE), disable_licm=True):  # nothing hoisted, so nothing spilled
        b_dk, b_dv, more_dq = b_zero, b_zero, ()
        for tile in gl.static_range(BLOCKS):
            s_scores = s_even if tile % 2 == 0 else s_odd
            s_right = s_lse.index(tile).permute((1, 0))
            b_logits = warpgroup_mma(s_units.index(block), s_right, b_none, use_acc=False, is_async=True)
            b_logits = warpgroup_mma(s_k.index(block), s_q.index(tile).permute((1, 0)), b_logits, is_async=True)
            s_right = s_delta.index(tile).permute((1, 0))
            b_products = warpgroup_mma(s_units.index(block), s_right, b_none, use_acc=False, is_async=True)
            b_products = warpgroup_mma(s_v.index(block), s_grad.index(tile).permute((1, 0)), b_products, is_async=True)
            b_logits = warpgroup_mma_wait(2, deps=(b_logits,))
            b_weights = gl.exp2(b_logits * SCALE)
            b_left = gl.convert_layout(b_weights.to(dtype), gl.DotOperandLayout(0, narrow, 2))
            b_dv = warpgroup_mma(b_left, s_grad.index(tile), b_dv, use_acc=tile > 0, is_async=True)
            b_products, b_dv, b_left = warpgroup_mma_wait(0, deps=(b_products, b_dv, b_left))
            b_scores = (b_weights * b_products).to(dtype)
            s_scores.store(b_scores)  # the buffer of the tile before is still read by slower warps
            b_right = gl.convert_layout(b_scores, gl.DotOperandLayout(0, narrow, 2))
            fence_async_shared()
            barrier()
            b_dk = warpgroup_mma(b_right, s_q.index(tile), b_dk, use_acc=tile > 0, is_async=True)
            b_dq = warpgroup_mma(s_scores.permute((1, 0)), s_k.index(block), all_dq[tile], is_async=True)
            b_dk, b_dq, b_right = warpgroup_mma_wait(0, deps=(b_dk, b_dq, b_right))
            more_dq += (b_dq,)
        all_dq = more_dq
        _store(p_gradients + gradient_stride, b_dk * (SCALE * LN_2), H * HEAD_DIM, block, R)
        _store(p_gradients + 2 * gradient_stride, b_dv, H * HEAD_DIM, block, R)
    for tile in gl.static_range(BLOCKS):
        _store(p_gradients, all_dq[tile] * (SCALE * LN_2), H * HEAD_DIM, tile, R)
