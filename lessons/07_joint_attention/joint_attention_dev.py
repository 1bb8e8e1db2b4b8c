# %% [markdown]
# # 07 · Joint attention: two streams, one softmax, no copy
#
# ## Objectives
# After this lesson you can
# - say who sees whom when an image attends to itself and its caption, under a mask that was made for the image alone;
# - split a kernel into functions, which cost nothing: `@triton.jit` functions that a kernel calls are compiled into it;
# - read two streams from where they lie, instead of from a concatenated copy;
# - grow a mask by addresses: by reading (B, L) bytes where a (B, S, S) tensor would have been built.

# %%
from lessons.kit import DEVICE, check, launches, peak_bytes, poisoned, registers, roofline, seconds

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

# %% [markdown]
# ## Foundations
# An MMDiT block (Esser et al., 2024) has two streams, x of L rows and a context of C. Each has weights of its own for
# its queries, keys and values; then every row attends to the keys of both, S = L + C, in *one* softmax: one maximum,
# one sum. Softmax per stream and adding the two would give each stream the same say, however little it has to say.
#
# A mask comes for x alone, (B, L, L), True where a query may attend to a key. It grows to (B, S, S) by three rules:
#
# ```text
#                keys of x (L)            keys of the context (C)
#            +------------------------+-------------------------------+
#  queries   | mask[q, k]             | any(mask[q, :])               |
#  of x (L)  |   as given             |   a row that sees anything    |
#            |                        |   sees all of the context     |
#            +------------------------+-------------------------------+
#  of the    | any(mask[:, k])        | True                          |
#  context   |   a column that anyone |   the context sees itself     |
#  (C)       |   sees, it sees        |                               |
#            +------------------------+-------------------------------+
#   a row of x that sees nothing (padding, mostly) stays blind and gives 0
# ```
#
# Concatenating q, k and v first, as the vanilla module does, reads and writes all of them once more, for nothing: what
# lesson 06 summed over tiles of keys does not mind whether the next tile comes from the same tensor.
#
# ## Implementation
# ### v1: the mask, grown
# In PyTorch. It is what the kernel will be compared with, and also what it replaces.


# %% nbgrader={"grade": false, "grade_id": "07-joint-attention-mask", "locked": false, "schema_version": 3, "solution": true, "task": false}
def joint_mask(mask: Tensor, context_length: int) -> Tensor:
    """(B, L, L) bool over x -> (B, S, S), x first."""
    ### BEGIN SOLUTION
    sees = mask.any(2, keepdim=True).expand(-1, -1, context_length)  # (B, L, C)
    seen = mask.any(1, keepdim=True).expand(-1, context_length, -1)  # (B, C, L)
    own = mask.new_ones(len(mask), context_length, context_length)
    return torch.cat([torch.cat([mask, sees], 2), torch.cat([seen, own], 2)], 1)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "07-joint-attention-mask-test", "locked": true, "points": 20, "schema_version": 3, "solution": false, "task": false}
mask = torch.tensor([[[1, 0, 0], [0, 0, 0], [1, 1, 0]]], dtype=torch.bool)  # row 1 sees nothing, nobody sees column 2
grown = joint_mask(mask, 2)
check("x to x", grown[:, :3, :3].int(), mask.int(), hint="x comes first, and its own mask stays as it is")
sees = torch.tensor([[[1, 1], [0, 0], [1, 1]]], dtype=torch.int32)
check("x to context", grown[:, :3, 3:].int(), sees, hint="any over the keys of each row: a blind row stays blind")
seen = torch.tensor([[[1, 1, 0], [1, 1, 0]]], dtype=torch.int32)
check("context to x", grown[:, 3:, :3].int(), seen, hint="any over the queries: columns that some row of x sees")
check(
    "context to context", grown[:, 3:, 3:].int(), torch.ones(1, 2, 2).int(), hint="the context sees all of the context"
)

