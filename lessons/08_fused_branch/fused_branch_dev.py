# %% [markdown]
# # 08 · A whole branch in one kernel
#
# ## Objectives
# After this lesson you can
# - fuse what comes after a matrix product into the kernel of the product, and say when a norm allows that;
# - write a product as a loop over K, with weights as `nn.Linear` keeps them;
# - chain two products, so that an MLP's hidden layer is never stored;
# - find where fusing stops to pay: in registers, and in weights that are read again and again.

# %%
from lessons.kit import DEVICE, check, launches, peak_bytes, poisoned, registers, roofline, seconds

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

# %% [markdown]
# ## Foundations
# A block adds two branches to its residual stream. Attention's ends in a projection, an RMSNorm and a gate; the MLP's
# begins with lesson 04's norm and ends in a gate:
#
# $$x \leftarrow x + \text{gate} \cdot \text{RMSNorm}(o\,W^T + b), \qquad
# x \leftarrow x + \text{gate} \cdot \big(\text{SiLU}(h\,W_1^T + b_1)\,W_2^T + b_2\big)$$
#
# As operators each step writes what the next one reads back. Most of it can join the product's kernel, whose sums are
# in registers anyway. Bias and gate need one column each. RMSNorm needs a row's mean square, so *all* of its columns
# must be in one program. A product's tile is otherwise free to be any part of the output; here its width must be D:
#
# ```text
#     o: T rows x D          W^T: D x D              registers, fp32
#    +------+------+     +-------------------+     +-------------------+
#    |  k0  |  k1  |  .  | k0: BLOCK_K x D   |  =  | T x D: whole rows |
#    +------+------+     +-------------------+     +-------------------+
#                        | k1: BLOCK_K x D   |      + b, mean square,
#     one step of the    +-------------------+      * norm, * gate,
#     loop: one k of both, added to the same sums   + residual -> out
# ```
#
# The price shows in the picture. T x D numbers in fp32 over 128 threads are T D / 128 registers each, of 255. And every
# program reads all of W; its rows can't be shared out.
#
# ## Implementation
# ### v1: the product, and all that follows it, in one kernel
# `tl.dot(a, b, acc)` adds to sums that it is given. `nn.Linear` keeps W as (out, in), so a tile of W^T is a matter of
# addresses: its element (k, d) is column k of W's row d. Where D is no multiple of BLOCK_K, the last step is masked on
# both sides. What follows is lesson 03's norm, on sums that never left the registers.


