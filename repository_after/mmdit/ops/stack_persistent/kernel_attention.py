"""Attention of the persistent kernel: a tile of queries over all keys of its sample."""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from mmdit.ops.stack_persistent.kernel_parts import HEAD_DIM, NARROW, ROWS
from mmdit.ops.stack_rows.kernel_hopper_parts import TILE


@gluon.jit
def _exp2(b_x):
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [b_x], gl.float32, True, 1)


@gluon.jit
def _begin(b_q, b_k, wide: gl.constexpr):
    """Start q k^T of some keys (queries, keys)."""
    KEYS: gl.constexpr = b_k.shape[0]
    b_none = gl.zeros([TILE, KEYS], gl.float32, wide)
    return warpgroup_mma(b_q, b_k.permute((1, 0)), b_none, use_acc=False, is_async=True)


@gluon.jit
def _masked(b_logits, part, p_bits, lengths, SAFE: gl.constexpr, wide: gl.constexpr):
    """Logits of the `part`th of the keys, -inf where a bit of the masks says so, and if SAFE where padding is."""
    KEYS: gl.constexpr = b_logits.shape[1]
    o_key = gl.expand_dims(gl.arange(0, KEYS, layout=gl.SliceLayout(0, wide)), 0)
    if p_bits is not None:  # a word of bits for each query; KEYS is 32
        b_word = gl.expand_dims(gl.load(p_bits + part), 1)
        b_logits = gl.where((b_word >> o_key) & 1 != 0, b_logits, float("-inf"))
    elif SAFE:
        L, C, x_rows = lengths
        o_key += part * KEYS
        b_logits = gl.where((o_key < L) | ((o_key >= x_rows) & (o_key < x_rows + C)), b_logits, float("-inf"))
    return b_logits


@gluon.jit
def _operand(b_weights, dtype: gl.constexpr, narrow: gl.constexpr):
    return gl.convert_layout(b_weights.to(dtype), gl.DotOperandLayout(0, narrow, 2))


@gluon.jit
def _fast(b_q, b_keys, p_bits, wide: gl.constexpr, narrow: gl.constexpr):
    """Sums over all keys of exp2(q k^T) v (queries, 16) and of exp2(q k^T) (queries,), products running ahead."""
    PARTS: gl.constexpr = b_keys.shape[0] // 2
    KEYS: gl.constexpr = b_keys.shape[1]
    b_logits = warpgroup_mma_wait(0, deps=(_begin(b_q, b_keys.index(0), wide),))
    b_out = gl.zeros([TILE, HEAD_DIM], gl.float32, narrow)
    for part in gl.static_range(PARTS):
        if part + 1 < PARTS:
            b_next = _begin(b_q, b_keys.index(part + 1), wide)
        b_weights = _exp2(_masked(b_logits, part, p_bits, (0, 0, 0), False, wide))
        b_own = gl.sum(gl.reshape(b_weights, [TILE, KEYS // 8, 8]), axis=1)  # a thread's own
        if part == 0:
            b_sums = b_own
        else:
            b_sums += b_own
        b_weights = _operand(b_weights, b_keys.dtype, narrow)
        b_out = warpgroup_mma(b_weights, b_keys.index(PARTS + part), b_out, use_acc=part > 0, is_async=True)
        if part + 1 < PARTS:
            b_logits = warpgroup_mma_wait(1, deps=(b_next,))
    b_out, b_weights = warpgroup_mma_wait(0, deps=(b_out, b_weights))
    return b_out, gl.convert_layout(gl.sum(b_sums, axis=1), gl.SliceLayout(1, wide))


@gluon.jit
def _safe(b_q, b_keys, p_bits, lengths, wide: gl.constexpr, narrow: gl.constexpr):
    """Sums over all keys of exp2(q k^T - m) v (queries, 16) and of exp2(q k^T - m) (queries,), m the row's maximum."""
    PARTS: gl.constexpr = b_keys.shape[0] // 2
    per_row: gl.constexpr = gl.SliceLayout(1, wide)
    b_max = gl.full([TILE], float("-inf"), gl.float32, per_row)
    for part in tl.range(PARTS, disable_licm=True):
        b_logits = warpgroup_mma_wait(0, deps=(_begin(b_q, b_keys.index(part), wide),))
        b_logits = _masked(b_logits, part, p_bits, lengths, True, wide)
        b_max = gl.maximum(b_max, gl.max(b_logits, axis=1))
    b_max = gl.where(b_max == float("-inf"), 0.0, b_max)
    b_out = gl.zeros([TILE, HEAD_DIM], gl.float32, narrow)
    b_sum = gl.zeros([TILE], gl.float32, per_row)
    for part in tl.range(PARTS, disable_licm=True):
        b_logits = warpgroup_mma_wait(0, deps=(_begin(b_q, b_keys.index(part), wide),))
        b_weights = _exp2(_masked(b_logits, part, p_bits, lengths, True, wide) - gl.expand_dims(b_max, 1))
        b_sum += gl.sum(b_weights, axis=1)
        b_weights = _operand(b_weights, b_keys.dtype, narrow)
        b_out = warpgroup_mma(b_weights, b_keys.index(PARTS + part), b_out, is_async=True)
        b_out, b_weights = warpgroup_mma_wait(0, deps=(b_out, b_weights))
    return b_out, b_sum


@gluon.jit
def attend(b_q, b_block, lengths, p_bits, LARGEST: gl.constexpr, KEYS: gl.constexpr):
    """softmax2(q k^T) v (queries, 16) of a head's q (queries, 16), k and v being the halves of a block, of which
    KEYS rows are taken at a time.

    As in joint_attention_kernel, sums are first taken without a maximum, and where one of any row lies outside
    [1, LARGEST], or a weighted value is not finite, again with the row's maximum.
    """
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    narrow: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    per_row: gl.constexpr = gl.SliceLayout(1, wide)
    b_keys = b_block._reinterpret(b_block.dtype, [2 * (ROWS // KEYS), KEYS, HEAD_DIM], NARROW)
    b_out, b_sum = _fast(b_q, b_keys, p_bits, wide, narrow)
    if p_bits is None:
        b_sum -= ROWS - lengths[0] - lengths[1]
    b_most = gl.convert_layout(gl.max(gl.abs(b_out), axis=1), per_row)
    m_good = (b_sum >= 1.0) & (b_sum <= LARGEST) & (b_most < float("inf"))
    if gl.min(m_good.to(gl.int32), axis=0) == 0:
        b_out, b_sum = _safe(b_q, b_keys, p_bits, lengths, wide, narrow)
    b_sum = gl.convert_layout(gl.where(b_sum == 0.0, 1.0, b_sum), gl.SliceLayout(1, narrow))
    return (b_out / gl.expand_dims(b_sum, 1)).to(b_block.dtype)
