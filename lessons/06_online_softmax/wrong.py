"""Wrong answers to lesson 06, and what the tests say of each."""

from lessons.kit.wrong import Wrong

WRONG = (
    Wrong(
        "powers of 2 for powers of e",
        old="scale = 1.4426950408889634 / Dh**0.5  # log2(e) / sqrt(Dh)",
        new="scale = Dh**-0.5",
        fails="06-online-softmax-tile-test",
        says="exp2 needs log2(e)",
    ),
    Wrong(
        "padded keys have a logit of 0",
        old='b_z = tl.where(tl.trans(o_k) < L, b_z, float("-inf"))',
        new="b_z = b_z * 1.0",
        fails="06-online-softmax-tile-test",
        says="11 of 32 keys are padding",
    ),
    Wrong(
        "no maximum is subtracted",
        old="b_w = tl.exp2(b_z - tl.max(b_z, 1, keep_dims=True))",
        new="b_w = tl.exp2(b_z)",
        fails="06-online-softmax-tile-test",
        says="subtract the row's maximum",
    ),
    Wrong(
        "merged values without their factors",
        old="a[2] * decay_a + b[2] * decay_b",
        new="a[2] + b[2]",
        fails="06-online-softmax-merge-test",
        says="o is scaled as l is",
    ),
    Wrong(
        "minus infinity from minus infinity in a merge",
        old="shift = torch.where(maximum == -torch.inf, 0.0, maximum)",
        new="shift = maximum",
        fails="06-online-softmax-merge-test",
        says="-inf - (-inf) is NaN",
    ),
    Wrong(
        "the sum does not decay",
        old="b_sum = b_sum * b_decay + tl.sum",
        new="b_sum = b_sum + tl.sum",
        fails="06-online-softmax-attention-test",
        says="b_sum and b_out decay by one and the same factor",
    ),
    Wrong(
        "nothing decays",
        old="b_decay = tl.exp2(b_max - b_shift)",
        new='b_decay = tl.where(b_max == float("-inf"), 0.0, 1.0)',
        fails="06-online-softmax-attention-test",
        says="what was summed before decays",
    ),
    Wrong(
        "the mask turned over",
        old="tl.load(p_mask + row * L + tl.trans(o_k), mask=m_seen",
        new="tl.load(p_mask + (row - o_q + tl.trans(o_k)) * L + o_q, mask=m_seen",
        fails="06-online-softmax-attention-test",
        says="mask[batch, query, key]",
    ),
    Wrong(
        "minus infinity from minus infinity in the loop",
        old='b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)',
        new="b_shift = b_new",
        fails="06-online-softmax-attention-test",
        says="a row that sees nothing yet",
    ),
    Wrong(
        "an empty row divides by its sum",
        old="b_out /= tl.where(b_sum == 0.0, 1.0, b_sum)",
        new="b_out /= b_sum",
        fails="06-online-softmax-attention-test",
        says="at the end, 0 / 0",
    ),
)
