"""Wrong answers to lesson 07, and what the tests say of each."""

from lessons.kit.wrong import Wrong

WRONG = (
    Wrong(
        "rows that see and columns that are seen, exchanged",
        old="sees = mask.any(2, keepdim=True).expand(-1, -1, context_length)",
        new="sees = mask.any(1).unsqueeze(2).expand(-1, -1, context_length)",
        fails="07-joint-attention-mask-test",
        says="any over the keys of each row",
    ),
    Wrong(
        "the context sees only itself, not the others of it",
        old="own = mask.new_ones(len(mask), context_length, context_length)",
        new="own = torch.eye(context_length, dtype=torch.bool).expand(len(mask), -1, -1)",
        fails="07-joint-attention-mask-test",
        says="the context sees all of the context",
    ),
    Wrong(
        "the first stream's sum does not decay",
        old="b_sum = b_sum * b_decay + tl.sum",
        new="b_sum = b_sum + tl.sum",
        fails="07-joint-attention-absorb-test",
        says="m, l and o decay together",
    ),
    Wrong(
        "keys past the end of a stream",
        old="m_seen = m_row & (tl.trans(o_k) < length)",
        new="m_seen = m_row & (tl.trans(o_k) >= 0)",
        fails="07-joint-attention-absorb-test",
        says="keys at or past `length` are not seen",
    ),
    Wrong(
        "values at the keys' strides",
        old="b_out, p_k, p_v, k_l, v_l, L, m_x, p_row",
        new="b_out, p_k, p_v, k_l, k_l, L, m_x, p_row",
        fails="07-joint-attention-kernel-test",
        says="each of the six tensors has three strides of its own",
    ),
    Wrong(
        "a softmax for each stream, added",
        old="p_k, p_v = p_ck + batch * ck_b + h * ck_h, p_cv + batch * cv_b + h * cv_h",
        new="p_k, p_v = p_ck + batch * ck_b + h * ck_h, p_cv + batch * cv_b + h * cv_h; "
        "b_out, b_sum = b_out / b_sum, 1.0",
        fails="07-joint-attention-kernel-test",
        says="one division at the end",
    ),
    Wrong(
        "the context's last key is left out",
        old="ck_l, cv_l, C, m_c, None",
        new="ck_l, cv_l, C - 1, m_c, None",
        fails="07-joint-attention-kernel-test",
        says="x's keys, then the context's",
    ),
    Wrong(
        "a blind row sees the context",
        old="m_c &= tl.load(p_sees + batch * L + o_q, mask=(o_q < L) & (is_context == 0), other=1) != 0",
        new="m_c &= o_q >= 0",
        fails="07-joint-attention-kernel-test",
        says="a row of x that sees nothing sees no context either",
    ),
    Wrong(
        "the context sees columns that nobody sees",
        old="masks = [t.contiguous().view(torch.uint8) for t in (mask, mask.any(2), mask.any(1))]",
        new="masks = [t.contiguous().view(torch.uint8) for t in (mask, mask.any(2), mask.any(1) | True)]",
        fails="07-joint-attention-kernel-test",
        says="those columns of x that some row of x sees",
    ),
)
