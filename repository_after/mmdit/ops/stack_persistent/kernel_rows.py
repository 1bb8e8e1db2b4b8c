"""A tile's rows in the persistent kernel: where they are, their angles, and their heads in shared memory."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mmdit.ops.stack_persistent.kernel_parts import HEAD_DIM
from mmdit.ops.stack_rows.kernel_hopper_halves import HALF
from mmdit.ops.stack_rows.kernel_hopper_parts import D

PAIRS = gl.constexpr(8)  # of a head


@gluon.jit
def keep_heads(b_heads, first: gl.constexpr, b_half):
    """Store half of the columns (rows, 64) as four heads (rows, 16) to shared memory, from head `first` on."""
    M: gl.constexpr = b_half.shape[0]
    b_low, b_high = gl.split(gl.permute(gl.reshape(b_half, [M, 2, 32]), (0, 2, 1)))
    b_0, b_1 = gl.split(gl.permute(gl.reshape(b_low, [M, 2, HEAD_DIM]), (0, 2, 1)))
    b_2, b_3 = gl.split(gl.permute(gl.reshape(b_high, [M, 2, HEAD_DIM]), (0, 2, 1)))
    b_heads.index(first).store(b_0)
    b_heads.index(first + 1).store(b_1)
    b_heads.index(first + 2).store(b_2)
    b_heads.index(first + 3).store(b_3)


@gluon.jit
def angles_like(b_like, p_table, o_position, m_rotary, other):
    """A tile's rows of a rotary table, (rows, 8), laid out as rotate wants them for b_like (rows, 64)."""
    b_even, _ = gl.split(gl.reshape(b_like, [b_like.shape[0], HALF // HEAD_DIM, PAIRS, 2]))
    layout: gl.constexpr = gl.SliceLayout(1, b_even.type.layout)
    per_row: gl.constexpr = gl.SliceLayout(1, layout)
    o_pair = gl.expand_dims(gl.arange(0, PAIRS, layout=gl.SliceLayout(0, layout)), 0)
    o_position = gl.expand_dims(gl.convert_layout(o_position, per_row), 1)
    m_rotary = gl.expand_dims(gl.convert_layout(m_rotary.to(gl.int32), per_row), 1) != 0
    return gl.load(p_table + o_position * PAIRS + o_pair, mask=m_rotary & (o_pair < PAIRS), other=other)


@gluon.jit
def tile_rows(layout: gl.constexpr):
    """A tile's rows (64,), computed anew at each call: the compiler would keep what follows from them in registers."""
    zero = gl.inline_asm_elementwise("mov.u32 $0, 0;", "=r", [], gl.int32, False, 1)
    return gl.arange(0, HALF, layout=gl.SliceLayout(1, layout)) + zero


@gluon.jit
def tile_offsets(layout: gl.constexpr):
    """Of a tile's first 64 columns (64, 64), where rows are contiguous."""
    o_d = gl.expand_dims(gl.arange(0, HALF, layout=gl.SliceLayout(0, layout)), 0)
    return gl.expand_dims(tile_rows(layout) * D, 1) + o_d
