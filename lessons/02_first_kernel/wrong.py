"""Mistakes that learners make in this lesson, each with the cell that must catch it and what the message must say."""

from lessons.kit.wrong import Wrong

WRONG = (
    Wrong(
        "on paper: all programs take the first block",
        old="offsets = program * block + torch.arange(0, block)",
        new="offsets = torch.arange(0, block)",
        fails="02-first-paper-test",
        says="programs are a block apart",
    ),
    Wrong(
        "on paper: one lane too many",
        old="return offsets, offsets < n",
        new="return offsets, offsets <= n",
        fails="02-first-paper-test",
        says="below n, not up to n",
    ),
    Wrong(
        "add: a store without its mask",
        old="tl.store(p_out + offsets, b_x + b_y, mask=mask)",
        new="tl.store(p_out + offsets, b_x + b_y)",
        fails="02-first-add-test",
        says="mask= of the store",
    ),
    Wrong(
        "add: all programs take the first block",
        old="offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)",
        new="offsets = tl.arange(0, BLOCK)",
        fails="02-first-add-test",
        says="each program has a block of its own",
    ),
    Wrong(
        "add: the grid rounded down",
        old="(triton.cdiv(x.numel(), block),)",
        new="(max(1, x.numel() // block),)",
        fails="02-first-add-test",
        says="round up, not down",
    ),
    Wrong(
        "v2: a store without its mask",
        old="b_residual + b_gate * b_branch, mask=m_d)",
        new="b_residual + b_gate * b_branch)",
        fails="02-first-gate-test",
        says="mask= of the store",
    ),
    Wrong(
        "v2: the first sample's gate for all",
        old="tl.load(p_gate + batch * gate_batch + o_d",
        new="tl.load(p_gate + o_d",
        fails="02-first-gate-test",
        says="the gate goes by batch alone",
    ),
    Wrong(
        "v2: the residual's strides for the branch",
        old="*branch.stride()[:2], gate.stride(0))",
        new="*residual.stride()[:2], gate.stride(0))",
        fails="02-first-gate-test",
        says="strides of its own",
    ),
    Wrong(
        "v2: a gate taken for contiguous",
        old="*branch.stride()[:2], gate.stride(0))",
        new="*branch.stride()[:2], dim)",
        fails="02-first-gate-test",
        says="strides of its own",
    ),
)
