# %% [markdown]
# # 03 · RMSNorm: one row, one sum, one root
#
# ## Objectives
#
# After this lesson you can
# - reduce over a row that is held in a tile wider than the row, without the extra lanes counting;
# - say where fp32 is needed in a 16-bit kernel, and show the input on which it is;
# - go from a row per program to a tile of rows, and measure what that changes in the compiled kernel;
# - write `rmsnorm(x, weight, eps)`, which takes any strides and moves the fewest bytes that RMSNorm can.

# %%
from lessons.kit import DEVICE, check, expect, launches, peak_bytes, poisoned, registers, roofline, seconds

import torch
import triton
import triton.language as tl
from torch import Tensor

torch.manual_seed(3)

# %% [markdown]
# ## Foundations
#
# RMSNorm (Zhang & Sennrich, 2019) scales each row $x$ of $D$ numbers by one factor of its own:
#
# $$\text{out}_d = \frac{x_d}{\sqrt{\frac{1}{D}\sum_i x_i^2 + \varepsilon}} \cdot w_d$$
#
# An MMDiT block applies it to all queries, all keys and all attention outputs. Every output of a row depends on every
# input of that row, so the kernel needs its first *reduction*: `tl.sum`. A tile's width is a power of two and a row's
# seldom is; lesson 02 masked the surplus lanes to keep out of foreign memory. Now they must also not *count*:
#
# ```text
#  column    0    1   ..   46   47 | 48   49   ..   63
#          +----+----+----+----+----+----+----+----+----+
#  load    | x0 | x1 | .. | x46| x47|  0    0   ..    0 |   mask=m_d, other=0.0
#          +----+----+----+----+----+----+----+----+----+
#  square   \____\____ tl.sum: 64 numbers, 48 of them yours
#                        / D      by 48, never by 64
#                        + eps    before the root: zeros give 0 / sqrt(eps)
#                        rsqrt    one factor for the whole row
#  store   | y0 | y1 | .. | y46| y47|   not written     |   mask=m_d
# ```
#
# Three slips leave no trace on `torch.randn(64, 64)`: no mask (64 *is* a power of two), dividing by `BLOCK_D`
# (likewise), and eps outside the root (the mean square is about 1, eps 1e-6). The tests therefore use D = 48, padding
# that is NaN, and rows so small that eps decides. In 16 bits there is a fourth: fp16 ends at 65504 and keeps 11 bits,
# as the next cell shows. So load 16 bits, compute in fp32, store 16 bits: registers are cheap, bytes are not.

# %%
half = torch.tensor([256.0, 2048.0], dtype=torch.float16)
print("256² in fp16:", (half[0] * half[0]).item(), "   2048 + 1 in fp16:", (half[1] + 1).item())

# %% [markdown]
# ## Implementation
#
# ### The oracle
#
# Before any kernel, the truth: the formula in fp64, by plain PyTorch. The tests below compare with it.