# %% [markdown]
# ### v2: a stream of keys, absorbed into a state
# Lesson 06's loop as a function of its own, to be called once a stream. It takes the state and returns it; it neither
# begins it nor divides. What a row may see comes in two forms: `m_row` (BLOCK_Q, 1), a yes or no for all of the stream,
# and `p_row`, for each row the address of its first byte of a mask, or None. Branches on None are settled at
# compilation.


# %% nbgrader={"grade": false, "grade_id": "07-joint-attention-absorb", "locked": false, "schema_version": 3, "solution": true, "task": false}
@triton.jit
def absorb(
    b_q, b_max, b_sum, b_out, p_k, p_v, k_row, v_row, length, m_row, p_row,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The state (b_max, b_sum, b_out) after the keys and values (length, Dh) of a stream, rows k_row, v_row apart."""
    ### BEGIN SOLUTION
    o_d = tl.arange(0, b_q.shape[1])[None, :]
    for start in range(0, length, BLOCK_K):
        o_k = start + tl.arange(0, BLOCK_K)[:, None]
        m_k = (o_k < length) & (o_d < HEAD_DIM)
        b_k = tl.load(p_k + o_k * k_row + o_d, mask=m_k, other=0.0)  # (BLOCK_K, BLOCK_D)
        b_v = tl.load(p_v + o_k * v_row + o_d, mask=m_k, other=0.0)
        m_seen = m_row & (tl.trans(o_k) < length)  # (BLOCK_Q, BLOCK_K)
        if p_row is not None:
            m_seen &= tl.load(p_row + tl.trans(o_k), mask=m_seen, other=0) != 0
        b_logits = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * SCALE
        b_logits = tl.where(m_seen, b_logits, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_logits, 1, keep_dims=True))
        b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_decay = tl.exp2(b_max - b_shift)
        b_weights = tl.exp2(b_logits - b_shift)
        b_sum = b_sum * b_decay + tl.sum(b_weights, 1, keep_dims=True)
        b_out = b_out * b_decay + tl.dot(b_weights.to(b_v.dtype), b_v, input_precision="ieee")
        b_max = b_new
    return b_max, b_sum, b_out
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "07-joint-attention-absorb-test", "locked": true, "points": 30, "schema_version": 3, "solution": false, "task": false}
@triton.jit
def absorb_test_kernel(p_q, p_k, p_v, p_mask, p_out, k_row, FIRST, ALL, D: tl.constexpr):
    """16 queries to FIRST keys (the last of them to none), then to ALL - FIRST more; out has the sum in column D."""
    o, o_d = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    b_q = tl.load(p_q + o * D + o_d, mask=o_d < D, other=0.0)
    b_max, b_sum = tl.full((16, 1), float("-inf"), tl.float32), tl.zeros((16, 1), tl.float32)
    b_out, p_row = tl.zeros((16, 16), tl.float32), p_mask + o * FIRST
    b_max, b_sum, b_out = absorb(b_q, b_max, b_sum, b_out, p_k, p_v, k_row, D, FIRST, o < 15, p_row, 1.0, D, 16)
    p_k, p_v = p_k + FIRST * k_row, p_v + FIRST * D
    b_max, b_sum, b_out = absorb(b_q, b_max, b_sum, b_out, p_k, p_v, k_row, D, ALL - FIRST, o >= 0, None, 1.0, D, 16)
    tl.store(p_out + o * (D + 1) + o_d, b_out / b_sum, mask=o_d < D)
    tl.store(p_out + o * (D + 1) + D, b_max + tl.log2(b_sum))


torch.manual_seed(7)
for first, last, name in ((16, 32, "whole tiles"), (21, 27, "cut tiles")):
    q, k, v = (torch.randn(n, 12, device=DEVICE) for n in (16, last, last))
    mask, out = torch.rand(16, first, device=DEVICE) < 0.5, torch.empty(16, 13, device=DEVICE)
    logits = q.double() @ k.double().T
    logits[:, :first].masked_fill_(~mask | (torch.arange(16, device=DEVICE) == 15)[:, None], -torch.inf)
    logits *= 0.6931471805599453  # powers of 2
    truth, lse = logits.softmax(-1) @ v.double(), logits.logsumexp(-1) / 0.6931471805599453
    bytes_of_mask, apart = mask.view(torch.uint8), poisoned(k, 4)
    absorb_test_kernel[(1,)](q, apart, v, bytes_of_mask, out, apart.stride(0), first, last, 12)
    hint = "one state through both streams (m, l and o decay together); keys at or past `length` are not seen"
    check(f"out, {name}", out[:, :12], truth.float(), hint=hint)
    check(f"log2 of the sum, {name}", out[:, 12], lse.float(), hint="b_sum is of all keys seen, by the last maximum")

# %% [markdown]
# ### Production: tiles of both streams in one launch
# The grid has the tiles of x's queries, then those of the context's; a program picks its stream by its number, with
# `tl.where` between two addresses. Its queries absorb x's keys, then the context's. By the rules above, x's rows need
# `mask[q, :]` for x's keys and one byte for all of the context; the context's need the (L,) bytes `any(mask[:, k])`,
# the same for each of them: a row of addresses without q in it. Nothing of size S * S exists.


# %% nbgrader={"grade": false, "grade_id": "07-joint-attention-kernel", "locked": false, "schema_version": 3, "solution": true, "task": false}
@triton.jit(do_not_specialize=["L", "C"])
def joint_attention_kernel(
    p_q, p_k, p_v, p_cq, p_ck, p_cv,  # (B, H, L, Dh) of x and (B, H, C, Dh) of the context; strides as named, last 1
    p_mask, p_sees, p_seen,  # (B, L, L), (B, L), (B, L) uint8, or None
    p_out, p_cout,  # (B, L, H, Dh), (B, C, H, Dh)
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, cq_b, cq_h, cq_l, ck_b, ck_h, ck_l, cv_b, cv_h, cv_l, L, C,
    SCALE: tl.constexpr, H: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """softmax2(SCALE q k^T) v over the keys of both. Grid: (cdiv(L, BLOCK_Q) + cdiv(C, BLOCK_Q), B * H)."""
    ### BEGIN SOLUTION
    batch, h = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    x_tiles = tl.cdiv(L, BLOCK_Q)
    is_context = tl.program_id(0) >= x_tiles
    rows = tl.where(is_context, C, L)
    o_q = (tl.program_id(0) - tl.where(is_context, x_tiles, 0)) * BLOCK_Q + tl.arange(0, BLOCK_Q)[:, None]
    o_d = tl.arange(0, BLOCK_D)[None, :]
    m_q = (o_q < rows) & (o_d < HEAD_DIM)
    p_from = tl.where(is_context, p_cq + batch * cq_b + h * cq_h, p_q + batch * q_b + h * q_h)
    b_q = tl.load(p_from + o_q * tl.where(is_context, cq_l, q_l) + o_d, mask=m_q, other=0.0)
    m_x, m_c, p_row = o_q < rows, o_q < rows, None
    if p_mask is not None:
        m_c &= tl.load(p_sees + batch * L + o_q, mask=(o_q < L) & (is_context == 0), other=1) != 0
        p_row = tl.where(is_context, p_seen + batch * L + 0 * o_q, p_mask + (batch * L + o_q) * L)
    b_max = tl.full((BLOCK_Q, 1), float("-inf"), tl.float32)
    b_sum, b_out = tl.zeros((BLOCK_Q, 1), tl.float32), tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    p_k, p_v = p_k + batch * k_b + h * k_h, p_v + batch * v_b + h * v_h
    b_max, b_sum, b_out = absorb(b_q, b_max, b_sum, b_out, p_k, p_v, k_l, v_l, L, m_x, p_row, SCALE, HEAD_DIM, BLOCK_K)
    p_k, p_v = p_ck + batch * ck_b + h * ck_h, p_cv + batch * cv_b + h * cv_h
    b_max, b_sum, b_out = absorb(b_q, b_max, b_sum, b_out, p_k, p_v, ck_l, cv_l, C, m_c, None, SCALE, HEAD_DIM, BLOCK_K)
    b_out /= tl.where(b_sum == 0.0, 1.0, b_sum)
    p_to = tl.where(is_context, p_cout, p_out) + (batch * rows * H + h) * HEAD_DIM
    tl.store(p_to + o_q * H * HEAD_DIM + o_d, b_out.to(p_out.dtype.element_ty), mask=m_q)
    ### END SOLUTION


def joint_attention(
    query: Tensor, key: Tensor, value: Tensor, context_query: Tensor, context_key: Tensor, context_value: Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention of x (B, H, L, Dh) and a context (B, H, C, Dh), any strides, to both; mask (B, L, L) bool or None.

    Returns (B, H, L, Dh) and (B, H, C, Dh), views of (B, L, H, Dh) and (B, C, H, Dh): heads join without a copy.
    """
    ### BEGIN SOLUTION
    tensors = (query, key, value, context_query, context_key, context_value)
    tensors = [t if t.stride(-1) == 1 else t.contiguous() for t in tensors]
    (B, H, L, Dh), C = query.shape, context_query.shape[2]
    masks = (None, None, None)
    if mask is not None:
        masks = [t.contiguous().view(torch.uint8) for t in (mask, mask.any(2), mask.any(1))]
    outs = [query.new_empty(B, rows, H, Dh) for rows in (L, C)]
    strides = [stride for t in tensors for stride in t.stride()[:3]]
    sizes = (1.4426950408889634 / Dh**0.5, H, Dh, 64, 32, max(16, triton.next_power_of_2(Dh)))
    grid = (triton.cdiv(L, 64) + triton.cdiv(C, 64), B * H)
    joint_attention_kernel[grid](*tensors, *masks, *outs, *strides, L, C, *sizes)
    return outs[0].transpose(1, 2), outs[1].transpose(1, 2)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "07-joint-attention-kernel-test", "locked": true, "points": 50, "schema_version": 3, "solution": false, "task": false}
