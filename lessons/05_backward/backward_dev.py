# %% [markdown]
# # 05 · The backward pass, and how to know that it is right
#
# ## Objectives
# After this lesson you can
# - derive a norm's gradient in three lines, and check it by finite differences, which know nothing of derivations;
# - write it as a kernel that reads every tensor once and needs nothing from forward but forward's inputs;
# - add up rows that lie in different programs in a fixed order: the same bits every time, without atomics;
# - hand both kernels to autograd with `torch.autograd.Function`.

# %%
from lessons.kit import DEVICE, check, expect, launches, peak_bytes, poisoned, registers, roofline, seconds

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

# %% [markdown]
# ## Foundations
# Autograd cannot look into a kernel. Whoever writes a forward owes its gradients, and nobody will say so if they are a
# little wrong: the loss still falls, only less. Lesson 04 computed, for each row $x$ of a sample,
#
# $$r = 1/\sqrt{\text{var}(x) + \varepsilon} \qquad n = (x - \text{mean}(x))\,r \qquad
# \text{out} = n\,(1 + \text{scale}) + \text{shift}$$
#
# All rows of a sample share its scale and shift, so with grad = ∂loss/∂out their gradients are sums over rows:
# $d_\text{scale} = \sum \text{grad}\cdot n$ and $d_\text{shift} = \sum \text{grad}$. For $d_x$, move $x$ by a small
# $dx$: the mean moves by $\text{mean}(dx)$, and $r$ by $-r^2\,\text{mean}(n\,dx)$, whatever eps is. Put together,
# $dn = r\,(dx - \text{mean}(dx) - n\,\text{mean}(n\,dx))$, on $dx$ the matrix $r\,(I - 11^T/D - nn^T/D)$. It is its own
# transpose, so the same expression takes gradients back; with $g = \text{grad}\,(1 + \text{scale})$
#
# $$d_x = r\,\big(g - \text{mean}(g) - n\,\text{mean}(g\,n)\big)$$
#
# Adding a constant to a row does not change $n$; nor, at eps 0, does stretching it. A gradient has no part in
# directions that change nothing, and each mean removes one. What a sum runs over decides which program can do it:
#
# ```text
#                 D columns
#          +--------------------+
#   L rows |  .  .  .  .  .  .--|-> mean(g), mean(g n): within a row, so the
#   of one |  .  .  .  .  .  .--|-> program that holds the row finishes its d_x
#   sample +--|--|--|--|--|--|--+
#             v  v  v  v  v  v
#   sum(grad n), sum(grad): down all rows of a sample. With few samples, one
#   program each leaves a GPU idle; more must bring their sums together.
# ```
#
# ## Implementation
# ### v1: the formula, tried by finite differences
# In fp64, where only the mathematics can be wrong. The test moves x, scale and shift a little along a random direction,
# and back, and compares the slope of the loss with the gradient's product with that direction.


# %% nbgrader={"grade": false, "grade_id": "05-backward-formula", "locked": false, "schema_version": 3, "solution": true, "task": false}
def adaln_gradients(grad: Tensor, x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """d_x (B, L, D), d_scale (B, D), d_shift (B, D) of LayerNorm(x) * (1 + scale) + shift; scale (B, D)."""
    ### BEGIN SOLUTION
    centred = x - x.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    normed = centred * rstd
    g = grad * (1 + scale[:, None])
    d_x = rstd * (g - g.mean(-1, keepdim=True) - normed * (g * normed).mean(-1, keepdim=True))
    return d_x, (grad * normed).sum(1), grad.sum(1)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "05-backward-formula-test", "locked": true, "points": 25, "schema_version": 3, "solution": false, "task": false}
HINTS = {
    "d_shift": "the sum of grad over a sample's rows, each of them once: a chunk ends where the next begins, or at L",
    "d_scale": "the sum of grad * n, not g * n; padded columns are 0 after centring, means divide by D, not BLOCK_D",
    "d_x": "g is grad * (1 + scale); then g - mean(g) - n * mean(g * n); then times r, with eps inside the root",
}


