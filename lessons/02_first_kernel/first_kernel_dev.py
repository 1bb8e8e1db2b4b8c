# %% [markdown]
# # 02 · A first kernel and its mask
#
# ## Objectives
#
# After this lesson you can
# - read a Triton kernel as what it is: one small program, run once per block of the data;
# - compute a grid, a program's offsets, and the mask that keeps it inside its tensors;
# - address rows of a strided tensor, and give all rows of a sample the same vector;
# - write `gated_residual`, the end of every branch of an MMDiT block, in three passes over memory instead of five.

# %%
from lessons.kit import DEVICE, check, expect, launches, peak_bytes, poisoned, registers, roofline, seconds

import torch
import triton
import triton.language as tl
from torch import Tensor

torch.manual_seed(2)

# %% [markdown]
# ## Foundations
#
# A kernel is written for one *program*. The launch starts many, the *grid*, and each asks for its number and works out
# which block of the data is its own. Blocks have a fixed width, a power of two; data has any. So the last program
# overhangs, and a *mask* says which of its lanes are real:
#
# ```text
#   n = 10, BLOCK = 4: a grid of cdiv(10, 4) = 3 programs
#
#   memory   | 0   1   2   3 | 4   5   6   7 | 8   9 | not yours
#   program  |       0       |       1       |       2       |
#   offsets  | 0   1   2   3 | 4   5   6   7 | 8   9  10  11 | program * 4 + ..
#   mask     | t   t   t   t | t   t   t   t | t   t   f   f | offsets < n
# ```
#
# What you need of Triton, all of it:
#
# | written | is |
# | --- | --- |
# | `tl.program_id(0)` | this program's number in the grid |
# | `tl.arange(0, BLOCK)` | the lanes 0 .. BLOCK - 1; BLOCK is a power of two |
# | `p_x + offsets` | p_x is the address of x's first number; an address for each lane |
# | `tl.load(p, mask=m, other=0.0)` | the numbers at these addresses; `other` where m is false, and no access there |
# | `tl.store(p, values, mask=m)` | writes the values where m is true |
# | `BLOCK: tl.constexpr` | known when the kernel is compiled, as a block's width must be |
# | `triton.cdiv(n, b)`, `triton.next_power_of_2(n)` | outside kernels: n / b rounded up; the least power from n on |
#
# `kernel[grid](arguments)` launches: a tensor arrives as its address, and *nothing else of it* does. Shape, strides and
# the end of the tensor are what you pass and what you check.
#
# Without a GPU Triton's interpreter runs the programs one after the other, in NumPy. On a GPU they run at the same
# time, in no order: a program must not need what another one writes.
#
# ## Implementation
#
# ### On paper
#
# First without Triton: the loop over programs that the GPU does for you, and in its body what will be the kernel.


# %% nbgrader={"grade": false, "grade_id": "02-first-paper", "locked": false, "schema_version": 3, "solution": true, "task": false}
def offsets_and_mask(program: int, block: int, n: int) -> tuple[Tensor, Tensor]:
    """The offsets of a program's lanes, and which of them are below n; both (block,)."""
    ### BEGIN SOLUTION
    offsets = program * block + torch.arange(0, block)
    return offsets, offsets < n
    ### END SOLUTION


def add_on_paper(x: Tensor, y: Tensor, block: int) -> Tensor:
    """x + y for (n,) on the CPU, block by block."""
    out = torch.full_like(x, float("nan"))
    for program in range(triton.cdiv(len(x), block)):
        offsets, mask = offsets_and_mask(program, block, len(x))
        mine = offsets[mask]
        out[mine] = x[mine] + y[mine]
    return out


# %% nbgrader={"grade": true, "grade_id": "02-first-paper-test", "locked": true, "points": 15, "schema_version": 3, "solution": false, "task": false}
def test_paper() -> None:
    offsets, mask = offsets_and_mask(2, 4, 10)
    expected = torch.tensor([8, 9, 10, 11])
    check("program 2's offsets", offsets, expected, hint="program * block + arange: programs are a block apart")
    expected = torch.tensor([True, True, False, False])
    check("program 2's mask", mask, expected, hint="a lane is real where its offset is below n, not up to n")
    x, y = torch.randn(2, 10)
    check("add on paper", add_on_paper(x, y, 4), x + y, hint="every number belongs to exactly one program")


test_paper()

# %% [markdown]
# ### v1: the same in Triton
#
# Write the loop's body as a kernel: offsets, mask, two loads, a store. Lanes are all handled at once; there is no loop.