def by_copy(q: Tensor, k: Tensor, v: Tensor, cq: Tensor, ck: Tensor, cv: Tensor, mask: Tensor | None = None):
    q, k, v = (torch.cat(pair, 2) for pair in ((q, cq), (k, ck), (v, cv)))
    grown = None if mask is None else joint_mask(mask, cq.shape[2])[:, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=grown)
    return out.nan_to_num().split([q.shape[2] - cq.shape[2], cq.shape[2]], 2)


def compare(label: str, tensors: list[Tensor], mask: Tensor | None, hint: str, tolerance: float = 1e-5) -> None:
    wanted = by_copy(*[t.double() for t in tensors], mask)
    for name, got, truth in zip(("x", "context"), joint_attention(*tensors, mask), wanted, strict=True):
        check(f"{label}: {name}", got, truth.to(got.dtype), tolerance=tolerance, hint=hint)


def streams(L: int, C: int) -> list[Tensor]:
    return [torch.randn(2, 3, n, 12, device=DEVICE) for n in (L, L, L, C, C, C)]


tensors = streams(70, 21)
compare("no mask", tensors, None, "x's keys, then the context's, one division at the end; tiles of C begin after L's")
apart = [poisoned(t, n) for n, t in enumerate(tensors, 4)]
compare("strides", apart, None, "each of the six tensors has three strides of its own")
tensors[4][:, :, -1] *= 30
compare("needle in the last key", tensors, None, "the context's last key decides here: are all of its C keys seen?")
tensors[4][:, :, -1] /= 30
mask = torch.rand(2, 70, 70, device=DEVICE) < 0.3
compare("random mask", tensors, mask, "mask[batch, query, key] for x's keys; x's rows see all of the context")
mask[0, 5], mask[1, 66:] = False, False
compare("blind rows", tensors, mask, "a row of x that sees nothing sees no context either, and gives 0, not NaN")
mask[0, :, 3], mask[1, :, 40:] = False, False
compare("unseen columns", tensors, mask, "the context sees only those columns of x that some row of x sees")
### BEGIN HIDDEN TESTS
compare("64 and 64", streams(64, 64), None, "sizes that the tile divides")
compare(
    "context longer than x", streams(3, 65), torch.eye(3, device=DEVICE).bool().expand(2, 3, 3), "two tiles of context"
)
compare("fp16", [t.half() for t in streams(20, 33)], None, "state in fp32", 2e-3)
### END HIDDEN TESTS

