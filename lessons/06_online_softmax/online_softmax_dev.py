# %% [markdown]
# # 06 · Online softmax: attention without its matrix
#
# ## Objectives
# After this lesson you can
# - multiply tiles on the tensor cores with `tl.dot`, and keep padding out of a softmax;
# - merge softmaxes over parts of a row into the softmax over all of it, exactly;
# - write attention whose memory grows with L and not with L * L, under a mask, with rows that may see nothing;
# - say what bounds it.

# %%
from lessons.kit import DEVICE, check, launches, peak_bytes, registers, roofline, seconds

from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

# %% [markdown]
# ## Foundations
# Attention of L queries to L keys, a head at a time: $z = q k^T/\sqrt{Dh}$ (L, L), $w = \text{softmax}(z)$, out
# $= w v$. As operators, $z$ and $w$ are written and read again, L numbers a row where q, k, v and out have Dh. A row of
# the softmax seems to need all its keys at once, for its maximum $m$ and its sum $l$:
#
# $$\text{out} = o / l, \qquad o = \sum_j e^{z_j - m}\, v_j, \qquad l = \sum_j e^{z_j - m}$$
#
# But $m$ cancels. Any number will do that keeps the exponentials in range. So take the keys in parts, each with a
# maximum of its own; sums made for $m_a$ become sums for $m$ by the factor $e^{m_a - m}$, and then simply add up:
#
# ```text
#              keys 0..31            keys 32..63           keys 64..95
#   logits     max 3                 max 9                 max 5
#   state m    3                     9                     9
#         l    l0                    l0 e^(3-9) + l1       (...) e^0 + l2
#         o    o0 (Dh numbers)       o0 e^(3-9) + o1       (...) e^0 + o2
#                                    l1, o1 for max 9      l2, o2 for max 9
#                                                          out = o / l
# ```
#
# The state of a row, (m, l, o), is Dh + 2 numbers however many keys there are (Milakov & Gimelshein, 2018; Dao et al.,
# 2022). GPUs compute $2^z$, not $e^z$: with $\log_2 e$ in the scale of the logits, `tl.exp2` is all that is needed.
#
# ## Implementation
# ### v1: all keys in one tile
# `tl.dot(a, b)` multiplies tiles, (M, K) by (K, N), and adds up in fp32; `tl.trans` turns a tile over. Each side is a
# power of two, K at least 16, so a head of 12 is padded to 16 by zeros, which add nothing. Keys that are padding do add
# something: their logit is 0, not minus infinity, and $e^0 = 1$. `input_precision="ieee"` keeps fp32 from being cut to
# TF32; to 16 bits it means nothing.


# %% nbgrader={"grade": false, "grade_id": "06-online-softmax-tile", "locked": false, "schema_version": 3, "solution": true, "task": false}
@triton.jit
def attention_tile_kernel(
    p_q, p_k, p_v, p_out, L, SCALE: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out = softmax2(SCALE q k^T) v; all (heads, L, Dh). Grid: (cdiv(L, BLOCK_Q), heads). BLOCK_K >= L."""
    ### BEGIN SOLUTION
    o_q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)[:, None]
    o_k, o_d = tl.arange(0, BLOCK_K)[:, None], tl.arange(0, BLOCK_D)[None, :]
    head = tl.program_id(1).to(tl.int64) * L * HEAD_DIM
    m_q, m_k = (o_q < L) & (o_d < HEAD_DIM), (o_k < L) & (o_d < HEAD_DIM)
    b_q = tl.load(p_q + head + o_q * HEAD_DIM + o_d, mask=m_q, other=0.0)  # (BLOCK_Q, BLOCK_D)
    b_k = tl.load(p_k + head + o_k * HEAD_DIM + o_d, mask=m_k, other=0.0)  # (BLOCK_K, BLOCK_D)
    b_v = tl.load(p_v + head + o_k * HEAD_DIM + o_d, mask=m_k, other=0.0)
    b_z = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * SCALE  # (BLOCK_Q, BLOCK_K)
    b_z = tl.where(tl.trans(o_k) < L, b_z, float("-inf"))
    b_w = tl.exp2(b_z - tl.max(b_z, 1, keep_dims=True))
    b_out = tl.dot(b_w.to(b_v.dtype), b_v, input_precision="ieee") / tl.sum(b_w, 1, keep_dims=True)
    tl.store(p_out + head + o_q * HEAD_DIM + o_d, b_out.to(p_out.dtype.element_ty), mask=m_q)
    ### END SOLUTION


def attention_tile(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, H, L, Dh), contiguous -> the same."""
    ### BEGIN SOLUTION
    (B, H, L, Dh), out = query.shape, torch.empty_like(query)
    blocks = [max(16, triton.next_power_of_2(size)) for size in (L, Dh)]
    scale = 1.4426950408889634 / Dh**0.5  # log2(e) / sqrt(Dh)
    attention_tile_kernel[(triton.cdiv(L, 16), B * H)](query, key, value, out, L, scale, Dh, 16, *blocks)
    return out
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "06-online-softmax-tile-test", "locked": true, "points": 30, "schema_version": 3, "solution": false, "task": false}
def oracle(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """In fp64; mask (B, L, L) bool, True = attend; rows that see nothing give 0."""
    logits = query.double() @ key.double().mT / query.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None], float("-inf"))
    return (logits.softmax(-1).nan_to_num() @ value.double()).to(query.dtype)


