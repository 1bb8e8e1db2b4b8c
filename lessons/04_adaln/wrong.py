"""Mistakes that learners make in this lesson, each with the cell that must catch it and what the message must say."""

from lessons.kit.wrong import Wrong

WRONG = (
    Wrong(
        "v1 leaves masked lanes at minus the mean",
        old="tl.where(m_d, b_x - tl.sum(b_x, 0) / D, 0.0)",
        new="b_x - tl.sum(b_x, 0) / D",
        fails="04-adaln-row-test",
        says="masked lanes must be zero again",
    ),
    Wrong(
        "v1 scales by scale",
        old="b_normed * (1.0 + b_scale) + b_shift",
        new="b_normed * b_scale + b_shift",
        fails="04-adaln-row-test",
        says="1 + scale, not scale",
    ),
    Wrong(
        "v1 gives all samples the first one's modulation",
        old="    batch = row // L\n",
        new="    batch = row * 0\n",
        fails="04-adaln-row-test",
        says="each sample takes its own row of scale and shift",
    ),
    Wrong(
        "v1's variance in one pass",
        old="b_normed = b_x * tl.rsqrt(tl.sum(b_x * b_x, 0) / D + EPS)",
        new="b_y = tl.load(p_x + row * D + o_d, mask=m_d, other=0.0)\n"
        "    b_mean = tl.sum(b_y, 0) / D\n"
        "    b_normed = b_x * tl.rsqrt(tl.sum(b_y * b_y, 0) / D - b_mean * b_mean + EPS)",
        fails="04-adaln-row-test",
        says="cancels",
    ),
    Wrong(
        "v1's eps outside the root",
        old="tl.rsqrt(tl.sum(b_x * b_x, 0) / D + EPS)",
        new="(1 / (tl.sqrt(tl.sum(b_x * b_x, 0) / D) + EPS))",
        fails="04-adaln-row-test",
        says="eps is added inside the root",
    ),
    Wrong(
        "v2 writes the next sample's rows",
        old="m_x = (o_l < L) & m_d",
        new="m_x = (o_l >= 0) & m_d",
        fails="04-adaln-tile-test",
        says="o_l < L",
    ),
    Wrong(
        "v2 writes all samples into the first",
        old="tl.store(p_out + (batch * L + o_l) * D + o_d",
        new="tl.store(p_out + o_l * D + o_d",
        fails="04-adaln-tile-test",
        says="a tile holds rows of one sample",
    ),
    Wrong(
        "v2's grid counts tiles of all rows together",
        old="grid = (batch * triton.cdiv(length, rows),)",
        new="grid = (triton.cdiv(batch * length, rows),)",
        fails="04-adaln-tile-test",
        says="tiles for *each* sample",
    ),
    Wrong(
        "v2 centres RMSNorm too",
        old="return norm_adaln(x, scale, shift, weight, eps, False)",
        new="return norm_adaln(x, scale, shift, weight, eps, True)",
        fails="04-adaln-tile-test",
        says="no mean where CENTER is False",
    ),
    Wrong(
        "v2 weighs the shift",
        old="    b_out = b_normed * b_gain + b_shift",
        new="    if p_weight is not None:\n"
        "        b_shift *= tl.load(p_weight + o_d, mask=m_d, other=0.0)\n"
        "    b_out = b_normed * b_gain + b_shift",
        fails="04-adaln-tile-test",
        says="the weight scales the norm, not the shift",
    ),
    Wrong(
        "v2 takes scale for contiguous",
        old="scale.stride(0), shift.stride(0))",
        new="dim, shift.stride(0))",
        fails="04-adaln-tile-test",
        says="strides of its own",
    ),
)
