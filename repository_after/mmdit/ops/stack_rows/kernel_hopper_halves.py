"""What the Hopper kernels of four warps share: rows of D = 128 columns in registers, as two halves (rows, 64) fp32."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from mmdit.ops.stack_rows.kernel_hopper_parts import D, barrier

HALF = gl.constexpr(64)  # of D; rows of a tile; features of the MLP at a time


@gluon.jit
def halves(b_block):
    """The upper and the lower 64 rows of a block of weights, transposed."""
    return b_block.slice(0, HALF, 0).permute((1, 0)), b_block.slice(HALF, HALF, 0).permute((1, 0))


@gluon.jit
def vector(b_from, index, side: gl.constexpr, layout: gl.constexpr):
    """Half of row `index` as fp32 (1, 64)."""
    row = b_from.index(index).slice(side * HALF, HALF, 0)
    return gl.expand_dims(row.load(gl.SliceLayout(0, layout)).to(gl.float32), 0)


@gluon.jit
def row_mean(b_0, b_1):
    """(rows, 1)."""
    return gl.expand_dims(gl.sum(b_0 + b_1, axis=1), 1) * (1.0 / D)


@gluon.jit
def norm(b_0, b_1, b_modulation, index, dtype: gl.constexpr, layout: gl.constexpr, EPS: gl.constexpr):
    """LayerNorm(rows) (1 + scale) + shift, these being rows `index` and `index` + 1 of b_modulation, in dtype."""
    b_mean = row_mean(b_0, b_1)
    b_0 -= b_mean
    b_1 -= b_mean
    b_factor = gl.rsqrt(row_mean(b_0 * b_0, b_1 * b_1) + EPS)
    b_0 = b_0 * b_factor * (1.0 + vector(b_modulation, index, 0, layout)) + vector(b_modulation, index + 1, 0, layout)
    b_1 = b_1 * b_factor * (1.0 + vector(b_modulation, index, 1, layout)) + vector(b_modulation, index + 1, 1, layout)
    return b_0.to(dtype), b_1.to(dtype)


@gluon.jit
def keep(b_to, b_0, b_1):
    """Store two halves to shared memory, for wgmma or TMA to read."""
    b_to.index(0).store(b_0)
    b_to.index(1).store(b_1)
    fence_async_shared()
    barrier()