# %% nbgrader={"grade": false, "grade_id": "02-first-add", "locked": false, "schema_version": 3, "solution": true, "task": false}
@triton.jit
def add_kernel(p_x, p_y, p_out, n, BLOCK: tl.constexpr):
    """out = x + y; all (n,), contiguous. Grid: (cdiv(n, BLOCK),)."""
    ### BEGIN SOLUTION
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    b_x = tl.load(p_x + offsets, mask=mask, other=0.0)
    b_y = tl.load(p_y + offsets, mask=mask, other=0.0)
    tl.store(p_out + offsets, b_x + b_y, mask=mask)
    ### END SOLUTION


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y of one shape, both contiguous -> contiguous, of x's dtype."""
    ### BEGIN SOLUTION
    out, block = torch.empty_like(x), 256
    add_kernel[(triton.cdiv(x.numel(), block),)](x, y, out, x.numel(), block)
    return out
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "02-first-add-test", "locked": true, "points": 35, "schema_version": 3, "solution": false, "task": false}
def test_add() -> None:
    x, y = torch.randn(2, 10, device=DEVICE)
    guarded = torch.full((16,), 7.0, device=DEVICE)
    add_kernel[(3,)](x, y, guarded, 10, 4)
    changed = int((guarded[10:] != 7.0).sum())
    expect(changed == 0, f"add writes past n: expected 0 values, got {changed} (mask= of the store)")
    check("add, 3 programs", guarded[:10], x + y, hint="pid * BLOCK + arange: each program has a block of its own")
    for shape in ((1,), (256,), (1000,), (3, 5, 48)):
        x, y = torch.randn(2, *shape, device=DEVICE)
        check(f"add, {shape}", add(x, y), x + y, hint="the grid needs cdiv(n, BLOCK) programs: round up, not down")


test_add()

# %% [markdown]
# Did the *load* need its mask? Nothing above can tell: what the surplus lanes loaded was never stored. A GPU may stop
# the kernel for it, when the address lies outside all memory that the process owns; mostly it does not. In lesson 03
# lanes are added up, and a load without its mask shows at once.
#
# ### v2: rows, strides, and a gate for each sample
#
# An MMDiT branch ends with `residual + gate * branch`: residual and branch (B, L, D), gate (B, D), one for all rows of
# a sample. In PyTorch that is a product and a sum. As one kernel, a program takes one row (D numbers in a block that is
# at least as wide), and finds its way by strides. A tensor's `stride(i)` is how many numbers lie between neighbours
# along axis i:
#
# ```text
#   program 9, L = 5:  batch = 9 // 5 = 1,  row = 9 % 5 = 4
#
#   x (B, L, D)   p_x + batch * x_batch + row * x_row + o_d
#                               |               |       `- 0 .. D - 1, stride 1
#                               |               `- x.stride(1): D if contiguous
#                               `- x.stride(0): L * D if contiguous
#   gate (B, D)   p_gate + batch * gate_batch + o_d     row plays no part
# ```
#
# So a slice of a bigger tensor needs no copy, and the gate is never repeated L times. The kit's `poisoned(t, pad)` puts
# t's values into a buffer that is NaN elsewhere: who takes the wrong stride will see it.


