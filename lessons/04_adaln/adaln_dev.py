# %% [markdown]
# # 04 · AdaLN: a norm, modulated, in one pass
#
# ## Objectives
#
# After this lesson you can
# - centre a row in a tile whose surplus lanes must stay zero, and say why `mean(x²) - mean(x)²` is no variance;
# - give every row of a sample the same scale and shift without ever writing the broadcast tensor;
# - serve LayerNorm and RMSNorm, with and without weight, from one kernel by `tl.constexpr`;
# - write `layernorm_adaln` and `rmsnorm_adaln`, the two functions before every branch of an MMDiT block.

# %%
from lessons.kit import DEVICE, check, expect, launches, peak_bytes, poisoned, registers, roofline, seconds

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

torch.manual_seed(4)

# %% [markdown]
# ## Foundations
#
# A diffusion transformer hears of its time step through its norms (Peebles & Xie, 2023): their affine part is no weight
# but an input, computed from the condition once per sample:
#
# $$h = \text{norm}(x) \cdot (1 + \text{scale}) + \text{shift}$$
#
# x is (B, L, D), scale and shift are (B, D); a condition of zero leaves the plain norm. All L rows of a sample share
# one scale and shift; so a tile must not cross into the next sample, and the grid counts tiles *per sample*:
#
# ```text
#   program   x (B = 2, L = 5, D), ROWS = 4           scale, shift (B, D)
#
#     0       [ sample 0, rows 0 1 2 3        ] <--+
#     1       [ sample 0, row  4  (. . .)     ] <--+---  row 0 of each
#                                 ^^^^^ masked by o_l < L: sample 1 starts here
#     2       [ sample 1, rows 0 1 2 3        ] <--+
#     3       [ sample 1, row  4  (. . .)     ] <--+---  row 1 of each
#
#   tiles = cdiv(L, ROWS)    grid = B * tiles    batch = program // tiles
# ```
#
# LayerNorm subtracts the mean first, and that wakes the masked lanes: they were loaded as 0, and 0 - mean is not 0. It
# would enter the variance. `tl.where(mask, a, b)` takes a where the mask holds, else b:
#
# ```text
#   D = 3 in a tile of 4         1    2    6 |  0      mean 9 / 3 = 3
#   x - mean                    -2   -1    3 | -3      <- this lane was 0
#   sum of squares               4 +  1 +  9 +  9 = 23 instead of 14
#   tl.where(m, x - mean, 0)    -2   -1    3 |  0      14
# ```
#
# The variance could be had in one pass, as mean(x²) - mean(x)²: two numbers of the size of mean², whose difference
# keeps few digits where the mean is large. Our row lies in registers: a second pass over it reads no memory at all.
#
# ## Implementation
#
# The oracle is PyTorch's own norms in fp64.


# %%
def adaln_oracle(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6, norm=F.layer_norm, weight=None) -> Tensor:
    """norm(x) * weight * (1 + scale) + shift, computed in fp64, returned in x's dtype."""
    normed = norm(x.double(), x.shape[2:], None if weight is None else weight.double(), eps=eps)
    return (normed * (1 + scale.double()[:, None]) + shift.double()[:, None]).to(x.dtype)


# %% [markdown]
# ### v1: a row per program, LayerNorm and its modulation in one kernel
#
# Lesson 03's row kernel, a mean before and a modulation after. Row r of all B * L belongs to sample r // L.