def adaln(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[2:], eps=eps) * (1 + scale[:, None]) + shift[:, None]


def inputs(B: int, L: int, D: int) -> list[Tensor]:
    """grad, x (B, L, D), scale, shift (B, D) in fp64; each row of x has a size of its own: no factor can hide."""
    torch.manual_seed(L)
    wide = {"dtype": torch.float64, "device": DEVICE}
    x = 0.5 + torch.randn(B, L, D, **wide) * torch.linspace(0.3, 2.0, L, **wide)[:, None]
    return [torch.randn(B, L, D, **wide), x, *torch.randn(2, B, D, **wide)]


def compare(label: str, got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    for (name, hint), mine, truth in zip(HINTS.items(), reversed(got), reversed(wanted), strict=True):
        check(f"{name} {label}", mine, truth.to(mine.dtype).reshape(mine.shape), tolerance=tolerance, hint=hint)


grad, *tensors = inputs(2, 5, 12)
slopes, products, step = [], [], 1e-5
gradients = adaln_gradients(grad, *tensors[:2], 0.1)
expect(gradients[0].sum(-1).abs().max() < 1e-12, "the sum of d_x over a row is 0, once mean(g) is taken off")
for at, gradient in enumerate(gradients):
    direction = torch.randn_like(gradient)
    sides = [[t + s * direction if i == at else t for i, t in enumerate(tensors)] for s in (step, -step)]
    slopes.append((grad * (adaln(*sides[0], 0.1) - adaln(*sides[1], 0.1))).sum() / (2 * step))
    products.append((gradient * direction).sum())
compare("by finite differences", products, slopes, 1e-8)

# %% [markdown]
# ### v2: one pass over x and the gradient
# From here on the formula is the oracle. The kernel computes `n` again: backward must read something of x's size
# anyway, and has arithmetic to spare (lesson 01). A program walks through a *chunk* of a sample's rows, ROWS at a time
# (`for` in a kernel is a loop in each program). d_x leaves as it goes; two sums begin as `tl.zeros` and stay in
# registers until the end. They are fp32, and a chunk that begins past L stores zeros.


# %% nbgrader={"grade": false, "grade_id": "05-backward-kernel", "locked": false, "schema_version": 3, "solution": true, "task": false}
@triton.jit(do_not_specialize=["L"])
def adaln_backward_kernel(
    p_grad, p_x, p_scale, p_d_x, p_sums, L,
    CHUNKS: tl.constexpr, D: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """d_x, and a chunk's sums (B, CHUNKS, 2, D) of grad * n and of grad. Grid: (B * CHUNKS,); all contiguous."""
    ### BEGIN SOLUTION
    batch, chunk = (tl.program_id(0) // CHUNKS).to(tl.int64), tl.program_id(0) % CHUNKS
    length = tl.cdiv(tl.cdiv(L, CHUNKS), ROWS) * ROWS  # rows of a chunk
    end = min(chunk * length + length, L)
    o_d = tl.arange(0, BLOCK_D)[None, :]
    m_d = o_d < D
    b_gain = 1.0 + tl.load(p_scale + batch * D + o_d, mask=m_d, other=0.0).to(tl.float32)  # (1, BLOCK_D)
    b_moment, b_total = tl.zeros((1, BLOCK_D), tl.float32), tl.zeros((1, BLOCK_D), tl.float32)
    for start in range(chunk * length, end, ROWS):
        o_l = start + tl.arange(0, ROWS)[:, None]
        m_x = (o_l < end) & m_d
        o_x = (batch * L + o_l) * D + o_d  # (ROWS, BLOCK_D)
        b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_grad = tl.load(p_grad + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_x = tl.where(m_x, b_x - tl.sum(b_x, 1, keep_dims=True) / D, 0.0)
        b_rstd = tl.rsqrt(tl.sum(b_x * b_x, 1, keep_dims=True) / D + EPS)
        b_normed = b_x * b_rstd
        b_moment += tl.sum(b_grad * b_normed, 0, keep_dims=True)
        b_total += tl.sum(b_grad, 0, keep_dims=True)
        b_g = b_grad * b_gain
        b_d_x = b_g - (tl.sum(b_g, 1, keep_dims=True) + b_normed * tl.sum(b_g * b_normed, 1, keep_dims=True)) / D
        tl.store(p_d_x + o_x, (b_d_x * b_rstd).to(p_d_x.dtype.element_ty), mask=m_x)
    p_sums += tl.program_id(0) * 2 * D
    tl.store(p_sums + o_d, b_moment, mask=m_d)
    tl.store(p_sums + D + o_d, b_total, mask=m_d)
    ### END SOLUTION


def backward_chunks(grad: Tensor, x: Tensor, scale: Tensor, eps: float, chunks: int) -> tuple[Tensor, Tensor]:
    """d_x (B, L, D), and sums (B, chunks, 2, D) fp32."""
    batch, length, dim = x.shape
    d_x, sums = torch.empty_like(x), x.new_empty(batch, chunks, 2, dim, dtype=torch.float32)
    block = triton.next_power_of_2(dim)
    adaln_backward_kernel[(batch * chunks,)](
        grad, x, scale, d_x, sums, length, chunks, dim, eps, max(1, 1024 // block), block
    )
    return d_x, sums


# %% nbgrader={"grade": true, "grade_id": "05-backward-kernel-test", "locked": true, "points": 40, "schema_version": 3, "solution": false, "task": false}
for B, L, D, chunks in ((2, 13, 64, 1), (2, 13, 48, 1), (2, 70, 48, 2), (1, 37, 100, 4), (1, 5, 48, 3)):
    grad, x, scale, _ = inputs(B, L, D)
    d_x, sums = backward_chunks(grad.float(), x.float(), scale.float(), 0.1, chunks)
    wanted = adaln_gradients(grad, x, scale, 0.1)
    compare(f"B{B}-L{L}-D{D} in {chunks} chunks", (d_x, *sums.sum(1).unbind(1)), wanted)
### BEGIN HIDDEN TESTS
d_x, sums = backward_chunks(grad.half(), x.half(), scale.half(), 0.1, 3)
compare("in fp16", (d_x, *sums.sum(1).unbind(1)), wanted, 2e-3)
### END HIDDEN TESTS

# %% [markdown]
# ### Stage two and production: a fixed order, and autograd
# Each program could add its sums to d_scale with `tl.atomic_add`, and be right up to rounding. But atomics land in the
# order in which programs finish, and in fp32 2^24 + 1 - 2^24 is 0 where 2^24 - 2^24 + 1 is 1: one seed would train two
# models. A second, small kernel that adds chunk 0, then 1, then 2 gives the same bits every time. (A grid may have two
# axes; `tl.program_id(1)` is the place on the second.)
#
# `torch.autograd.Function` pairs a forward with a backward. `ctx.save_for_backward` keeps tensors; backward returns a
# gradient for each argument of forward, in its shape, and None for eps. Two traps: `out.sum().backward()` sends one
# number with strides of 0, where our kernels count on contiguous rows; and scale may be (B, 1, D).


# %% nbgrader={"grade": false, "grade_id": "05-backward-function", "locked": false, "schema_version": 3, "solution": true, "task": false}
@triton.jit
def sum_chunks_kernel(p_sums, p_out, CHUNKS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """out (B, SIZE) = sums (B, CHUNKS, SIZE) fp32, added from chunk 0 on. Grid: (B, cdiv(SIZE, BLOCK))."""
    ### BEGIN SOLUTION
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for chunk in range(CHUNKS):
        b_sum += tl.load(p_sums + (tl.program_id(0) * CHUNKS + chunk) * SIZE + o, mask=o < SIZE, other=0.0)
    tl.store(p_out + tl.program_id(0) * SIZE + o, b_sum.to(p_out.dtype.element_ty), mask=o < SIZE)
    ### END SOLUTION


@triton.jit(do_not_specialize=["L"])
def adaln_forward_kernel(p_x, p_scale, p_shift, p_out, L, D: tl.constexpr, EPS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Lesson 04's, a row a program; all contiguous. Grid: (B * L,)."""
    row, o_d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    o_m, m_d = row // L * D + o_d, o_d < D
    b_x = tl.load(p_x + row * D + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_x = tl.where(m_d, b_x - tl.sum(b_x, 0) / D, 0.0)
    b_x *= tl.rsqrt(tl.sum(b_x * b_x, 0) / D + EPS)
    b_x *= 1.0 + tl.load(p_scale + o_m, mask=m_d, other=0.0).to(tl.float32)
    b_x += tl.load(p_shift + o_m, mask=m_d, other=0.0).to(tl.float32)
    tl.store(p_out + row * D + o_d, b_x.to(p_out.dtype.element_ty), mask=m_d)


class LayerNormAdaLN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        ### BEGIN SOLUTION
        (batch, length, dim), ctx.eps, ctx.shift_shape = x.shape, eps, shift.shape
        ctx.save_for_backward(x, scale)
        x, scale, shift = x.contiguous(), scale.contiguous(), shift.contiguous()
        out = torch.empty_like(x)
        adaln_forward_kernel[(batch * length,)](x, scale, shift, out, length, dim, eps, triton.next_power_of_2(dim))
        return out
        ### END SOLUTION

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        ### BEGIN SOLUTION
        x, scale = (t.contiguous() for t in ctx.saved_tensors)
        chunks = max(1, min(triton.cdiv(x.shape[1], 8), 528 // max(1, len(x))))  # four programs a multiprocessor
        d_x, sums = backward_chunks(grad.contiguous(), x, scale, ctx.eps, chunks)
        (B, _, D), totals = x.shape, torch.empty_like(sums[:, 0], dtype=scale.dtype)
        sum_chunks_kernel[(B, triton.cdiv(2 * D, 64))](sums, totals, chunks, 2 * D, 64)
        d_scale, d_shift = totals.unbind(1)
        return d_x, d_scale.reshape(scale.shape), d_shift.reshape(ctx.shift_shape), None
        ### END SOLUTION


def trainable_layernorm_adaln(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """x (B, L, D); scale, shift (B, D) or (B, 1, D); any strides; with gradients of all three."""
    return LayerNormAdaLN.apply(x, scale, shift, eps)


# %% nbgrader={"grade": true, "grade_id": "05-backward-function-test", "locked": true, "points": 35, "schema_version": 3, "solution": false, "task": false}
sums, out = torch.randn(3, 7, 96, device=DEVICE), torch.empty(3, 96, device=DEVICE)
sums[:, 0], sums[:, 1], sums[:, 2] = 2.0**24, 1.0, -(2.0**24)
sum_chunks_kernel[(3, 2)](sums, out, 7, 96, 64)
hint = "all chunks of a sample, in the order 0, 1, 2, ... (any other has other bits); two programs share 96 columns"
check("sums of 7 chunks, bit for bit", out, sum(sums.unbind(1), torch.zeros_like(out)), tolerance=0.0, hint=hint)
grad, x, scale, shift = inputs(2, 37, 48)
wanted = adaln_gradients(grad, x, scale, 0.1)
for scale_1, shift_1 in ((scale, shift), (scale[:, None], shift[:, None])):
    leaves = [t.float().requires_grad_() for t in (x, scale_1, shift_1)]
    out = trainable_layernorm_adaln(*leaves, 0.1)
    check("out", out, adaln(x, scale, shift, 0.1).float(), hint="forward is lesson 04's, with eps as it was given")
    expect(len(out.grad_fn.saved_tensors) == 2, "x and scale are kept for backward, and nothing else")
    got = torch.autograd.grad(out, leaves, poisoned(grad.float(), 16))
    compare("through autograd, grad with strides", got, wanted)

# %% [markdown]
# ## Systems analysis
# What backward needs is held in every layer at once, until the loss is known: counted here for one. Then the floor, and
# the compiler's view, for which x, grad, n, g and two sums are alive together.

# %%
grad, *leaves = (t.float().requires_grad_() for t in inputs(4, 62, 128))
for name, call in (("operators", lambda *t: adaln(*t, 1e-6)), ("kernels", trainable_layernorm_adaln)):
    forward = peak_bytes(call, *leaves) / grad.nbytes
    both = peak_bytes(lambda *t: call(*t).backward(grad), *leaves) / grad.nbytes  # noqa: B023
    print(f"{name:9} hold {forward:.2f} tensors of x's size beyond x in forward, {both:.2f} with backward")
time = seconds(trainable_layernorm_adaln, *leaves)
print(launches(lambda: trainable_layernorm_adaln(*leaves).backward(grad)), f"{time * 1e6:.1f} us" if time else "")
for B, L, D in ((128, 186, 128), (8, 4096, 3072)):
    floor = roofline(3 * B * L * D * 2, 0)["bytes"]
    print(f"{B} x {L} x {D} in 16 bits: {floor:.1f} us at the least to read x and grad and write d_x")
kinds = dict.fromkeys(("p_grad", "p_x", "p_scale", "p_d_x"), "*bf16") | {"p_sums": "*fp32", "L": "i32"}
for D, rows in ((128, 8), (1024, 1), (4096, 1), (4096, 4)):
    compiled = registers(adaln_backward_kernel, kinds, {"CHUNKS": 4, "D": D, "EPS": 1e-6, "ROWS": rows, "BLOCK_D": D})
    print(f"D {D:4}, {rows} rows: {compiled.registers:3} registers a thread, {compiled.spills:4} bytes spilled")

# %% [markdown]
# Why chunks: programs, for 132 multiprocessors, against what stage two reads (D 128):
# ```text
#   samples   chunks of a sample    programs  of 132 |----------|     sums
#         1    1                           1         |                  1 KB
#         1   24 (8 rows each)            24         ||               24 KB
#       128    1                         128         |||||||||||      128 KB
#       128    4 (48 rows each)          512         3.9 for each     512 KB
# ```
#
# ## Production context
# - `repository_after/mmdit/ops/norm_adaln/kernel.py::norm_adaln_backward_kernel` is this kernel, with strides, for both
#   norms; it issues the next rows' loads ahead and takes both row sums in one reduction.
# - `repository_after/mmdit/ops/norm_adaln/kernel.py::norm_adaln_reduce_kernel` is stage two, 32 chunks to a load, and
#   `repository_after/mmdit/ops/norm_adaln/op.py::_autograd` is `LayerNormAdaLN.backward`; for second derivatives it
#   takes `repository_after/mmdit/ops/norm_adaln/reference.py::norm_adaln_backward_reference`, your v1.
#
# ## Thinking questions
# 1. (Change a line, run, explain.) Set `step` to 1e-2, then to 1e-12. Why does the error grow both times?
# 2. Save a third tensor of x's size in forward. What does the systems cell say? What would backward read less?
# 3. Make `x[0, 0]` constant in `inputs` and eps 1e-12 in one `compare`. Why is d_x so large there?
#
# ## Summary
# - A gradient is what is left of g once the directions that change nothing are taken out.
# - Finite differences in fp64 test the formula; the formula in fp64 tests the kernel.
# - Sums within a row stay in a program; sums over rows become partial sums, added in a fixed order. Keep inputs alone.
