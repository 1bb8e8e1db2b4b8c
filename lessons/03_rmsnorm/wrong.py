"""Mistakes that learners make in this lesson, each with the cell that must catch it and what the message must say."""

from lessons.kit.wrong import Wrong

WRONG = (
    Wrong(
        "the oracle's eps outside the root",
        old="torch.sqrt(wide.square().mean(-1, keepdim=True) + eps)",
        new="(torch.sqrt(wide.square().mean(-1, keepdim=True)) + eps)",
        fails="03-rmsnorm-oracle-test",
        says="eps belongs inside the root",
    ),
    Wrong(
        "v1's eps outside the root",
        old="tl.rsqrt(tl.sum(b_x * b_x, 0) / D + EPS)",
        new="(1 / (tl.sqrt(tl.sum(b_x * b_x, 0) / D) + EPS))",
        fails="03-rmsnorm-row-test",
        says="eps is added inside the root",
    ),
    Wrong(
        "v1 loads without its mask",
        old="tl.load(p_x + row * x_row + o_d, mask=m_d, other=0.0)",
        new="tl.load(p_x + row * x_row + o_d)",
        fails="03-rmsnorm-row-test",
        says="the load of x has mask=m_d",
    ),
    Wrong(
        "v1's surplus lanes count",
        old="tl.load(p_x + row * x_row + o_d, mask=m_d, other=0.0)",
        new="tl.load(p_x + row * x_row + o_d, mask=m_d, other=1.0)",
        fails="03-rmsnorm-row-test",
        says="masked lanes load 0",
    ),
    Wrong(
        "v1 divides by the tile's width",
        old="tl.sum(b_x * b_x, 0) / D",
        new="tl.sum(b_x * b_x, 0) / BLOCK_D",
        fails="03-rmsnorm-row-test",
        says="divides by D = 48, not BLOCK_D",
    ),
    Wrong(
        "v1 squares in fp16",
        old="b_x = tl.load(p_x + row * x_row + o_d, mask=m_d, other=0.0).to(tl.float32)",
        new="b_x = tl.load(p_x + row * x_row + o_d, mask=m_d, other=0.0)",
        fails="03-rmsnorm-row-test",
        says="overflowed fp16",
    ),
    Wrong(
        "v1 stores without its mask",
        old="tl.store(p_out + row * D + o_d, b_out.to(p_out.dtype.element_ty), mask=m_d)",
        new="tl.store(p_out + row * D + o_d, b_out.to(p_out.dtype.element_ty))",
        fails="03-rmsnorm-row-test",
        says="writes past the last row",
    ),
    Wrong(
        "v2 forgets that the last tile may end early",
        old="m_x = (o_r < R) & m_d",
        new="m_x = (o_r >= 0) & m_d",
        fails="03-rmsnorm-tile-test",
        says="o_r < R",
    ),
    Wrong(
        "v2 adds up the tile, not its rows",
        old="tl.sum(b_x * b_x, 1, keep_dims=True)",
        new="tl.sum(tl.sum(b_x * b_x, 1), 0)",
        fails="03-rmsnorm-tile-test",
        says="each row has a sum of its own",
    ),
    Wrong(
        "v2 takes rows for contiguous",
        old="rmsnorm_kernel[grid](rows, weight, out, rows.stride(0), ",
        new="rmsnorm_kernel[grid](rows, weight, out, dim, ",
        fails="03-rmsnorm-tile-test",
        says="rows.stride(0)",
    ),
    Wrong(
        "v2's grid leaves the last rows out",
        old="grid = (triton.cdiv(rows.shape[0], tile),)",
        new="grid = (max(1, rows.shape[0] // tile),)",
        fails="03-rmsnorm-tile-test",
        says="the grid covers all of them",
    ),
)
