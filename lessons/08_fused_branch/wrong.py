"""Wrong answers to lesson 08, and what the tests say of each."""

from lessons.kit.wrong import Wrong

WRONG = (
    Wrong(
        "W in the place of its transpose",
        old="p_weight + o_d * D + o_k[:, None]",
        new="p_weight + o_k[:, None] * D + o_d",
        fails="08-fused-branch-finish-test",
        says="W is (out, in)",
    ),
    Wrong(
        "each step's products replace the last's",
        old='b_sum = tl.dot(b_o, b_w, b_sum, input_precision="ieee")',
        new='b_sum = tl.dot(b_o, b_w, input_precision="ieee")',
        fails="08-fused-branch-finish-test",
        says="the second step's products are added",
    ),
    Wrong(
        "the last step goes past D",
        old="""mask=(o_l < L) & (o_k < D)[None, :], other=0.0)
        b_w = tl.load(p_weight + o_d * D + o_k[:, None], mask=(o_d < D) & (o_k < D)[:, None], other=0.0)""",
        new="""mask=(o_l < L) & (o_k >= 0)[None, :], other=0.0)
        b_w = tl.load(p_weight + o_d * D + o_k[:, None], mask=(o_d < D) & (o_k >= 0)[:, None], other=0.0)""",
        fails="08-fused-branch-finish-test",
        says="past D are 0 in the last step",
    ),
    Wrong(
        "the mean square over the tile's width",
        old="b_sum *= tl.rsqrt(tl.sum(b_sum * b_sum, 1, keep_dims=True) / D + EPS)",
        new="b_sum *= tl.rsqrt(tl.sum(b_sum * b_sum, 1, keep_dims=True) / BLOCK_D + EPS)",
        fails="08-fused-branch-finish-test",
        says="the mean square is over D, not BLOCK_D",
    ),
    Wrong(
        "eps outside the root",
        old="b_sum *= tl.rsqrt(tl.sum(b_sum * b_sum, 1, keep_dims=True) / D + EPS)",
        new="b_sum /= tl.sqrt(tl.sum(b_sum * b_sum, 1, keep_dims=True) / D) + EPS",
        fails="08-fused-branch-finish-test",
        says="eps is added to the mean square",
    ),
    Wrong(
        "bias after the norm",
        old="""b_sum += tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_sum *= tl.rsqrt(tl.sum(b_sum * b_sum, 1, keep_dims=True) / D + EPS)""",
        new="""b_sum *= tl.rsqrt(tl.sum(b_sum * b_sum, 1, keep_dims=True) / D + EPS)
    b_sum += tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)""",
        fails="08-fused-branch-finish-test",
        says="bias comes before the norm",
    ),
    Wrong(
        "the first sample's gate for all",
        old="b_sum *= tl.load(p_gate + batch * D + o_d",
        new="b_sum *= tl.load(p_gate + o_d",
        fails="08-fused-branch-finish-test",
        says="a sample has a gate of its own",
    ),
    Wrong(
        "a gated residual",
        old="""b_sum *= tl.load(p_gate + batch * D + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_sum += tl.load(p_residual + o_x, mask=m_x, other=0.0).to(tl.float32)""",
        new="""b_sum += tl.load(p_residual + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_sum *= tl.load(p_gate + batch * D + o_d, mask=m_d, other=0.0).to(tl.float32)""",
        fails="08-fused-branch-finish-test",
        says="the residual itself is not gated",
    ),
    Wrong(
        "the MLP's second bias once a block of features",
        old='b_w2, b_sum, input_precision="ieee")\n    b_sum +=',
        new='b_w2, b_sum, input_precision="ieee")\n        b_sum +=',
        fails="08-fused-branch-mlp-test",
        says="b2 once, not in each block of features",
    ),
    Wrong(
        "a sigmoid for a SiLU",
        old="b_u *= tl.sigmoid(b_u)",
        new="b_u = tl.sigmoid(b_u)",
        fails="08-fused-branch-mlp-test",
        says="u * sigmoid(u)",
    ),
    Wrong(
        "the normed x as the residual",
        old="b_x += b_sum * tl.load(p_gate",
        new="b_x = b_h + b_sum * tl.load(p_gate",
        fails="08-fused-branch-mlp-test",
        says="x as it came, not normed",
    ),
)