def heads(B: int, H: int, L: int, Dh: int) -> tuple[Tensor, ...]:
    torch.manual_seed(L)
    return tuple(torch.randn(3, B, H, L, Dh, device=DEVICE))


q, k, v = heads(2, 2, 32, 16)
hint = "exp2 needs log2(e) in the scale, beside 1 / sqrt(Dh); softmax is along the keys, axis 1"
check("v1, 32 keys", attention_tile(q, k, v), oracle(q, k, v), hint=hint)
q, k, v = heads(1, 2, 21, 12)
hint = "11 of 32 keys are padding: their logits must be -inf before the maximum and the sum, not 0"
check("v1, 21 keys", attention_tile(q, k, v), oracle(q, k, v), hint=hint)
hint = "subtract the row's maximum before exp2"
check("v1, logits in the hundreds", attention_tile(99 * q, k, v), oracle(99 * q, k, v), tolerance=1e-4, hint=hint)

# %% [markdown]
# ### v2: parts of a row, merged
# One tile for all keys ends where registers do. In PyTorch first, what the loop will have to do. A part may be empty:
# its maximum is -inf, its sums are 0, and -inf - (-inf) is NaN. That must not leak into the merged state.


# %% nbgrader={"grade": false, "grade_id": "06-online-softmax-merge", "locked": false, "schema_version": 3, "solution": true, "task": false}
def state_of(logits: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """m (L, 1), l (L, 1), o (L, Dh) of some keys: logits (L, keys), -inf where a row may not see; value (keys, Dh)."""
    maximum = logits.amax(-1, keepdim=True) if logits.shape[1] else logits.new_full((len(logits), 1), -torch.inf)
    weights = torch.exp(logits - torch.where(maximum == -torch.inf, 0.0, maximum))
    return maximum, weights.sum(-1, keepdim=True), weights @ value


def merge(a: tuple[Tensor, Tensor, Tensor], b: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The state of the keys of both."""
    ### BEGIN SOLUTION
    maximum = torch.maximum(a[0], b[0])
    shift = torch.where(maximum == -torch.inf, 0.0, maximum)
    decay_a, decay_b = torch.exp(a[0] - shift), torch.exp(b[0] - shift)
    return maximum, a[1] * decay_a + b[1] * decay_b, a[2] * decay_a + b[2] * decay_b
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "06-online-softmax-merge-test", "locked": true, "points": 25, "schema_version": 3, "solution": false, "task": false}
logits, value = 3 * torch.randn(5, 40, dtype=torch.float64), torch.randn(40, 3, dtype=torch.float64)
whole, nothing = state_of(logits, value), state_of(logits[:, :0], value[:0])
for names, cuts in (("two parts", (0, 17, 40)), ("an empty part", (0, 0, 40)), ("five parts", (0, 3, 9, 20, 39, 40))):
    parts = [state_of(logits[:, start:end], value[start:end]) for start, end in pairwise(cuts)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merge(merged, part)
    check(f"m of {names}", merged[0], whole[0], hint="the larger of both maxima")
    check(f"l of {names}", merged[1], whole[1], hint="each sum times exp(its own maximum - the new one)")
    check(f"o of {names}", merged[2], whole[2], hint="o is scaled as l is: by exp(its own maximum - the new one)")
check("nothing, twice", merge(nothing, nothing)[2], 0 * whole[2], hint="-inf - (-inf) is NaN: guard the exponent")

# %% [markdown]
# ### Production: a loop over tiles of keys, and a mask
# A program keeps its queries and their state, and merges each tile of keys into it. A tile's weights are taken by the
# new maximum at once, so only what was there before decays. Two rows to think of: one that sees nothing at all, and one
# that sees nothing until the last tile. `tl.full` is `tl.zeros` with a value to begin with.


# %% nbgrader={"grade": false, "grade_id": "06-online-softmax-attention", "locked": false, "schema_version": 3, "solution": true, "task": false}
@triton.jit(do_not_specialize=["L"])
def attention_kernel(
    p_q, p_k, p_v, p_mask, p_out, L, SCALE: tl.constexpr, H: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out = softmax2(SCALE q k^T) v; q, k, v, out (B, H, L, Dh); mask (B, L, L) uint8 or None; all contiguous.

    Grid: (cdiv(L, BLOCK_Q), B * H). A row that may see nothing gives 0.
    """
    ### BEGIN SOLUTION
    o_q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)[:, None]
    o_d = tl.arange(0, BLOCK_D)[None, :]
    head = tl.program_id(1).to(tl.int64) * L * HEAD_DIM
    m_q = (o_q < L) & (o_d < HEAD_DIM)
    b_q = tl.load(p_q + head + o_q * HEAD_DIM + o_d, mask=m_q, other=0.0)
    b_max = tl.full((BLOCK_Q, 1), float("-inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_Q, 1), tl.float32)
    b_out = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for start in range(0, L, BLOCK_K):
        o_k = start + tl.arange(0, BLOCK_K)[:, None]
        m_k = (o_k < L) & (o_d < HEAD_DIM)
        b_k = tl.load(p_k + head + o_k * HEAD_DIM + o_d, mask=m_k, other=0.0)
        b_v = tl.load(p_v + head + o_k * HEAD_DIM + o_d, mask=m_k, other=0.0)
        b_logits = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * SCALE
        m_seen = (o_q < L) & (tl.trans(o_k) < L)
        if p_mask is not None:
            row = (tl.program_id(1) // H).to(tl.int64) * L + o_q
            m_seen &= tl.load(p_mask + row * L + tl.trans(o_k), mask=m_seen, other=0) != 0
        b_logits = tl.where(m_seen, b_logits, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_logits, 1, keep_dims=True))
        b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_decay = tl.exp2(b_max - b_shift)
        b_weights = tl.exp2(b_logits - b_shift)
        b_sum = b_sum * b_decay + tl.sum(b_weights, 1, keep_dims=True)
        b_out = b_out * b_decay + tl.dot(b_weights.to(b_v.dtype), b_v, input_precision="ieee")
        b_max = b_new
    b_out /= tl.where(b_sum == 0.0, 1.0, b_sum)
    tl.store(p_out + head + o_q * HEAD_DIM + o_d, b_out.to(p_out.dtype.element_ty), mask=m_q)
    ### END SOLUTION


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(Dh)) v, (B, H, L, Dh) of any strides; mask (B, L, L) bool, True = attend, or None."""
    ### BEGIN SOLUTION
    B, H, L, Dh = query.shape
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    mask = None if mask is None else mask.contiguous().view(torch.uint8)
    out, grid = torch.empty_like(query), (triton.cdiv(L, 64), B * H)
    sizes = (1.4426950408889634 / Dh**0.5, H, Dh, 64, 32, max(16, triton.next_power_of_2(Dh)))
    attention_kernel[grid](query, key, value, mask, out, L, *sizes)
    return out
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "06-online-softmax-attention-test", "locked": true, "points": 45, "schema_version": 3, "solution": false, "task": false}
q, k, v = heads(2, 3, 100, 12)
hint = "one tile of keys is enough here: look at the scale, log2(e) / sqrt(Dh), and at -inf for keys past L"
check("13 keys", attention(*heads(1, 2, 13, 12)), oracle(*heads(1, 2, 13, 12)), hint=hint)
rising = k * torch.linspace(0.1, 3, 100, device=DEVICE)[:, None]  # most tiles bring a new maximum
hint = "values of 1 must give 1: b_sum and b_out decay by one and the same factor"
check("values of 1", attention(q, rising, torch.ones_like(v)), torch.ones_like(v), hint=hint)
hint = "what was summed before decays by exp2(old maximum - new maximum), with each tile"
check("rising logits", attention(q, rising, v), oracle(q, rising, v), hint=hint)
hint = "weights are exp2(logits - new maximum): nothing may leave fp32's range"
check("logits in the hundreds", attention(99 * q, k, v), oracle(99 * q, k, v), tolerance=1e-4, hint=hint)
mask = torch.rand(2, 100, 100, device=DEVICE) < 0.3
check("a random mask", attention(q, k, v, mask), oracle(q, k, v, mask), hint="mask[batch, query, key], True = attend")
mask[0, 5], mask[1, 40, :96], mask[1, 40, 96:] = False, False, True
hint = "a row that sees nothing yet has a maximum of -inf, and -inf - (-inf) is NaN; at the end, 0 / 0"
check("rows that see nothing, or late", attention(q, k, v, mask), oracle(q, k, v, mask), hint=hint)
### BEGIN HIDDEN TESTS
turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
check("strides", attention(*turned, mask.mT.contiguous().mT), oracle(q, k, v, mask), hint="make them contiguous")
half = [t.half() for t in (q, k, v)]
check("fp16", attention(*half), oracle(*half), tolerance=2e-3, hint="state in fp32, weights in v's dtype")
### END HIDDEN TESTS

# %% [markdown]
# ## Systems analysis
# A tile of logits is born, used and overwritten in registers, L / 32 times a program; memory never sees one.
#
# ```text
#   memory      q 64 x 16     k 32 x 16      v 32 x 16            out 64 x 16
#                  |              |              |                     ^
#   ---------------|--------------|--------------|---------------------|----
#                  v              v              v                     |
#   registers      q      .      k^T  =  logits 64 x 32                | o / l,
#                                           |                          | once
#                                        weights 64 x 32  .  v         |
#                                           |                |         |
#      state:              m 64, l 64 <-----+   o 64 x 16 <--+         |
#                                                   +------------------+
# ```


# %%
def operators(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value


for L in (32, 64, 128, 256):
    tensors = heads(1, 1, L, 16)
    held = [peak_bytes(call, *tensors) / tensors[0].nbytes for call in (operators, attention)]
    print(f"L {L:4}: operators hold {held[0]:5.1f} tensors of q's size, attention {held[1]:.1f}")
print("launches:", launches(attention, *tensors))
if time := seconds(attention, *tensors):
    print(f"{time * 1e6:.1f} us here")
for B, H, L, Dh in ((128, 8, 250, 16), (2, 16, 4352, 128)):
    floors = roofline(4 * B * H * L * Dh * 2, 4 * B * H * L * L * Dh, B * H * L * L)
    print(f"B {B} H {H} L {L} Dh {Dh}, us at the least:", {name: round(us, 1) for name, us in floors.items()})
    print(
        f"    and {roofline(4 * B * H * L * L * 2, 0)['bytes']:.1f} us to write and read logits and weights in 16 bits"
    )
kinds = dict.fromkeys(("p_q", "p_k", "p_v", "p_out"), "*bf16") | {"L": "i32"}
for block_q, block_k, block_d in ((64, 32, 16), (64, 64, 128), (128, 128, 128)):
    sizes = {"HEAD_DIM": block_d, "BLOCK_Q": block_q, "BLOCK_K": block_k, "BLOCK_D": block_d}
    print(sizes, registers(attention_kernel, kinds, {"p_mask": None, "SCALE": 0.1, "H": 8} | sizes))

# %% [markdown]
# ## Production context
# - `repository_after/mmdit/ops/joint_attention/kernel.py::_attend` is this loop. Queries and keys come out of an
#   RMSNorm, so their logits are bounded: it runs without a maximum first (SAFE off), and again with one where a sum
#   leaves `repository_after/mmdit/ops/joint_attention/op.py::LARGEST_SUM`.
# - `repository_after/mmdit/ops/joint_attention/kernel.py::joint_attention_kernel` writes log2 of the sum for backward
#   too.
# - `repository_after/mmdit/ops/joint_attention/kernel.py::pack_mask_kernel` packs a mask, 32 keys to a word: on an H200
#   a byte a key, as here, took 212 us where the words took 67 (see the README beside it).
#
# ## Thinking questions
# 1. (Change a line, run, explain.) With BLOCK_K 128 in `attention`, which mistakes can the tests no longer see?
# 2. Do without a maximum (b_new = 0.0 * b_sum) and raise the 99 in the test from 1 on: where does fp32 end, where fp16?
# 3. `merge` does not care for order. Split keys over two programs: what must each store, and who divides?
# 4. Which of the three floors is the largest at Dh 16, which at Dh 128? At which Dh do they meet?
#
# ## Summary
# - A softmax over parts is a state (m, l, o) for each; merging two takes two factors and two sums.
# - Padding is -inf in logits and 0 in values; an empty row needs a guard where it subtracts and one where it divides.
# - Logits stay in registers: memory grows with L. What is left to wait for, in small heads, are exponentials.
