"""The kernels of joint attention.

B batch, L x length, C context length, H heads, Dh head dim. R rows: x, padding up to x_rows, the context, padding up
to R; padding is 0 in k and v. Pointers are p_*, block values b_*, offsets o_*, masks m_*.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _attend(
    b_q, p_k, p_v, p_bits, o_q, k_row, v_row, L, C, x_rows, R,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr, SAFE: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Sums over all keys of exp2(SCALE q k^T - m) v (BLOCK_Q, BLOCK_D) and of exp2(SCALE q k^T - m) (BLOCK_Q,), and m.

    m (BLOCK_Q,) is the running maximum if SAFE, else 0. Padding is zeros: unless it is masked away, each such key adds
    1 to the second sum, and that is taken off again.
    """
    o_d = tl.arange(0, BLOCK_D)
    b_max = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_Q,), tl.float32)
    b_out = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for start in tl.range(0, R, BLOCK_K, num_stages=STAGES):
        o_k = start + tl.arange(0, BLOCK_K)
        if EVEN:
            b_k = tl.load(p_k + o_k[:, None] * k_row + o_d[None, :])  # (BLOCK_K, BLOCK_D)
            b_v = tl.load(p_v + o_k[:, None] * v_row + o_d[None, :])
        else:
            m_k = (o_k < R)[:, None] & (o_d < HEAD_DIM)[None, :]
            b_k = tl.load(p_k + o_k[:, None] * k_row + o_d[None, :], mask=m_k, other=0.0)
            b_v = tl.load(p_v + o_k[:, None] * v_row + o_d[None, :], mask=m_k, other=0.0)
        b_logits = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # (BLOCK_Q, BLOCK_K)
        if SCALE != 1.0:
            b_logits *= SCALE
        if MASKED:  # a word of bits for each query; BLOCK_K is 32
            b_bits = tl.load(p_bits + start // 32, mask=o_q < R, other=-1)  # (BLOCK_Q,)
            b_logits = tl.where((b_bits[:, None] >> (o_k - start)[None, :]) & 1 != 0, b_logits, float("-inf"))
        elif SAFE:
            m_there = (o_k < L) | ((o_k >= x_rows) & (o_k < x_rows + C))
            b_logits = tl.where(m_there[None, :], b_logits, float("-inf"))
        if SAFE:
            b_new = tl.maximum(b_max, tl.max(b_logits, 1))
            b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
            b_decay = tl.exp2(b_max - b_shift)
            b_logits -= b_shift[:, None]
            b_sum *= b_decay
            b_out *= b_decay[:, None]
            b_max = b_new
        b_weights = tl.exp2(b_logits)
        b_sum += tl.sum(b_weights, 1)
        if b_v.dtype == tl.float32 and PRECISION == "ieee":
            # a sum of the blocks' sums: one over all keys loses 5 times as much at 4096 of them. Without the last
            # argument, which means nothing here, Triton would make it one again
            b_out += tl.dot(b_weights, b_v, input_precision=PRECISION, max_num_imprecise_acc=1)
        else:
            b_out = tl.dot(b_weights.to(b_v.dtype), b_v, b_out, input_precision=PRECISION)
    if not MASKED and not SAFE:
        b_sum -= tl.cdiv(R, BLOCK_K) * BLOCK_K - L - C
    return b_out, b_sum, b_max if SAFE else tl.zeros((BLOCK_Q,), tl.float32)


@triton.jit(do_not_specialize=["L", "C", "x_rows", "R"])
def joint_attention_kernel(
    p_q,  # (B, H, R, Dh), strides (q_batch, q_head, q_row, 1)
    p_k,  # (B, H, R, Dh), likewise
    p_v,  # (B, H, R, Dh), likewise
    p_bits,  # (B, R, cdiv(R, 32)) int32 as pack_mask_kernel makes them, or None
    p_out,  # (B, R, H, Dh), contiguous
    p_lse,  # (B, H, R) fp32, contiguous, or None
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    L, C, x_rows, R,
    H: tl.constexpr, HEAD_DIM: tl.constexpr, SCALE: tl.constexpr, LARGEST: tl.constexpr, PRECISION: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """out = softmax(q k^T / sqrt(Dh)) v under the joint mask; SCALE is log2(e) / sqrt(Dh), or 1 where q has that in it.

    lse = log2(sum of exp2(SCALE q k^T)), for backward; infinite where there is nothing to attend to.

    Grid: (B * H * cdiv(R, BLOCK_Q),), a tile of queries each. EVEN: BLOCK_K divides R, and BLOCK_D is Dh.

    The softmax is first summed without a running maximum. Where any row's sum then lies outside [1, LARGEST], or a
    weighted value is not finite, the tile is done again with one.
    """
    MASKED: tl.constexpr = p_bits is not None
    tiles = tl.cdiv(R, BLOCK_Q)
    head = tl.program_id(0) // tiles % H
    batch = (tl.program_id(0) // (tiles * H)).to(tl.int64)
    o_q = tl.program_id(0) % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    o_d = tl.arange(0, BLOCK_D)
    m_q = (o_q < R)[:, None] & (o_d < HEAD_DIM)[None, :]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    b_q = tl.load(p_q + batch * q_batch + head * q_head + o_q[:, None] * q_row + o_d[None, :], mask=m_q, other=0.0)
    p_k += batch * k_batch + head * k_head
    p_v += batch * v_batch + head * v_head
    if MASKED:
        p_bits += (batch * R + o_q) * tl.cdiv(R, 32)
    b_out, b_sum, b_max = _attend(
        b_q, p_k, p_v, p_bits, o_q, k_row, v_row, L, C, x_rows, R,
        SCALE, HEAD_DIM, MASKED, False, EVEN, PRECISION, BLOCK_Q, BLOCK_K, BLOCK_D, STAGES,
    )  # fmt: skip
    m_good = (b_sum >= 1.0) & (b_sum <= LARGEST) & (tl.max(tl.abs(b_out), 1) < float("inf"))
    if tl.min(m_good.to(tl.int32), 0) == 0:
        b_out, b_sum, b_max = _attend(
            b_q, p_k, p_v, p_bits, o_q, k_row, v_row, L, C, x_rows, R,
            SCALE, HEAD_DIM, MASKED, True, EVEN, PRECISION, BLOCK_Q, BLOCK_K, BLOCK_D, STAGES,
        )  # fmt: skip
    if p_lse is not None:
        b_lse = tl.where(b_sum == 0.0, float("inf"), b_max + tl.log2(b_sum))
        tl.store(p_lse + (batch * H + head) * R + o_q, b_lse, mask=o_q < R)
    b_out = b_out / tl.where(b_sum == 0.0, 1.0, b_sum)[:, None]  # nothing to attend to: 0
    o_out = ((batch * R + o_q[:, None]) * H + head) * HEAD_DIM + o_d[None, :]
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_q)


@triton.jit(do_not_specialize=["L", "C", "x_rows", "R"])
def pack_mask_kernel(
    p_mask,  # (B, L, L) uint8, contiguous
    p_seen,  # (B, L) uint8: does any x row see this x column
    p_bits,  # (B, R, cdiv(R, 32)) int32, contiguous
    L,
    C,
    x_rows,
    R,
    ROWS: tl.constexpr,
):
    """Bit k % 32 of bits[b, q, k // 32]: does row q see column k. An x row sees what the mask says, and the context if
    that is anything; a context row sees what any x row does, and the context; padding sees key 0, for its sum not to
    be 0.

    Grid: (B * cdiv(R, ROWS),), ROWS rows of one sample each.
    """
    tiles, words = tl.cdiv(R, ROWS), tl.cdiv(R, 32)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    o_q = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)[:, None]
    o_bit = tl.arange(0, 32)[None, :]
    m_x, m_c = o_q < L, (o_q >= x_rows) & (o_q < x_rows + C)
    p_mask += batch * L * L + o_q * L
    b_sees = tl.zeros((ROWS, 32), tl.int32)
    for start in range(0, L, 32):
        b_sees |= tl.load(p_mask + start + o_bit, mask=m_x & (start + o_bit < L), other=0).to(tl.int32)
    b_sees = (tl.max(b_sees, 1, keep_dims=True) != 0) | m_c  # (ROWS, 1)
    for word in range(words):
        o_k = word * 32 + o_bit
        b_own = tl.load(p_mask + o_k, mask=m_x & (o_k < L), other=0) != 0  # (ROWS, 32)
        b_seen = tl.load(p_seen + batch * L + o_k, mask=o_k < L, other=0) != 0  # (1, 32)
        b_visible = tl.where(o_k < L, b_own | (m_c & b_seen), b_sees & (o_k >= x_rows) & (o_k < x_rows + C))
        b_visible |= (o_k == 0) & (m_x == 0) & (m_c == 0)
        b_word = tl.sum(b_visible.to(tl.int32) << o_bit, 1, keep_dims=True)
        tl.store(p_bits + (batch * R + o_q) * words + word, b_word, mask=o_q < R)