# %% nbgrader={"grade": false, "grade_id": "08-fused-branch-finish", "locked": false, "schema_version": 3, "solution": true, "task": false}
@triton.jit(do_not_specialize=["L"])
def finish_branch_kernel(
    p_o, p_weight, p_bias, p_norm, p_gate, p_residual, p_out, L,
    D: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out = residual + gate * RMSNorm(o W^T + bias) * norm; o, residual, out (B, L, D), gate (B, D), contiguous.

    Grid: (B * cdiv(L, ROWS),), ROWS rows of a sample each.
    """
    ### BEGIN SOLUTION
    tiles = tl.cdiv(L, ROWS)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    o_l, o_d = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK_D)[None, :]
    b_sum = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(0, D, BLOCK_K):
        o_k = start + tl.arange(0, BLOCK_K)
        b_o = tl.load(p_o + (batch * L + o_l) * D + o_k[None, :], mask=(o_l < L) & (o_k < D)[None, :], other=0.0)
        b_w = tl.load(p_weight + o_d * D + o_k[:, None], mask=(o_d < D) & (o_k < D)[:, None], other=0.0)  # W^T
        b_sum = tl.dot(b_o, b_w, b_sum, input_precision="ieee")
    m_d, m_x, o_x = o_d < D, (o_l < L) & (o_d < D), (batch * L + o_l) * D + o_d
    b_sum += tl.load(p_bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_sum *= tl.rsqrt(tl.sum(b_sum * b_sum, 1, keep_dims=True) / D + EPS)
    b_sum *= tl.load(p_norm + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_sum *= tl.load(p_gate + batch * D + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_sum += tl.load(p_residual + o_x, mask=m_x, other=0.0).to(tl.float32)
    tl.store(p_out + o_x, b_sum.to(p_out.dtype.element_ty), mask=m_x)
    ### END SOLUTION


def finish_branch(
    heads_out: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, gate: Tensor, residual: Tensor, eps: float
) -> Tensor:
    """residual + gate * RMSNorm(heads_out @ weight.T + bias) in one kernel.

    heads_out, residual (B, L, D); weight (D, D), bias and norm_weight (D,); gate (B, D) or (B, 1, D); any strides.
    """
    ### BEGIN SOLUTION
    B, L, D = residual.shape
    tensors = [t.contiguous() for t in (heads_out, weight, bias, norm_weight, gate, residual)]
    out, block = torch.empty_like(tensors[-1]), max(16, triton.next_power_of_2(D))
    finish_branch_kernel[(B * triton.cdiv(L, 32),)](*tensors, out, L, D, eps, 32, 32, block)
    return out
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "08-fused-branch-finish-test", "locked": true, "points": 60, "schema_version": 3, "solution": false, "task": false}
NAMES = ("heads_out", "weight", "bias", "norm_weight", "gate", "residual")


def operators(heads_out, weight, bias, norm_weight, gate, residual, eps=1e-6) -> Tensor:
    branch = F.rms_norm(F.linear(heads_out, weight, bias), norm_weight.shape, norm_weight, eps)
    return residual + gate[:, None] * branch


def compare(call, by_operators, label: str, tensors: list[Tensor], hint: str, eps: float = 1e-6) -> None:
    wanted = by_operators(*[t.double() for t in tensors], eps).to(tensors[0].dtype)
    tolerance = 1e-5 if wanted.dtype == torch.float32 else 2e-3
    check(label, call(*tensors, eps), wanted, tolerance=tolerance, hint=hint)


def branch_inputs(B: int, L: int, D: int, plain: tuple[str, ...] = ()) -> list[Tensor]:
    """In NAMES' order; those in `plain` are 1 (the gate, the norm's weight) or 0 (bias, residual)."""
    torch.manual_seed(D)
    shapes = dict(zip(NAMES, ((B, L, D), (D, D), (D,), (D,), (B, D), (B, L, D)), strict=True))
    values = {
        name: torch.randn(shape, device=DEVICE) * (D**-0.5 if name == "weight" else 1) for name, shape in shapes.items()
    }
    return [
        values[name].fill_(float(name in ("gate", "norm_weight"))) if name in plain else values[name] for name in NAMES
    ]


after = ["bias", "norm_weight", "gate", "residual"]
for D, eps, hint in (
    (32, 1e-6, "W is (out, in): element (k, d) of W^T lies at d * D + k"),
    (64, 1e-6, "the second step's products are added to the first's: tl.dot(a, b, acc)"),
    (
        80,
        1e-6,
        "80 columns in steps of 32: o's and W's past D are 0 in the last step; the mean square is over D, not BLOCK_D",
    ),
    (64, 0.5, "eps is added to the mean square, inside the root"),
):
    compare(
        finish_branch, operators, f"o W^T, norm, D {D}, eps {eps}", branch_inputs(2, 40, D, tuple(after)), hint, eps
    )
for hint in (
    "bias comes before the norm, as it is the Linear's",
    "the norm's weight comes after it",
    "a sample has a gate of its own: p_gate + batch * D, where batch counts tiles of each sample",
    "residual + gate * branch: the residual itself is not gated",
):
    name = after.pop(0)
    compare(finish_branch, operators, f"with {name}", branch_inputs(3, 21, 48, tuple(after)), hint)
### BEGIN HIDDEN TESTS
compare(finish_branch, operators, "strides", [poisoned(t, 5) for t in branch_inputs(2, 17, 40)], "make them contiguous")
heads_out, *middle, gate, residual = tensors = branch_inputs(2, 5, 48)
wanted = finish_branch(*tensors, 0.1)
check("gate (B, 1, D)", finish_branch(heads_out, *middle, gate[:, None], residual, 0.1), wanted, hint="as (B, D)")
compare(finish_branch, operators, "fp16", [t.half() for t in branch_inputs(1, 33, 48)], "sums in fp32")
### END HIDDEN TESTS

# %% [markdown]
# ### v2, production: two products in a row, and the norm before them
# The MLP's hidden layer is F = 4 D wide, the largest tensor of the block. But a block of its features is made from `h`
# by BLOCK_F columns of the first product, and used up at once as BLOCK_F rows of the second; the next block's share is
# simply added. `tl.sigmoid` makes a SiLU: `u * tl.sigmoid(u)`. Now `h` is an operand, of K = D in one piece, and so
# lies in registers beside x and the sums; only features go in blocks.


# %% nbgrader={"grade": false, "grade_id": "08-fused-branch-mlp", "locked": false, "schema_version": 3, "solution": true, "task": false}
@triton.jit(do_not_specialize=["L"])
def modulated_mlp_kernel(
    p_x, p_scale, p_shift, p_gate, p_w1, p_b1, p_w2, p_b2, p_out, L, D: tl.constexpr, FORWARD: tl.constexpr,
    EPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out = x + gate * (silu(h W1^T + b1) W2^T + b2), h = LayerNorm(x) * (1 + scale) + shift, all contiguous.

    x, out (B, L, D); scale, shift, gate (B, D); W1 (F, D), W2 (D, F). Grid: (B * cdiv(L, ROWS),).
    """
    ### BEGIN SOLUTION
    tiles = tl.cdiv(L, ROWS)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    o_l, o_d = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK_D)[None, :]
    o_x, m_d, m_x = (batch * L + o_l) * D + o_d, o_d < D, (o_l < L) & (o_d < D)
    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_h = tl.where(m_x, b_x - tl.sum(b_x, 1, keep_dims=True) / D, 0.0)
    b_h *= tl.rsqrt(tl.sum(b_h * b_h, 1, keep_dims=True) / D + EPS)
    b_h *= 1.0 + tl.load(p_scale + batch * D + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_h += tl.load(p_shift + batch * D + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_sum = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(0, FORWARD, BLOCK_F):
        o_f = start + tl.arange(0, BLOCK_F)[None, :]
        m_f = o_f < FORWARD
        b_w1 = tl.load(p_w1 + o_f * D + tl.trans(o_d), mask=m_f & tl.trans(m_d), other=0.0)  # (BLOCK_D, BLOCK_F)
        b_u = tl.dot(b_h.to(b_w1.dtype), b_w1, input_precision="ieee")
        b_u += tl.load(p_b1 + o_f, mask=m_f, other=0.0).to(tl.float32)
        b_u *= tl.sigmoid(b_u)
        b_w2 = tl.load(p_w2 + o_d * FORWARD + tl.trans(o_f), mask=m_d & tl.trans(m_f), other=0.0)  # (BLOCK_F, BLOCK_D)
        b_sum = tl.dot(b_u.to(b_w2.dtype), b_w2, b_sum, input_precision="ieee")
    b_sum += tl.load(p_b2 + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_x += b_sum * tl.load(p_gate + batch * D + o_d, mask=m_d, other=0.0).to(tl.float32)
    tl.store(p_out + o_x, b_x.to(p_out.dtype.element_ty), mask=m_x)
    ### END SOLUTION


def modulated_mlp(
    x: Tensor, scale: Tensor, shift: Tensor, gate: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    eps: float = 1e-6,
) -> Tensor:  # fmt: skip
    """x + gate * MLP(LayerNorm(x) * (1 + scale) + shift), SiLU between; x (B, L, D), the rest as in the kernel."""
    (B, L, D), out = x.shape, torch.empty_like(x, memory_format=torch.contiguous_format)
    tensors = [t.contiguous() for t in (x, scale, shift, gate, w1, b1, w2, b2)]
    sizes = (L, D, len(w1), eps, 32, 32, max(16, triton.next_power_of_2(D)))
    modulated_mlp_kernel[(B * triton.cdiv(L, 32),)](*tensors, out, *sizes)
    return out


# %% nbgrader={"grade": true, "grade_id": "08-fused-branch-mlp-test", "locked": true, "points": 40, "schema_version": 3, "solution": false, "task": false}
def mlp_operators(x, scale, shift, gate, w1, b1, w2, b2, eps=1e-6) -> Tensor:
    h = F.layer_norm(x, x.shape[2:], eps=eps) * (1 + scale[:, None]) + shift[:, None]
    return x + gate[:, None] * F.linear(F.silu(F.linear(h, w1, b1)), w2, b2)


def mlp_inputs(B: int, L: int, D: int, features: int, zero: tuple[int, ...] = ()) -> list[Tensor]:
    """x, scale, shift, gate, w1, b1, w2, b2; 0 those of the places in `zero`."""
    torch.manual_seed(D)
    shapes = ((B, L, D), (B, D), (B, D), (B, D), (features, D), (features,), (D, features), (D,))
    return [torch.randn(shape, device=DEVICE) / 4 * (place not in zero) for place, shape in enumerate(shapes)]


for label, features, zero, hint in (
    ("only b2", 80, (6,), "x + gate * b2: x as it came, not normed; b2 once, not in each block of features"),
    ("no scale and shift", 32, (1, 2, 7), "u * sigmoid(u), of u with b1 in it; W1 (F, D) and W2 (D, F) are (out, in)"),
    ("80 features", 80, (1, 2, 7), "80 features in blocks of 32: both weights masked by F, the blocks added up"),
    ("all", 80, (), "h is LayerNorm(x) * (1 + scale) + shift, by the scale and shift of the rows' own sample"),
):
    compare(modulated_mlp, mlp_operators, f"MLP, {label}", mlp_inputs(2, 37, 48, features, zero), hint)

# %% [markdown]
# ## Systems analysis
# What is moved, in tensors of x's size (r read, w written; F = 4 D):
#
# ```text
#   branch   four operators   linear rw  norm rw  gate rw  residual rrw       9
#            product + rest   linear rw  all the rest rrw                     5
#            v1               rrw                                             3
#   MLP      eight operators  norm rw  scale rw  shift rw  linear rwwww
#                             silu rrrrwwww  linear rrrrw  gate rw  + rrw    29
#            v2               rw                                              2
# ```

# %%
tensors, mlp = branch_inputs(2, 45, 64), mlp_inputs(2, 45, 64, 256)
calls = {"branch": (operators, finish_branch, tensors), "MLP": (mlp_operators, modulated_mlp, mlp)}
for name, (eager, fused, arguments) in calls.items():
    held = [peak_bytes(call, *arguments, 1e-6) / tensors[0].nbytes for call in (eager, fused)]
    print(f"{name}: operators hold {held[0]:.2f} tensors of x's size, the kernel {held[1]:.2f}, its output;")
    print("    launches:", launches(fused, *arguments, 1e-6))
    if time := seconds(fused, *arguments, 1e-6):
        print(f"    {time * 1e6:.1f} us here")
B, L, D = 128, 250, 128
for name, moved, products in (("branch", (9, 5, 3), 1), ("MLP", (29, 2), 8)):
    floors = [round(roofline(n * B * L * D * 2, 0)["bytes"], 1) for n in moved]
    least = roofline(0, 2 * products * B * L * D * D, 0)["operations"]
    print(f"{name}: {floors} us at the least for its bytes, {least:.1f} for its products")
programs = B * (triton.cdiv(186, 64) + triton.cdiv(64, 64))
weights, rows = programs * 9 * D * D * 2 / 1e6, B * L * D * 2 / 1e6
print(f"{programs} programs of 64 rows read {weights:.0f} MB of weights, and {rows:.0f} of x")
kinds = dict.fromkeys(("p_o", "p_weight", "p_bias", "p_norm", "p_gate", "p_residual", "p_out"), "*bf16") | {"L": "i32"}
for D, rows in ((128, 64), (256, 64), (512, 16)):
    sizes = {"D": D, "EPS": 1e-6, "ROWS": rows, "BLOCK_K": 32, "BLOCK_D": D}
    print(f"D {D}, {rows} rows, {rows * D // 128} sums a thread:", registers(finish_branch_kernel, kinds, sizes))
kinds = {f"p_{name}": "*bf16" for name in ("x", "scale", "shift", "gate", "w1", "b1", "w2", "b2", "out")} | {"L": "i32"}
for rows, features in ((16, 32), (64, 32), (64, 64)):
    sizes = {"D": 128, "FORWARD": 512, "EPS": 1e-6, "ROWS": rows, "BLOCK_F": features, "BLOCK_D": 128}
    print(f"MLP, {rows} rows, {features} features a step:", registers(modulated_mlp_kernel, kinds, sizes))

# %% [markdown]
# ## Production context
# - `repository_after/mmdit/ops/stack_rows/kernel.py::rows_kernel` is v1, v2 and the next layer's q, k and v in one
#   kernel for both streams: a row leaves its program only for attention. For few rows four programs share an MLP's
#   features.
# - `repository_after/mmdit/ops/stack_rows/kernel_hopper_quad.py::rows_quad_kernel` is the same for Hopper, by hand.
# - `repository_after/mmdit/ops/gated_residual/kernel.py::gated_residual_kernel` is the diagram's middle way, with the
#   next norm behind it, where a row of sums is too wide for a program.
#
# ## Thinking questions
# 1. (Change a line, run, explain.) Which table row spills? Try it with `num_warps=8` in `registers`, and with 32 rows.
# 2. With 16 rows a program instead of 64, how many MB of weights are read? When is that right all the same?
# 3. What would the norm need if a row's columns were split over two programs? Count launches and bytes.
# 4. Features are cut into blocks without any correction, keys (lesson 06) only with one. Why?
#
# ## Summary
# - What needs one column fuses with any product; a norm needs the row, so the tile is as wide as D.
# - Two products chain where the first's columns are the second's rows: the hidden layer never exists.
# - Fusing ends at registers, T x D sums, and at weights that every program reads.