# %% nbgrader={"grade": false, "grade_id": "02-first-gate", "locked": false, "schema_version": 3, "solution": true, "task": false}
@triton.jit
def gated_residual_kernel(
    p_residual,  # (B, L, D), strides (residual_batch, residual_row, 1)
    p_branch,  # (B, L, D), strides (branch_batch, branch_row, 1)
    p_gate,  # (B, D), strides (gate_batch, 1)
    p_out,  # (B, L, D), contiguous
    residual_batch,
    residual_row,
    branch_batch,
    branch_row,
    gate_batch,
    L,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = residual + gate * branch. Grid: (B * L,), one program per row."""
    ### BEGIN SOLUTION
    batch = tl.program_id(0) // L
    row = tl.program_id(0) % L
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_residual = tl.load(p_residual + batch * residual_batch + row * residual_row + o_d, mask=m_d, other=0.0)
    b_branch = tl.load(p_branch + batch * branch_batch + row * branch_row + o_d, mask=m_d, other=0.0)
    b_gate = tl.load(p_gate + batch * gate_batch + o_d, mask=m_d, other=0.0)
    tl.store(p_out + (batch * L + row) * D + o_d, b_residual + b_gate * b_branch, mask=m_d)
    ### END SOLUTION


def gated_residual(residual: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """residual, branch (B, L, D) and gate (B, D), each with a last stride of 1 -> (B, L, D), contiguous."""
    ### BEGIN SOLUTION
    batch, length, dim = residual.shape
    out = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    strides = (*residual.stride()[:2], *branch.stride()[:2], gate.stride(0))
    block = triton.next_power_of_2(dim)
    gated_residual_kernel[(batch * length,)](residual, branch, gate, out, *strides, length, dim, block)
    return out
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "02-first-gate-test", "locked": true, "points": 50, "schema_version": 3, "solution": false, "task": false}
def test_gate() -> None:
    (residual, branch), gate = torch.randn(2, 3, 5, 48, device=DEVICE), torch.randn(3, 48, device=DEVICE)
    expected = (residual.double() + gate.double()[:, None] * branch.double()).float()
    guarded = torch.full((16, 48), 7.0, device=DEVICE)
    gated_residual_kernel[(15,)](residual, branch, gate, guarded, 240, 48, 240, 48, 48, 5, 48, 64)
    changed = int((guarded[15] != 7.0).sum())
    expect(changed == 0, f"v2 writes past the last row: expected 0 values, got {changed} (mask= of the store)")
    hint = "batch = program // L and row = program % L; the gate goes by batch alone"
    check("v2, contiguous", guarded[:15].view(3, 5, 48), expected, hint=hint)
    hint = "each tensor has strides of its own, which a slice does not share with its copy"
    got = gated_residual(poisoned(residual, 3), poisoned(branch, 8), poisoned(gate, 16))
    check("v2, slices", got, expected, hint=hint)
    ### BEGIN HIDDEN TESTS
    one = gate[:1].expand(3, 48)
    check("v2, one gate for all", gated_residual(residual, branch, one), residual + one[:, None] * branch, hint=hint)
    x, y, z = residual[:, 1:2, :7], branch[:, 1:2, :7], gate[:, :7]
    check("v2, 7 columns of one row", gated_residual(x, y, z), x + z[:, None] * y, hint=hint)
    ### END HIDDEN TESTS


test_gate()

# %% [markdown]
# ## Systems analysis
#
# The product and the sum of eager PyTorch pass over memory five times (read branch, write the product; read it and the
# residual, write out), the kernel three times. `peak_bytes` sees what eager keeps in between, `launches` names the
# Triton kernels that ran, `registers` compiles a kernel for an sm_90 GPU without a GPU.


# %%
def eager(residual: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    return residual + gate[:, None] * branch


(residual, branch), gate = torch.randn(2, 4, 186, 128, device=DEVICE), torch.randn(4, 128, device=DEVICE)
size = residual.numel() * 4
for name, call, passes in (("eager", eager, 5), ("fused", gated_residual, 3)):
    peak, kernels = peak_bytes(call, residual, branch, gate) / size, launches(call, residual, branch, gate)
    print(
        f"{name}: {roofline(passes * size, 0)['bytes']:.2f} us on an H200 at least, holds {peak:.2f} tensors, {kernels}"
    )
    if time := seconds(call, residual, branch, gate):
        print(f"{name}: {time * 1e6:.1f} us here")

# %% [markdown]
# Memory comes by the *sector* of 32 bytes. Lanes that ask for neighbours share them; lanes a row apart waste most:
#
# ```text
#   lanes on columns: p + o_d                    lanes on rows: p + lane * D
#
#   [0 1 2 3 4 5 6 7] [8 9 .. 15] ..             [0 . . . . . . .]
#      every number of a sector is used          [1 . . . . . . .]
#                                                [2 . . . . . . .]  one of eight
# ```

# %%
lanes = torch.arange(32)
for name, offsets in (("neighbours", lanes), ("every second", lanes * 2), ("a row of 128 apart", lanes * 128)):
    sectors = len((offsets * 4 // 32).unique())
    print(f"32 fp32 lanes, {name}: {sectors} sectors, of whose bytes {32 * 4 / (sectors * 32):.1%} are used")
pointers = dict.fromkeys(("p_residual", "p_branch", "p_gate", "p_out"), "*fp32")
strides = ("residual_batch", "residual_row", "branch_batch", "branch_row", "gate_batch", "L")
for dim in (128, 1024, 8192):
    constants = {"D": dim, "BLOCK_D": dim}
    print(f"D {dim}: {registers(gated_residual_kernel, pointers | dict.fromkeys(strides, 'i32'), constants)}")

# %% [markdown]
# A program's numbers live in registers, spread over its 128 threads, each of which has 255 at most: that is the price
# of a wide block, and lesson 03 comes back to it.
#
# ## Production context
#
# - `repository_after/mmdit/ops/gated_residual/kernel.py::gated_residual_kernel` is this kernel with what lies around
#   it: a bias and a norm before the gate, and the next branch's norm after the sum, all in the same pass over memory.
# - `repository_after/mmdit/ops/gated_residual/op.py::gated_residual` gives it the strides, and leaves what it cannot do
#   to `repository_after/mmdit/ops/gated_residual/reference.py::gated_residual_reference`, the same in PyTorch.
# - `repository_after/mmdit/runtime/launch.py::unit_stride` is how production keeps the promise of a last stride of 1.
#
# ## Thinking questions
#
# Change a line, run, explain.
# 1. Remove the mask from `add_kernel`'s store. Which check fails first, and why does n = 256 not notice?
# 2. Set BLOCK to 4 and to 2048 in `add`. How many programs run for 720 numbers, and how many lanes idle?
# 3. In `test_gate`'s direct launch swap 240 and 48. Where does the first wrong number lie, and why there?
# 4. Launch 16 programs there instead of 15. What does the last one do, and what is there to stop it?
# 5. Pass `branch.transpose(1, 2).contiguous().transpose(1, 2)`. What is its last stride, and what does the kernel read?
#
# ## Summary
#
# - A kernel is one program's view: my number, my offsets, my mask, load, compute, store.
# - A tensor arrives as an address. Its strides, and its end, are yours to pass and to respect.
# - A mask on the store protects others, a mask on the load protects you.
# - Broadcasting is reading the same address again. Nothing needs to be repeated in memory.