# %% [markdown]
# ## Systems analysis
# Two streams could waste a tile: each ends in one of its own. At the target sizes they happen not to.
# ```text
#    rows     0        64       128      192     250
#    joined   |--------|--------|--------|-------|        4 tiles of 64
#    x        |--------|--------|------..|                3, 186 of 192 used
#    context                             |-------|        1, 64 of 64 used
# ```

# %%
tensors = [torch.randn(1, 3, n, 16, device=DEVICE) for n in (124, 124, 124, 43, 43, 43)]
mask = torch.rand(1, 124, 124, device=DEVICE) < 0.3
for name, call in (("copy", by_copy), ("streams", joint_attention)):
    held = [peak_bytes(call, *tensors, *more) / tensors[0].nbytes for more in ((), (mask,))]
    print(f"{name:8} holds {held[0]:.2f} tensors of q's size, {held[1]:.2f} with a mask")
time = seconds(joint_attention, *tensors)
print(launches(joint_attention, *tensors), f"{time * 1e6:.1f} us" if time else "")
B, L, C, D = 128, 186, 64, 128
moved = {"q, k, v, out": 4 * B * (L + C) * D * 2, "copies of q, k, v": 6 * B * (L + C) * D * 2}
moved |= {"a grown mask, written": B * (L + C) ** 2, "bytes read for it here": B * (L * L + 2 * L)}
for name, size in moved.items():
    print(f"{name:25} {size / 1e6:5.1f} MB, {roofline(size, 0)['bytes']:5.2f} us at the least")