# %% nbgrader={"grade": false, "grade_id": "04-adaln-row", "locked": false, "schema_version": 3, "solution": true, "task": false}
@triton.jit
def adaln_row_kernel(p_x, p_scale, p_shift, p_out, L, D: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr):
    """Grid: (B * L,). x and out (B, L, D), scale and shift (B, D), all contiguous."""
    ### BEGIN SOLUTION
    row = tl.program_id(0).to(tl.int64)
    batch = row // L
    o_d = tl.arange(0, BLOCK)
    m_d = o_d < D
    b_x = tl.load(p_x + row * D + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_x = tl.where(m_d, b_x - tl.sum(b_x, 0) / D, 0.0)
    b_normed = b_x * tl.rsqrt(tl.sum(b_x * b_x, 0) / D + EPS)
    b_scale = tl.load(p_scale + batch * D + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_shift = tl.load(p_shift + batch * D + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_out = b_normed * (1.0 + b_scale) + b_shift
    tl.store(p_out + row * D + o_d, b_out.to(p_out.dtype.element_ty), mask=m_d)
    ### END SOLUTION


def adaln_v1(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """x (B, L, D), scale and shift (B, D), all contiguous -> (B, L, D), of x's dtype."""
    batch, length, dim = x.shape
    out = torch.empty_like(x)
    adaln_row_kernel[(batch * length,)](x, scale, shift, out, length, dim, eps, triton.next_power_of_2(dim))
    return out


# %% nbgrader={"grade": true, "grade_id": "04-adaln-row-test", "locked": true, "points": 45, "schema_version": 3, "solution": false, "task": false}
def test_row() -> None:
    x, (scale, shift) = torch.randn(3, 5, 48, device=DEVICE) + 2, torch.randn(2, 3, 48, device=DEVICE)
    one, zero = x[:1].contiguous(), torch.zeros(1, 48, device=DEVICE)
    got = adaln_v1(one, zero - 1, zero)
    check("v1, scale -1", got, torch.zeros_like(one), hint="the factor is 1 + scale, not scale")
    hint = "tl.where(m_d, x - mean, 0): masked lanes must be zero again before they are squared"
    check("v1, scale 0", adaln_v1(one, zero, zero), adaln_oracle(one, zero, zero), hint=hint)
    hint = "each sample takes its own row of scale and shift: batch = row // L"
    check("v1, 3 samples", adaln_v1(x, scale, shift), adaln_oracle(x, scale, shift), hint=hint)
    cancels = "mean(x²) - mean(x)² cancels: subtract the mean first, then square"
    for name, t, hint in (("mean 4098", x + 4096, cancels), ("tiny rows", x * 1e-3, "eps is added inside the root")):
        check(f"v1, {name}", adaln_v1(t, scale, shift), adaln_oracle(t, scale, shift), tolerance=1e-3, hint=hint)


test_row()

# %% [markdown]
# ### v2, production: tiles of one sample's rows, any strides, both norms
#
# v1 asks for scale and shift once per *row*: it loads three rows to norm one. A tile asks once for all of its rows.
# `CENTER` and `p_weight is None` are known when Triton compiles, so a branch on them costs nothing: four kernels are
# made from one text. `L` is marked `do_not_specialize`, as Triton would else compile again for an L that 16 divides,
# and for L = 1. In a kernel cdiv is `tl.cdiv`. A (B, 1, D) scale is `reshape`d to (B, D) for free; one that is expanded
# from a single sample has a batch stride of 0, and the kernel takes any stride.


# %% nbgrader={"grade": false, "grade_id": "04-adaln-tile", "locked": false, "schema_version": 3, "solution": true, "task": false}
@triton.jit(do_not_specialize=["L"])
def norm_adaln_forward_kernel(
    p_x,  # (B, L, D), strides (x_batch, x_row, 1)
    p_scale,  # (B, D), strides (scale_batch, 1)
    p_shift,  # (B, D), strides (shift_batch, 1)
    p_weight,  # (D,) or None
    p_out,  # (B, L, D), contiguous
    x_batch,
    x_row,
    scale_batch,
    shift_batch,
    L,
    D: tl.constexpr,
    EPS: tl.constexpr,
    CENTER: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = norm(x) * weight * (1 + scale) + shift. Grid: (B * cdiv(L, ROWS),), a program per ROWS rows of a sample."""
    ### BEGIN SOLUTION
    tiles = tl.cdiv(L, ROWS)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    o_l = (tl.program_id(0) % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    o_d = tl.arange(0, BLOCK_D)[None, :]
    m_d = o_d < D
    m_x = (o_l < L) & m_d
    b_x = tl.load(p_x + batch * x_batch + o_l * x_row + o_d, mask=m_x, other=0.0).to(tl.float32)  # (ROWS, BLOCK_D)
    b_gain = 1.0 + tl.load(p_scale + batch * scale_batch + o_d, mask=m_d, other=0.0).to(tl.float32)  # (1, BLOCK_D)
    b_shift = tl.load(p_shift + batch * shift_batch + o_d, mask=m_d, other=0.0).to(tl.float32)
    if p_weight is not None:
        b_gain *= tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    if CENTER:
        b_x = tl.where(m_x, b_x - tl.sum(b_x, 1, keep_dims=True) / D, 0.0)
    b_normed = b_x * tl.rsqrt(tl.sum(b_x * b_x, 1, keep_dims=True) / D + EPS)
    b_out = b_normed * b_gain + b_shift
    tl.store(p_out + (batch * L + o_l) * D + o_d, b_out.to(p_out.dtype.element_ty), mask=m_x)
    ### END SOLUTION


def norm_adaln(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None, eps: float, center: bool) -> Tensor:
    ### BEGIN SOLUTION
    batch, length, dim = x.shape
    scale, shift = scale.reshape(batch, dim), shift.reshape(batch, dim)
    x, scale, shift = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, scale, shift))
    weight = None if weight is None else weight.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(dim)
    rows = max(1, 2048 // block)
    strides = (x.stride(0), x.stride(1), scale.stride(0), shift.stride(0))
    if out.numel():
        grid = (batch * triton.cdiv(length, rows),)
        norm_adaln_forward_kernel[grid](x, scale, shift, weight, out, *strides, length, dim, eps, center, rows, block)
    return out
    ### END SOLUTION


def layernorm_adaln(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift; x (B, L, D); scale, shift (B, D) or (B, 1, D); any strides -> x's dtype."""
    return norm_adaln(x, scale, shift, None, eps, True)


def rmsnorm_adaln(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6, weight: Tensor | None = None) -> Tensor:
    """RMSNorm(x) * weight * (1 + scale) + shift; weight (D,) or None, the others as layernorm_adaln's."""
    return norm_adaln(x, scale, shift, weight, eps, False)


# %% nbgrader={"grade": true, "grade_id": "04-adaln-tile-test", "locked": true, "points": 55, "schema_version": 3, "solution": false, "task": false}
def test_tile() -> None:
    x, (scale, shift) = torch.randn(3, 13, 48, device=DEVICE) + 2, torch.randn(2, 3, 48, device=DEVICE)
    weight, guarded, apart = torch.randn(48, device=DEVICE), torch.full((42, 48), 7.0, device=DEVICE), poisoned(x, 3)
    layer, rms = adaln_oracle(x, scale, shift), adaln_oracle(x, scale, shift, norm=F.rms_norm, weight=weight)
    strides = (*apart.stride()[:2], 48, 48)
    norm_adaln_forward_kernel[(12,)](apart, scale, shift, None, guarded, *strides, 13, 48, 1e-6, True, 4, 64)
    changed = int((guarded[39:] != 7.0).sum())
    expect(changed == 0, f"v2 writes past the last sample: expected 0 values, got {changed} (o_l < L in the mask)")
    hint = "a tile holds rows of one sample: batch = program // cdiv(L, ROWS), in x, out, scale and shift"
    check("v2, tiles of 4 rows", guarded[:39].view(3, 13, 48), layer, hint=hint)
    hint = "the grid has cdiv(L, ROWS) tiles for *each* sample, or the last rows are never written"
    check("v2, LayerNorm", layernorm_adaln(x, scale, shift), layer, hint=hint)
    got = rmsnorm_adaln(x, scale, shift, weight=weight)
    check("v2, RMSNorm", got, rms, hint="no mean where CENTER is False; the weight scales the norm, not the shift")
    hint = "each tensor has strides of its own; scale and shift are reshaped to (B, D)"
    got = layernorm_adaln(poisoned(x, 8), poisoned(scale, 8), poisoned(shift, 8)[:, None])
    check("v2, strides, (B, 1, D)", got, layer, hint=hint)
    shared = scale[:1].expand(3, 48)
    got = layernorm_adaln(x, shared, shift)
    check("v2, one scale for all", got, adaln_oracle(x, shared, shift), hint="scale.stride(0) is 0 here")
    ### BEGIN HIDDEN TESTS
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    check("v2, last stride not 1", layernorm_adaln(turned, scale, shift), layer, hint="make the last stride 1 first")
    expected = adaln_oracle(x * 1e-3, scale, shift, 0.5, F.rms_norm)
    check("v2, eps 0.5", rmsnorm_adaln(x * 1e-3, scale, shift, 0.5), expected, hint="eps inside the root, as given")
    half = [t.half() for t in (x, scale, shift)]
    check("v2, fp16", layernorm_adaln(*half), adaln_oracle(*half), tolerance=1e-3, hint="fp32 from load to store")
    expect(layernorm_adaln(x[:, :0], scale, shift).shape == (3, 0, 48), "v2: an empty x gives an empty out")
    ### END HIDDEN TESTS


test_tile()

# %% [markdown]
# ## Systems analysis
#
# Operators hand tensors on through memory, a fused kernel through registers. (Scale and shift stay in the cache.)
#
# ```text
#                three operators: 6 passes              one kernel: 2 passes
#   memory     x       n  n       m  m       h          x                  h
#              |       ^  |       ^  |       ^          |                  ^
#   registers  +-norm--+  +-* 1+s-+  +-+ t---+          +-norm, * 1+s, + t-+
# ```


# %%
def eager(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[2],), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


for B, L, D in ((1, 186, 128), (128, 186, 128), (8, 4096, 3072)):
    least = {name: roofline(passes * B * L * D * 2, 0)["bytes"] for name, passes in (("operators", 6), ("fused", 2))}
    print(f"{B:3} x {L:4} x {D:4} in 16 bits, least us on an H200:", {name: round(t, 2) for name, t in least.items()})
x, (scale, shift) = torch.randn(4, 186, 128, device=DEVICE), torch.randn(2, 4, 128, device=DEVICE)
for name, call in {"eager": eager, "v1": adaln_v1, "fused": layernorm_adaln}.items():
    peak, kernels = peak_bytes(call, x, scale, shift) / (x.numel() * 4), launches(call, x, scale, shift)
    print(f"{name:5} holds {peak:.2f} times x beyond x, Triton kernels {kernels}")
    if time := seconds(call, x, scale, shift):
        print(f"{name:5} takes {time * 1e6:.1f} us here")

# %% [markdown]
# The variance of rows with a mean, by one pass and by two; then what `CENTER` and a tile's height cost in registers.

# %%
for mean in (1, 100, 10_000):
    row = torch.randn(64, 128) + mean
    one, two = row.square().mean(-1) - row.mean(-1).square(), (row - row.mean(-1, keepdim=True)).square().mean(-1)
    truth = row.double().var(-1, correction=0)
    print(f"mean {mean:5}: relative error", *(f"{(v - truth).norm() / truth.norm():.0e}" for v in (one, two)))
integers = dict.fromkeys(("x_batch", "x_row", "scale_batch", "shift_batch", "L"), "i32")
signature = dict.fromkeys(("p_x", "p_scale", "p_shift", "p_out"), "*fp16") | integers
for center, rows in ((False, 16), (True, 16), (True, 64)):
    constants = {"p_weight": None, "D": 128, "EPS": 1e-6, "CENTER": center, "ROWS": rows, "BLOCK_D": 128}
    print(f"center {center}, {rows} rows: {registers(norm_adaln_forward_kernel, signature, constants)}")

# %% [markdown]
# ## Production context
#
# - `repository_after/mmdit/ops/norm_adaln/kernel.py::norm_adaln_forward_kernel` is this kernel, with one constant more.
# - `repository_after/mmdit/ops/norm_adaln/op.py::layernorm_adaln` checks its inputs, and chooses between kernel and
#   PyTorch. Its record on an H200 at 8 x 4096 x 3072 is 103 us; compare with the floor printed above.
# - `repository_after/mmdit/runtime/launch.py::launch` calls the compiled kernel without Triton's look-up: at
#   1 x 186 x 128 the bytes take less than a tenth of a microsecond and the launch about four.
# - `repository_after/mmdit/ops/gated_residual/kernel.py::gated_residual_kernel` appends this norm to the residual that
#   comes before it: not even x is read again. Lesson 08 goes there.
#
# ## Thinking questions
#
# 1. Remove `tl.where` from v2 and write 64 for each 48 in `test_tile`. Why does all pass? What was 48 good for?
# 2. At mean 4098 v1's error is a thousand times that of the others, in two passes as well. Which value was rounded, and
#    to what? (`torch.finfo(torch.float32).eps * 4096`.) Would a second mean, of x - mean, mend it?
# 3. Why may the weight be multiplied into `b_gain`, and not into `b_shift`?
# 4. A grid of cdiv(B * L, ROWS) works too, with batch = row // L for each row of a tile. What does scale's load become?
# 5. At which B * L does the fused kernel's floor, for D = 128 in 16 bits, pass the four microseconds of a launch?
#
# ## Summary
#
# - Masked lanes must be zero whenever they are summed, not merely when loaded.
# - Subtract the mean first: a second pass over registers is nearly free, a cancelled digit is gone.
# - Broadcasting is an address, not a tensor: rows of a sample read the same scale, a stride of 0 serves all samples.
# - Fusing took the passes over memory from six to two, and three launches to one.
