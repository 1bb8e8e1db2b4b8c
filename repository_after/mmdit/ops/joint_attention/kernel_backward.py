"""The backward kernels of joint attention. The legend is kernel.py's."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load_rows(p_rows, o_row, row, m_row, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows o_row of one head (rows, BLOCK_D), 0 where m_row is not; m_row None: all."""
    o_d = tl.arange(0, BLOCK_D)
    p_rows += o_row[:, None] * row + o_d[None, :]
    if m_row is not None:
        b_rows = tl.load(p_rows, mask=m_row[:, None] & (o_d < HEAD_DIM)[None, :], other=0.0)
    elif BLOCK_D == HEAD_DIM:
        b_rows = tl.load(p_rows)
    else:
        b_rows = tl.load(p_rows, mask=(o_d < HEAD_DIM)[None, :], other=0.0)
    return b_rows


@triton.jit
def _load_delta(p_grad, p_out, o_row, grad_row, out_row, m_row, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """sum(d_out * out) of rows o_row (rows,): what each score's gradient is less."""
    b_grad = _load_rows(p_grad, o_row, grad_row, m_row, HEAD_DIM, BLOCK_D)
    b_out = _load_rows(p_out, o_row, out_row, m_row, HEAD_DIM, BLOCK_D)
    return tl.sum(b_grad.to(tl.float32) * b_out.to(tl.float32), 1)


@triton.jit
def _weights_and_gradients(
    b_logits, b_products, b_lse, b_delta, p_bits, o_q, o_k, R, SCALE: tl.constexpr, MASKED: tl.constexpr
):
    """The weights exp2(SCALE logits - lse), and the gradients of the scores, weights * (products - delta).

    o_q and o_k, the queries and keys, are spread over their axes of the scores, (1, BLOCK_Q) and (BLOCK_K, 1) or the
    other way round; so are lse and delta.
    """
    b_logits = b_logits * SCALE - b_lse
    if MASKED:
        b_bits = tl.load(p_bits + o_q * tl.cdiv(R, 32) + o_k // 32, mask=(o_q < R) & (o_k < R), other=0)
        b_logits = tl.where((b_bits >> (o_k % 32)) & 1 != 0, b_logits, float("-inf"))
    b_weights = tl.exp2(b_logits)
    return b_weights, b_weights * (b_products - b_delta)


@triton.jit(do_not_specialize=["L", "C", "x_rows", "R"])
def attention_backward_kernel(
    p_grad,  # (B, R, H, Dh), strides (grad_batch, grad_row, Dh, 1): the gradient of out
    p_out,  # (B, R, H, Dh), likewise
    p_q,  # (B, H, R, Dh), strides (q_batch, q_head, q_row, 1)
    p_k,  # (B, H, R, Dh), likewise
    p_v,  # (B, H, R, Dh), likewise
    p_lse,  # (B, H, R) fp32, contiguous
    p_delta,  # (B, H, R) fp32, contiguous: sum(d_out * out), written here if WHOLE
    p_bits,  # (B, R, cdiv(R, 32)) int32, or None
    p_gradients,  # (3, B, R, H, Dh): those of q, k and v, contiguous
    grad_batch, grad_row, out_batch, out_row,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, gradient_stride,
    L, C, x_rows, R,
    H: tl.constexpr, HEAD_DIM: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """d_v = P^T d_out, d_k = SCALE ln(2) dS^T q and, if WHOLE, d_q = SCALE ln(2) dS k, with P = exp2(SCALE q k^T - lse)
    and dS = P * (d_out v^T - delta); 0 in padding.

    Grid: (B * H * cdiv(R, BLOCK_K),), a tile of keys each; WHOLE: it holds all of them.

    Scores are held by key and query, transposed, so that only d_q's product has to turn them. Padding among the keys
    is read as the first row, whose weights never exceed 1; d_q takes it as 0.
    """
    MASKED: tl.constexpr = p_bits is not None
    tiles = tl.cdiv(R, BLOCK_K)
    head = tl.program_id(0) // tiles % H
    batch = (tl.program_id(0) // (tiles * H)).to(tl.int64)
    o_k = tl.program_id(0) % tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    o_d = tl.arange(0, BLOCK_D)
    m_k = (o_k < L) | ((o_k >= x_rows) & (o_k < x_rows + C))
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    p_grad += batch * grad_batch + head * HEAD_DIM
    p_out += batch * out_batch + head * HEAD_DIM
    p_q += batch * q_batch + head * q_head
    p_k += batch * k_batch + head * k_head
    p_v += batch * v_batch + head * v_head
    p_lse += (batch * H + head) * R
    p_delta += (batch * H + head) * R
    p_gradients += batch * R * H * HEAD_DIM + head * HEAD_DIM
    if MASKED:
        p_bits += batch * R * tl.cdiv(R, 32)
    if WHOLE:
        b_own = _load_delta(p_grad, p_out, o_k, grad_row, out_row, m_k, HEAD_DIM, BLOCK_D)
        tl.store(p_delta + o_k, b_own, mask=o_k < R)
        tl.debug_barrier()  # what one thread wrote, others read
    o_safe = tl.where(m_k, o_k, tl.where(L == 0, x_rows, 0))
    b_k = _load_rows(p_k, o_safe, k_row, None, HEAD_DIM, BLOCK_D)
    b_v = _load_rows(p_v, o_safe, v_row, None, HEAD_DIM, BLOCK_D)
    b_zeroed = tl.where(m_k[:, None], b_k, 0.0).to(b_k.dtype)
    b_dk = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    b_dv = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for start in tl.range(0, R, BLOCK_Q, num_stages=STAGES):
        o_q = start + tl.arange(0, BLOCK_Q)
        m_q = (o_q < L) | ((o_q >= x_rows) & (o_q < x_rows + C))
        b_q = _load_rows(p_q, o_q, q_row, m_q, HEAD_DIM, BLOCK_D)
        b_grad = _load_rows(p_grad, o_q, grad_row, m_q, HEAD_DIM, BLOCK_D)
        b_lse = tl.load(p_lse + o_q, mask=m_q, other=float("inf"))[None, :]
        b_delta = tl.load(p_delta + o_q, mask=m_q, other=0.0)[None, :]
        b_logits = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)  # (BLOCK_K, BLOCK_Q)
        b_products = tl.dot(b_v, tl.trans(b_grad), input_precision=PRECISION)
        b_weights, b_scores = _weights_and_gradients(
            b_logits, b_products, b_lse, b_delta, p_bits, o_q[None, :], o_k[:, None], R, SCALE, MASKED
        )
        b_dv = tl.dot(b_weights.to(b_grad.dtype), b_grad, b_dv, input_precision=PRECISION)
        b_scores = b_scores.to(b_q.dtype)
        b_dk = tl.dot(b_scores, b_q, b_dk, input_precision=PRECISION)
        if WHOLE:
            b_dq = tl.dot(tl.trans(b_zeroed), b_scores, input_precision=PRECISION) * (SCALE * LN_2)
            o_dq = o_q[None, :] * (H * HEAD_DIM) + o_d[:, None]  # (BLOCK_D, BLOCK_Q)
            m_dq = (o_q < R)[None, :] & (o_d < HEAD_DIM)[:, None]
            tl.store(p_gradients + o_dq, b_dq.to(p_gradients.dtype.element_ty), mask=m_dq)
    o_dk = o_k[:, None] * (H * HEAD_DIM) + o_d[None, :]
    m_dk = (o_k < R)[:, None] & (o_d < HEAD_DIM)[None, :]
    b_dk = tl.where(m_k[:, None], b_dk * (SCALE * LN_2), 0.0)
    b_dv = tl.where(m_k[:, None], b_dv, 0.0)
    tl.store(p_gradients + gradient_stride + o_dk, b_dk.to(p_gradients.dtype.element_ty), mask=m_dk)
    tl.store(p_gradients + 2 * gradient_stride + o_dk, b_dv.to(p_gradients.dtype.element_ty), mask=m_dk)


@triton.jit(do_not_specialize=["L", "C", "x_rows", "R"])
def attention_query_backward_kernel(
    p_grad, p_out, p_q, p_k, p_v, p_lse, p_delta, p_bits, p_gradients,  # as in attention_backward_kernel
    grad_batch, grad_row, out_batch, out_row,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, gradient_stride,
    L, C, x_rows, R,
    H: tl.constexpr, HEAD_DIM: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """d_q = SCALE ln(2) dS k, and delta, for keys that are more than a tile, before attention_backward_kernel runs.

    Grid: (B * H * cdiv(R, BLOCK_Q),), a tile of queries each.
    """
    MASKED: tl.constexpr = p_bits is not None
    tiles = tl.cdiv(R, BLOCK_Q)
    head = tl.program_id(0) // tiles % H
    batch = (tl.program_id(0) // (tiles * H)).to(tl.int64)
    o_q = tl.program_id(0) % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    o_d = tl.arange(0, BLOCK_D)
    m_q = (o_q < L) | ((o_q >= x_rows) & (o_q < x_rows + C))
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    p_grad += batch * grad_batch + head * HEAD_DIM
    p_out += batch * out_batch + head * HEAD_DIM
    p_q += batch * q_batch + head * q_head
    p_k += batch * k_batch + head * k_head
    p_v += batch * v_batch + head * v_head
    p_lse += (batch * H + head) * R
    p_delta += (batch * H + head) * R
    if MASKED:
        p_bits += batch * R * tl.cdiv(R, 32)
    b_delta = _load_delta(p_grad, p_out, o_q, grad_row, out_row, m_q, HEAD_DIM, BLOCK_D)
    tl.store(p_delta + o_q, b_delta, mask=o_q < R)
    b_q = _load_rows(p_q, o_q, q_row, m_q, HEAD_DIM, BLOCK_D)
    b_grad = _load_rows(p_grad, o_q, grad_row, m_q, HEAD_DIM, BLOCK_D)
    b_lse = tl.load(p_lse + o_q, mask=m_q, other=float("inf"))
    b_dq = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for start in tl.range(0, R, BLOCK_K, num_stages=STAGES):
        o_k = start + tl.arange(0, BLOCK_K)
        m_k = (o_k < L) | ((o_k >= x_rows) & (o_k < x_rows + C))
        o_safe = tl.where(m_k, o_k, tl.where(L == 0, x_rows, 0))
        b_k = _load_rows(p_k, o_safe, k_row, None, HEAD_DIM, BLOCK_D)
        b_v = _load_rows(p_v, o_safe, v_row, None, HEAD_DIM, BLOCK_D)
        b_logits = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # (BLOCK_Q, BLOCK_K)
        b_products = tl.dot(b_grad, tl.trans(b_v), input_precision=PRECISION)
        _, b_scores = _weights_and_gradients(
            b_logits, b_products, b_lse[:, None], b_delta[:, None], p_bits, o_q[:, None], o_k[None, :], R, SCALE, MASKED
        )
        b_zeroed = tl.where(m_k[:, None], b_k, 0.0).to(b_k.dtype)
        b_dq = tl.dot(b_scores.to(b_k.dtype), b_zeroed, b_dq, input_precision=PRECISION)
    o_dq = ((batch * R + o_q[:, None]) * H + head) * HEAD_DIM + o_d[None, :]
    m_dq = (o_q < R)[:, None] & (o_d < HEAD_DIM)[None, :]
    b_dq *= SCALE * LN_2
    tl.store(p_gradients + o_dq, b_dq.to(p_gradients.dtype.element_ty), mask=m_dq)