kinds = {f"{name}_{axis}": "i32" for name in ("q", "k", "v", "cq", "ck", "cv") for axis in "bhl"} | {
    "L": "i32",
    "C": "i32",
}
kinds |= {f"p_{name}": "*bf16" for name in ("q", "k", "v", "cq", "ck", "cv", "out", "cout")}
masks, sizes = (
    ("p_mask", "p_sees", "p_seen"),
    {"SCALE": 0.3, "H": 8, "HEAD_DIM": 16, "BLOCK_Q": 64, "BLOCK_K": 32, "BLOCK_D": 16},
)
print("no mask:", registers(joint_attention_kernel, kinds, sizes | dict.fromkeys(masks)))
print("a mask: ", registers(joint_attention_kernel, kinds | dict.fromkeys(masks, "*u8"), sizes))

# %% [markdown]
# ## Production context
# - `repository_after/mmdit/ops/joint_attention/kernel.py::joint_attention_kernel` takes both streams as rows of one
#   buffer, x padded up to a tile and then the context: the kernel that makes q, k and v
#   (`repository_after/mmdit/ops/stack_rows/kernel.py::qkv_kernel`) writes them there at once. Padding is zeros, so each
#   padded key adds exactly 1 to a sum without maximum, and is taken off at the end: no mask at all in the loop.
# - `repository_after/mmdit/ops/joint_attention/kernel.py::pack_mask_kernel` does the three rules, to bits, once for all
#   layers; `repository_after/mmdit/ops/joint_attention/reference.py::joint_mask` is your v1.
#
# ## Thinking questions
# 1. (Change a line, run, explain.) Swap the two calls of `absorb`. What changes in the errors that are printed?
# 2. Set BLOCK_Q to 128 in `joint_attention` and in the diagram: how many of the rows computed are padding, at 186 + 64?
# 3. Give each stream its own state and add the two outputs. Which test fails first, and is any row still right?
#
# ## Summary
# - One softmax over two streams is one state that absorbs both; nothing has to lie side by side in memory.
# - A mask is a rule about addresses: rows and columns of it that are alike need be stored once.
# - Functions of Triton are inlined; None arguments and constexprs prune what is not used.