# %% nbgrader={"grade": false, "grade_id": "03-rmsnorm-oracle", "locked": false, "schema_version": 3, "solution": true, "task": false}
def rmsnorm_oracle(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x (..., D), weight (D,) or None: RMSNorm over the last axis, computed and returned in fp64."""
    ### BEGIN SOLUTION
    wide = x.double()
    out = wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + eps)
    return out if weight is None else out * weight.double()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "03-rmsnorm-oracle-test", "locked": true, "points": 10, "schema_version": 3, "solution": false, "task": false}
def test_oracle() -> None:
    x = torch.tensor([[3.0, 4.0], [0.3, -0.4]], device=DEVICE)
    by_hand = torch.tensor([[0.6, 0.8], [0.6, -0.8]], dtype=torch.float64, device=DEVICE) * 2**0.5
    check("oracle by hand", rmsnorm_oracle(x, None, 1e-30), by_hand, hint="divide by the root of the *mean* square")
    small, weight = torch.randn(5, 48, device=DEVICE) * 1e-3, torch.randn(48, device=DEVICE)
    expected = torch.nn.functional.rms_norm(small.double(), (48,), weight.double(), 1e-6)
    check("oracle, tiny rows", rmsnorm_oracle(small, weight, 1e-6), expected, hint="eps belongs inside the root")


test_oracle()

# %% [markdown]
# ### v1: a program takes a row
#
# `tl.sum(b, 0)` adds along axis 0 of the tile, here its only one; `tl.rsqrt` is one over the root; `.to(tl.float32)`
# converts, and `p_out.dtype.element_ty` is the dtype that p_out points to. D and eps are `tl.constexpr`: a kernel is
# compiled per width, and where D = BLOCK_D the compiler sees that the mask is always true. It sees as well which
# pointer is None: `if p_weight is not None:` costs nothing when it runs.


# %% nbgrader={"grade": false, "grade_id": "03-rmsnorm-row", "locked": false, "schema_version": 3, "solution": true, "task": false}
@triton.jit
def rmsnorm_row_kernel(p_x, p_weight, p_out, x_row, D: tl.constexpr, EPS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Grid: (R,). x (R, D), strides (x_row, 1); weight (D,) or None; out (R, D), contiguous."""
    ### BEGIN SOLUTION
    row = tl.program_id(0)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_x = tl.load(p_x + row * x_row + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_out = b_x * tl.rsqrt(tl.sum(b_x * b_x, 0) / D + EPS)
    if p_weight is not None:
        b_out *= tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    tl.store(p_out + row * D + o_d, b_out.to(p_out.dtype.element_ty), mask=m_d)
    ### END SOLUTION


def rmsnorm_v1(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x (R, D) with a last stride of 1, weight (D,) or None -> (R, D), of x's dtype."""
    rows, dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rmsnorm_row_kernel[(rows,)](x, weight, out, x.stride(0), dim, eps, triton.next_power_of_2(dim))
    return out


# %% nbgrader={"grade": true, "grade_id": "03-rmsnorm-row-test", "locked": true, "points": 40, "schema_version": 3, "solution": false, "task": false}
def test_row() -> None:
    square, weight = torch.randn(4, 64, device=DEVICE), torch.randn(64, device=DEVICE)
    expected = rmsnorm_oracle(square, weight, 1e-6).float()
    check("v1, 64 wide", rmsnorm_v1(square, weight, 1e-6), expected, hint="x / sqrt(mean(x²) + eps) * weight")
    x, weight = torch.randn(5, 48, device=DEVICE), weight[:48].clone()
    guarded = torch.full((6, 48), 7.0, device=DEVICE)
    rmsnorm_row_kernel[(5,)](x, weight, guarded, 48, 48, 1e-6, 64)
    changed = int((guarded[5] != 7.0).sum())
    expect(changed == 0, f"v1 writes past the last row: expected 0 values, got {changed} (mask=m_d of the store)")
    expected = rmsnorm_oracle(x, weight, 1e-6).float()
    got = rmsnorm_v1(poisoned(x, 16), weight, 1e-6)
    expect(bool(got.isfinite().all()), "v1 reads nothing of the padding: the load of x has mask=m_d, other=0.0")
    check("v1, 48 in a tile of 64", got, expected, hint="the mean divides by D = 48, not BLOCK_D; masked lanes load 0")
    expected = rmsnorm_oracle(x * 1e-3, weight, 1e-6).float()
    check("v1, tiny rows", rmsnorm_v1(x * 1e-3, weight, 1e-6), expected, hint="eps is added inside the root, once")
    large = (x * 200).half()
    got = rmsnorm_v1(large, weight, 1e-6)
    hint = "x² overflowed fp16, or its sum lost digits: convert to tl.float32 right after the load"
    check("v1, fp16, large", got, rmsnorm_oracle(large, weight, 1e-6).half(), tolerance=1e-3, hint=hint)


test_row()

# %% [markdown]
# ### v2, production: a program takes a tile of rows, of a tensor with any strides
#
# A row of D = 128 is one number for each of a program's 128 threads (four *warps* of 32): each loads two bytes where
# it could load sixteen at once, and four warps must meet to add up one row. A tile of `ROWS` rows mends both. Rows
# stand in a column `[:, None]`, columns in a row `[None, :]`; sums of such offsets and `&` of such masks broadcast to
# (ROWS, BLOCK_D). `tl.sum(b, 1, keep_dims=True)` adds along the columns; its (ROWS, 1) broadcasts back. Row numbers
# are made 64-bit, `.to(tl.int64)`, as row * stride may pass 2³¹.
#
# The wrapper makes rows of any x (..., D): `reshape` is free where one row stride describes them all and copies where
# none does; a last stride other than 1 is made contiguous.


# %% nbgrader={"grade": false, "grade_id": "03-rmsnorm-tile", "locked": false, "schema_version": 3, "solution": true, "task": false}
@triton.jit
def rmsnorm_kernel(
    p_x,  # (R, D), strides (x_row, 1)
    p_weight,  # (D,) or None
    p_out,  # (R, D), contiguous
    x_row,
    R,
    D: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = x / sqrt(mean(x^2) + EPS) * weight. Grid: (cdiv(R, ROWS),), one program per ROWS rows."""
    ### BEGIN SOLUTION
    o_r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    o_d = tl.arange(0, BLOCK_D)[None, :]
    m_d = o_d < D
    m_x = (o_r < R) & m_d
    b_x = tl.load(p_x + o_r * x_row + o_d, mask=m_x, other=0.0).to(tl.float32)  # (ROWS, BLOCK_D)
    b_out = b_x * tl.rsqrt(tl.sum(b_x * b_x, 1, keep_dims=True) / D + EPS)
    if p_weight is not None:
        b_out *= tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)  # (1, BLOCK_D)
    tl.store(p_out + o_r * D + o_d, b_out.to(p_out.dtype.element_ty), mask=m_x)
    ### END SOLUTION


def rmsnorm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last axis. x (..., D), any strides; weight (D,) or None -> (..., D), contiguous, x's dtype."""
    ### BEGIN SOLUTION
    dim = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = x.reshape(-1, dim)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    weight = None if weight is None else weight.contiguous()
    block = triton.next_power_of_2(dim)
    tile = max(1, 2048 // block)
    if rows.shape[0]:
        grid = (triton.cdiv(rows.shape[0], tile),)
        rmsnorm_kernel[grid](rows, weight, out, rows.stride(0), rows.shape[0], dim, eps, tile, block)
    return out
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "03-rmsnorm-tile-test", "locked": true, "points": 50, "schema_version": 3, "solution": false, "task": false}
def test_tile() -> None:
    x, weight, eps = torch.randn(2, 13, 48, device=DEVICE), torch.randn(48, device=DEVICE), 2.0**-23
    expected = rmsnorm_oracle(x, weight, eps).float()
    guarded = torch.full((29, 48), 7.0, device=DEVICE)
    rmsnorm_kernel[(7,)](poisoned(x.reshape(26, 48), 16), weight, guarded, 64, 26, 48, eps, 4, 64)
    changed = int((guarded[26:] != 7.0).sum())
    expect(changed == 0, f"v2 writes past row 26: expected 0 values, got {changed} (o_r < R in the store's mask)")
    got = guarded[:26].reshape(2, 13, 48)
    expect(bool(got.isfinite().all()), "v2 reads nothing of the padding: the load's mask is (o_r < R) & (o_d < D)")
    hint = "each row has a sum of its own, tl.sum(b, 1, keep_dims=True), and divides by D"
    check("v2, tail of rows", got, expected, hint=hint)
    hint = "reshape x to rows; the stride between them is rows.stride(0), and the grid covers all of them"
    check("v2, rows apart", rmsnorm(poisoned(x, 8), weight, eps), expected, hint=hint)
    tall = x.repeat(1, 5, 1)[..., :16]
    check("v2, 130 rows", rmsnorm(tall, None, eps), rmsnorm_oracle(tall, None, eps).float(), hint=hint)
    swapped = x.transpose(1, 2).contiguous().transpose(1, 2)
    check("v2, last stride not 1", rmsnorm(swapped, weight, eps), expected, hint="make the last stride 1 first")
    check("v2, no weight", rmsnorm(x, None, eps), rmsnorm_oracle(x, None, eps).float(), hint="None: a weight of ones")
    expected = rmsnorm_oracle(x * 1e-4, weight, eps).float()
    check("v2, tiny rows", rmsnorm(x * 1e-4, weight, eps), expected, hint="eps is added inside the root, once")
    large = (x * 200).half()
    expected = rmsnorm_oracle(large, weight, eps).half()
    check("v2, fp16", rmsnorm(large, weight, eps), expected, tolerance=1e-3, hint="fp32 between the load and the store")
    ### BEGIN HIDDEN TESTS
    for t in (torch.randn(7, device=DEVICE), torch.randn(3, 2100, device=DEVICE)):
        expected = rmsnorm_oracle(t, None, eps).float()
        check(f"v2, {tuple(t.shape)}", rmsnorm(t, None, eps), expected, hint="one axis is enough; a tile has a row")
    expect(rmsnorm(x[:0], weight, eps).shape == (0, 13, 48), "v2: an empty x gives an empty out of its shape")
    ### END HIDDEN TESTS


test_tile()

# %% [markdown]
# ## Systems analysis
#
# RMSNorm does about four operations on a number that takes four bytes to read and write in 16 bits: bytes bound it by
# far (lesson 01). Eager PyTorch passes over memory for each operator of the formula, and holds what lies between them.


# %%
def eager(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


x, weight = torch.randn(8, 186, 128, device=DEVICE).half(), torch.randn(128, device=DEVICE)
size = x.numel() * x.element_size()
least = 2 * size + weight.numel() * weight.element_size()
print(f"floor: {least:,} bytes, at least {roofline(least, 0)['bytes']:.2f} us on an H200")
for name, call in {"eager": eager, "v2": rmsnorm}.items():
    peak, kernels = peak_bytes(call, x, weight, 1e-6), launches(call, x, weight, 1e-6)
    print(f"{name:5} holds {peak / size:.2f} times x beyond x, Triton kernels {kernels}")
    if time := seconds(call, x, weight, 1e-6):
        print(f"{name:5} takes {time * 1e6:.1f} us here")

# %% [markdown]
# Now the kernel itself: `registers` compiles it for an sm_90 GPU, without one. A multiprocessor has 65536 registers:
# at 32 a thread all 2048 of its threads fit, at 128 a quarter of them. Threads of one warp add up by shuffles; warps
# meet in shared memory, at a barrier. In the output 16 bytes are the four sums of a row on four warps, and 512 the
# weight, 128 x 4 bytes, on its way to the threads that need it: with 16 rows no sum goes through shared memory.
#
# ```text
#   ROWS = 1: four warps share a row        ROWS = 16: a warp has its own rows
#
#   w0 [columns  0.. 31] -> s0 --+          w0 [rows 0, 1,  8,  9] -> sums
#   w1 [columns 32.. 63] -> s1 --+ shared   w1 [rows 2, 3, 10, 11] -> sums
#   w2 [columns 64.. 95] -> s2 --+ memory,  w2 [rows 4, 5, 12, 13] -> sums
#   w3 [columns 96..127] -> s3 --+ barrier  w3 [rows 6, 7, 14, 15] -> sums
# ```

# %%
signature = {"p_x": "*fp16", "p_weight": "*fp32", "p_out": "*fp16", "x_row": "i32", "R": "i32"}
for dim, rows in ((128, 1), (128, 16), (128, 128), (16384, 1)):
    compiled = registers(rmsnorm_kernel, signature, {"D": dim, "EPS": 1e-6, "ROWS": rows, "BLOCK_D": dim})
    print(f"D {dim:5}, {rows:3} rows a program: {compiled}")

# %% [markdown]
# ## Production context
#
# - `repository_after/mmdit/ops/norm_adaln/kernel.py::_normalize` is this tile, with a mean to subtract (lesson 04).
# - `repository_after/mmdit/ops/norm_adaln/tuning.py::forward_tiles` is your `max(1, 2048 // block)`, measured on an
#   H200: 2048 or 4096 elements by how many bytes there are, two rows at least of wide ones, 4 or 8 warps.
# - `repository_after/mmdit/norm.py::rms_normalize` is what runs where no kernel can. It divides by the row's largest
#   magnitude first, since fp32 too overflows: at the square of 1.8e19.
# - `repository_after/mmdit/ops/pack_heads/kernel.py::pack_heads_kernel` norms queries and keys between their projection
#   and RoPE: no norm of its own is launched there. The cheapest pass over memory is the one that never happens.
#
# ## Thinking questions
#
# 1. Give the masked lanes `other=1.0` in v1. Which checks fail, and why does "64 wide" pass?
# 2. Put a row of zeros into x. What is out, and what would it be with eps = 0?
# 3. Run `rmsnorm(torch.full((1, 48), 1e20), None, 1e-6)`. Mend it as `rms_normalize` does. What does it cost?
# 4. `x[:, ::2]` of a (2, 26, 48) tensor: does `reshape(-1, 48)` copy? And `x[:, :13]`? Ask `data_ptr()`.
# 5. Compile D = 16384 with `num_warps=8`, then D = 32768 with 4. What happens to registers, shared bytes and spills?
#
# ## Summary
#
# - A reduction makes masked lanes matter twice: they must not read, and they must not count.
# - 16 bits are for memory, fp32 is for arithmetic; the conversion sits right beside the load and the store.
# - One launch and no temporaries, where eager takes a pass over memory for every operator.
# - Tests that can see eps, the tail and the range are the only proof that a norm is right.
