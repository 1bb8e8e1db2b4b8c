"""What the Hopper kernels of a stack's rows share, for tiles of 64 rows at D = 128, in 16 bits."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy

barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # its name in Triton 3.6, and from 3.7 on
D = gl.constexpr(128)
TILE = gl.constexpr(64)
BLOCK_BYTES = gl.constexpr(128 * 64 * 2)  # of weights, (128, 64) or (64, 128)
SWIZZLED = gl.NVMMASharedLayout(128, 16, 2)
PLAIN = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def grid_wait():
    gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], gl.int32, False, 1)


@gluon.jit
def grid_launch():
    gl.inline_asm_elementwise("griddepcontrol.launch_dependents; // $0", "=r", [], gl.int32, False, 1)


@gluon.jit
def choose(is_context, tile, x_tiles, L, C, for_x, for_c):
    """(the stream's part of two tuples, its first row of the tile, its length, and how many of its rows rotate)."""
    if is_context:
        chosen, first, length, rotated = for_c, (tile - x_tiles) * TILE, C, 0
    else:
        chosen, first, length, rotated = for_x, tile * TILE, L, L
    return chosen, first, length, rotated


@gluon.jit
def _fetch(b_to, index: gl.constexpr, p_from, ROWS: gl.constexpr):
    """Start the copy of ROWS rows of b_to (rows, size), from `index` on."""
    EACH: gl.constexpr = 128 // p_from.dtype.element_ty.primitive_bitwidth
    SIZE: gl.constexpr = b_to.shape[1]
    o = gl.arange(0, SIZE, layout=gl.BlockedLayout([EACH], [32], [gl.num_warps()], [0]))
    for row in gl.static_range(ROWS):
        async_copy.async_copy_global_to_shared(b_to.index(index + row), p_from + row * SIZE + o)


@gluon.jit
def fetch_vectors(
    b_modulation, b_vectors, b_bias, p_modulation, vectors, NEXT: gl.constexpr, LAST: gl.constexpr
):  # fmt: skip
    """Start the copy of a tile's vectors to shared memory. Rows of b_modulation (8, 128): scale, shift and gate of the
    attention, of the MLP, then scale and shift of the next layer's attention, NEXT elements on. Rows of b_vectors
    (8, 128): biases of Wo, norm of its output, bias of W2, biases of Wq, Wk, Wv, norms of q and k.
    """
    p_out_bias, p_out_norm, p_up_bias, p_down_bias, p_bias, p_qnorm, p_knorm = vectors
    _fetch(b_modulation, 0, p_modulation, 6)
    _fetch(b_vectors, 0, p_out_bias, 1)
    _fetch(b_vectors, 1, p_out_norm, 1)
    _fetch(b_vectors, 2, p_down_bias, 1)
    _fetch(b_bias, 0, p_up_bias, b_bias.shape[0])
    if not LAST:
        _fetch(b_modulation, 6, p_modulation + NEXT, 2)
        _fetch(b_vectors, 3, p_bias, 3)
        _fetch(b_vectors, 6, p_qnorm, 1)
        _fetch(b_vectors, 7, p_knorm, 1)
    async_copy.commit_group()


@gluon.jit
def silu(b_x):
    """By the hardware's own tanh, of relative error 5e-4."""
    b_half = 0.5 * b_x
    b_tanh = gl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [b_half], gl.float32, True, 1)
    return b_half + b_half * b_tanh


@gluon.jit
def angles(p_table, position, stream0, length, other, PAIRS: gl.constexpr):
    """A tile's rows of a rotary table, (64, Dh / 2); `other` from `length` on."""
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [4, 8], [gl.num_warps(), 1], [1, 0])
    o_row = gl.arange(0, TILE, layout=gl.SliceLayout(1, layout))
    o_angle = gl.expand_dims(position + o_row, 1) * PAIRS
    o_angle += gl.expand_dims(gl.arange(0, PAIRS, layout=gl.SliceLayout(0, layout)), 0)
    return gl.load(p_table + o_angle, mask=gl.expand_dims(stream0 + o_row < length, 1), other=other)


@gluon.jit
def rotate(b_y, b_cos, b_sin, PAIRS: gl.constexpr, layout: gl.constexpr):
    """Rotate the pairs (2 i, 2 i + 1) of each head of y (rows, columns): neighbours in a thread's registers."""
    M: gl.constexpr = b_y.shape[0]
    COLUMNS: gl.constexpr = b_y.shape[1]
    b_even, b_odd = gl.split(gl.reshape(b_y, [M, COLUMNS // (2 * PAIRS), PAIRS, 2]))
    b_cos = gl.expand_dims(gl.convert_layout(b_cos, gl.SliceLayout(1, b_even.type.layout)), 1)
    b_sin = gl.expand_dims(gl.convert_layout(b_sin, gl.SliceLayout(1, b_even.type.layout)), 1)
    b_y = gl.join(b_even * b_cos - b_odd * b_sin, b_even * b_sin + b_odd * b_cos)
    return gl.convert_layout(gl.reshape(b_y, [M, COLUMNS]), layout)
