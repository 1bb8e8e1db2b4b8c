"""What the persistent kernel's steps share: its geometry, its blocks of shared memory, its counts between programs."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier

from mmdit.ops.stack_rows.kernel_hopper_halves import HALF
from mmdit.ops.stack_rows.kernel_hopper_parts import BLOCK_BYTES, PLAIN, D

HEADS = gl.constexpr(8)
HEAD_DIM = gl.constexpr(16)
ROWS = gl.constexpr(256)  # of a sample
PLAIN_2D = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
NARROW = gl.NVMMASharedLayout(32, 16, 2)  # of a matrix (rows, 16)
NARROWS = gl.NVMMASharedLayout(32, 16, 3)  # of some of them
SWIZZLEDS = gl.NVMMASharedLayout(128, 16, 3)


@gluon.jit
def await_count(p_counter, count):
    """Wait, in the first warp, which is the one that copies by TMA, until `count` programs have called arrive."""
    gl.inline_asm_elementwise(
        "{ .reg .pred done; .reg .u32 seen; mov.u32 seen, %tid.x; setp.ge.u32 done, seen, 32; @done bra over;"
        " again: ld.relaxed.gpu.global.u32 seen, [$1]; setp.lt.u32 done, seen, $2; @done bra again;"
        " ld.acquire.gpu.global.u32 seen, [$1]; fence.proxy.async.global; over: mov.u32 $0, seen; }",
        "=r,l,r",
        [p_counter, count],
        gl.int32,
        False,
        1,
    )


@gluon.jit
def arrive(p_counter):
    """Count this program, once for all its threads, which must have met at a barrier before."""
    gl.inline_asm_elementwise(
        "{ .reg .pred first; .reg .u32 id; mov.u32 id, %tid.x; setp.eq.u32 first, id, 0;"
        " fence.proxy.async.global; @first red.release.gpu.global.add.u32 [$1], 1; mov.u32 $0, id; }",
        "=r,l",
        [p_counter],
        gl.int32,
        False,
        1,
    )


@gluon.jit
def stores_done():
    """Wait until what this thread stored by TMA is in global memory, not only read from shared memory."""
    gl.inline_asm_elementwise("cp.async.bulk.wait_group 0; mov.u32 $0, 0;", "=r", [], gl.int32, False, 1)


@gluon.jit
def await_block(slot, use):
    """Wait for the `use`th block of a slot (block, its mbarrier), and make it ready to count the bytes of the next."""
    mbarrier.wait(slot[1], use & 1)
    mbarrier.expect(slot[1], BLOCK_BYTES)


@gluon.jit
def fetch(b_modulation, b_vectors, b_bias, p_modulation, p_vectors, now, then):
    """Start the copy of a step's vectors to shared memory, of layer rows `now` and `then` (layer * STREAMS + stream).

    Rows of b_modulation (8, 128): scale, shift and gate of the attention, of the MLP, then scale and shift of the next
    layer's attention; of b_vectors (8, 128): biases of Wq, Wk, Wv, norms of q and k of the next layer, then bias of Wo,
    norm of its output, bias of W2; b_bias (F / 64, 64) is W1's.
    """
    FORWARD: gl.constexpr = b_bias.shape[0] * HALF
    fours: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [4, 1], [1, 0])
    eights: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    o_index = gl.expand_dims(gl.arange(0, 8, layout=gl.SliceLayout(1, fours)), 1)
    o_d = gl.expand_dims(gl.arange(0, D, layout=gl.SliceLayout(0, fours)), 0)
    o_modulation = gl.where(o_index < 6, now * 6 + o_index, then * 6 + o_index - 6) * D + o_d
    b_modulation = b_modulation._reinterpret(gl.float32, [8, D], PLAIN_2D)
    async_copy.async_copy_global_to_shared(b_modulation, p_modulation + o_modulation)
    o_index = gl.expand_dims(gl.arange(0, 8, layout=gl.SliceLayout(1, eights)), 1)
    o_d = gl.expand_dims(gl.arange(0, D, layout=gl.SliceLayout(0, eights)), 0)
    o_vectors = gl.where(o_index < 5, then, now) * (8 * D + FORWARD) + o_index * D + o_d
    b_vectors = b_vectors._reinterpret(b_vectors.dtype, [8, D], PLAIN_2D)
    async_copy.async_copy_global_to_shared(b_vectors, p_vectors + o_vectors)
    o_f = gl.arange(0, FORWARD, layout=gl.BlockedLayout([8], [32], [4], [0]))
    b_bias = b_bias._reinterpret(b_bias.dtype, [FORWARD], PLAIN)
    async_copy.async_copy_global_to_shared(b_bias, p_vectors + now * (8 * D + FORWARD) + 8 * D + o_f)
    async_copy.commit_group()
