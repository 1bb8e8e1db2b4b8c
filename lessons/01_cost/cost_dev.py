# %% [markdown]
# # 01 · What a kernel costs
#
# ## Objectives
#
# After this lesson you can
# - say from shapes alone how many bytes and operations a piece of a model must cost, and which of the two bounds it;
# - listen to PyTorch and count what it really moves for the same piece, operator by operator;
# - place RMSNorm, a linear layer, an MLP and attention on a GPU's roofline;
# - tell, before writing any kernel, whether one is worth writing.

# %%
from lessons.kit import DEVICE, check, expect, peak_bytes, roofline, seconds

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

torch.manual_seed(1)

# %% [markdown]
# ## Foundations
#
# A GPU computes on registers and keeps tensors in memory. A *kernel* is one trip: load, compute, store. PyTorch
# launches one or more for each operator, and each puts its whole result back into memory for the next one to fetch.
#
# ```text
#                        one H200
#   +--------------------------------------------+
#   |  132 multiprocessors, each with            |
#   |    tensor cores, fp32 units                |   750 / 60 TFLOP/s in all
#   |    registers       256 KB                  |   34 MB in all
#   |    shared memory   228 KB                  |   30 MB in all
#   +---------------------|----------------------+
#   |  L2 cache           | shared by all        |   60 MB
#   +---------------------|----------------------+
#                         |  4.15 TB/s    <- every operator goes down and up
#   +---------------------|----------------------+
#   |  memory                                    |   141 GB
#   +--------------------------------------------+
# ```
#
# Three clocks run at once, and the slowest decides (rates as measured on one H200, `evaluation/bench/floor.py`):
#
# - **bytes**: what must be read and written, each once, at the 4.15 TB/s of a copy;
# - **operations**: two for a multiply-add, at the 750 TFLOP/s of large bf16 matrix products;
# - **launches**: about 4 us each, even of a kernel that does nothing, where each waits for the one before.
#
# Operations per byte are the *arithmetic intensity*. Where it is below 750e12 / 4.15e12, the ridge, bytes decide, and
# no cleverness in the arithmetic makes the kernel faster; only moving less does. The kit's `roofline` holds these
# numbers for all lessons. Of the rest of the kit, `check` compares a tensor with the truth and `expect` states a fact;
# both say what was expected and got. `peak_bytes` and `seconds` measure a call.

# %%
ridge = roofline(1, 0)["bytes"] / roofline(0, 1)["operations"]
print(f"ridge: {ridge:.0f} operations per byte; in the 4 us of a launch an H200 could move {4e-6 * 4.15e12:,.0f} bytes")

# %% [markdown]
# ## Implementation
#
# ### v1: the floor, by hand
#
# First bytes. What a tensor's values occupy is not its `numel()`: an axis made by `expand` has stride 0, all its
# entries are one number in memory. Nor is it its storage: a slice owns less than the buffer that it looks into.


# %% nbgrader={"grade": false, "grade_id": "01-cost-bytes", "locked": false, "schema_version": 3, "solution": true, "task": false}
def stored_bytes(t: Tensor) -> int:
    """Bytes of memory that t's values lie in; an axis of stride 0 counts once, whatever its size."""
    ### BEGIN SOLUTION
    count = t.element_size()
    for size, stride in zip(t.shape, t.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "01-cost-bytes-test", "locked": true, "points": 20, "schema_version": 3, "solution": false, "task": false}
def test_bytes() -> None:
    x = torch.randn(3, 5, 48, device=DEVICE)
    cases = {
        "fp32, contiguous: 4 bytes a number": (x, 2880),
        "fp16: element_size() is 2": (x.half(), 1440),
        "transposed: the same numbers": (x.transpose(0, 2), 2880),
        "a slice: not the whole storage": (x[:, :2], 1152),
        "expanded: an axis of stride 0 counts once": (x[0, 0].expand(3, 5, 48), 192),
        "a scalar: one number": (x.sum(), 4),
    }
    for name, (t, expected) in cases.items():
        got = stored_bytes(t)
        expect(got == expected, f"{name}: expected {expected} bytes, got {got}")


test_bytes()

# %% [markdown]
# Then a linear layer, `x @ weight.T + bias` with x of (rows, inputs): what it must read and write, and how many
# operations it takes, a multiply-add being two. Last the floor: the slowest of the clocks, not their sum, since loads,
# stores and tensor cores work at the same time.


# %% nbgrader={"grade": false, "grade_id": "01-cost-floor", "locked": false, "schema_version": 3, "solution": true, "task": false}
class Work(NamedTuple):
    """The least that something takes: bytes, each read or written once, and operations."""

    bytes: int
    operations: int


def linear_work(rows: int, inputs: int, outputs: int, item: int = 2) -> Work:
    """Of a linear layer with bias on (rows, inputs), numbers of `item` bytes; the bias's additions do not count."""
    ### BEGIN SOLUTION
    numbers = rows * inputs + outputs * inputs + outputs + rows * outputs
    return Work(numbers * item, 2 * rows * inputs * outputs)
    ### END SOLUTION


def floor_us(work: Work) -> tuple[float, str]:
    """The least microseconds on an H200, and what bounds them: "bytes" or "operations". Uses the kit's roofline."""
    ### BEGIN SOLUTION
    times = roofline(work.bytes, work.operations)
    bound = max(times, key=times.get)
    return times[bound], bound
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "01-cost-floor-test", "locked": true, "points": 30, "schema_version": 3, "solution": false, "task": false}
def test_floor() -> None:
    x, layer = torch.randn(7, 48, device=DEVICE), torch.nn.Linear(48, 20, device=DEVICE)
    moved, got = sum(map(stored_bytes, (x, *layer.parameters(), layer(x)))), linear_work(7, 48, 20, item=4)
    expect(got.bytes == moved, f"bytes of x, weight, bias and out, each once: expected {moved}, got {got.bytes}")
    expect(got.operations == 13440, f"a multiply-add is two operations: expected 13440, got {got.operations}")
    for work, time, bound in ((Work(4_150_000, 150_000_000), 1.0, "bytes"), (Work(415, 1_500_000), 2e-3, "operations")):
        got_time, got_bound = floor_us(work)
        hint = "the largest of the clocks, which run at once; not their sum"
        check(f"floor of {work}", torch.tensor(got_time), torch.tensor(time), hint=hint)
        expect(got_bound == bound, f"what bounds it: expected {bound!r}, got {got_bound!r}")


test_floor()

# %% [markdown]
# ### v2: what really moves
#
# PyTorch hands every operator it is about to run to the innermost `TorchDispatchMode`: after autograd, after a function
# like `F.linear` has become the operators that exist as kernels. So a mode hears each trip to memory. Add up the
# `stored_bytes` of all tensors among the arguments (read) and the results (written); `tree_leaves` finds them inside
# lists too. A view moves nothing: it only describes the same memory anew.


# %% nbgrader={"grade": false, "grade_id": "01-cost-traffic", "locked": false, "schema_version": 3, "solution": true, "task": false}
class Traffic(TorchDispatchMode):
    """Counts, while entered, the operators that move memory, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run func(*args, **kwargs), an operator named func.overloadpacket.__name__, and return its result."""
        kwargs = kwargs or {}
        is_view = func.is_view or func is torch.ops.aten._unsafe_view.default  # a view but for its mark
        ### BEGIN SOLUTION
        out = func(*args, **kwargs)
        if not is_view:
            self.operators.append(func.overloadpacket.__name__)
            self.bytes += sum(stored_bytes(t) for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor))
        return out
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "01-cost-traffic-test", "locked": true, "points": 50, "schema_version": 3, "solution": false, "task": false}
def traffic(call, *args) -> Traffic:
    with torch.no_grad(), Traffic() as counted:
        call(*args)
    return counted


def test_traffic() -> None:
    x, y = torch.randn(3, 5, 48, device=DEVICE), torch.randn(48, device=DEVICE)
    cases = {
        "x + y reads x and y, and writes": (lambda: x + y, ["add"], 5952),
        "an expanded y is read once": (lambda: x * y.expand(3, 5, 48), ["mul"], 5952),
        "views move nothing": (lambda: x.transpose(1, 2)[:, :7].unsqueeze(0), [], 0),
        "cat reads what is in its list": (lambda: torch.cat([x, x]), ["cat"], 11520),
        "in place: read and written": (lambda: x.mul_(2.0), ["mul_"], 5760),
        "a chain writes what lies between": (lambda: (x * 2.0).sum(-1), ["mul", "sum"], 8700),
    }
    for name, (call, operators, moved) in cases.items():
        got = traffic(call)
        right = got.operators == operators and got.bytes == moved
        expect(right, f"{name}: expected {moved} bytes by {operators}, got {got.bytes} by {got.operators}")
    ### BEGIN HIDDEN TESTS
    got, expected = traffic(F.linear, x, torch.randn(7, 48, device=DEVICE)).bytes, linear_work(15, 48, 7, 4).bytes - 28
    expect(got == expected, f"F.linear without bias: expected {expected} bytes, got {got}")
    ### END HIDDEN TESTS


test_traffic()

# %% [markdown]
# ## Systems analysis
#
# Four pieces of an MMDiT block, as eager PyTorch runs them, beside the floor of a kernel that reads the piece's inputs,
# writes its output, and keeps all else on the chip. The sizes are the target's, D 128, 8 heads, L 186, at B = 4.

# %%
B, L, D, H, HIDDEN = 4, 186, 128, 8, 512
x, w = (torch.randn(*shape, device=DEVICE).bfloat16() for shape in ((B, L, D), (D,)))
wide, up, down = (torch.randn(*s, device=DEVICE).bfloat16() * 0.1 for s in ((3 * D, D), (HIDDEN, D), (D, HIDDEN)))
q = torch.randn(B, H, L, D // H, device=DEVICE).bfloat16()


def rmsnorm(x: Tensor, w: Tensor) -> Tensor:
    squares = x.float().square().mean(-1, keepdim=True)
    return (x.float() * torch.rsqrt(squares + 1e-6) * w).to(x.dtype)


def mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, up)), down)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) * (D // H) ** -0.5, -1) @ v


rows = B * L
pieces = {
    "rmsnorm": (rmsnorm, (x, w), 4 * rows * D),
    "linear": (F.linear, (x, wide), 2 * rows * D * 3 * D),
    "mlp": (mlp, (x, up, down), 4 * rows * D * HIDDEN),
    "attention": (attention, (q, q.clone(), q.clone()), 4 * rows * L * D),
}
print("piece      operators  moved KB  floor KB  ops/byte    launch us  moved us  floor us  bound")
for name, (call, args, operations) in pieces.items():
    eager, least = traffic(call, *args), Work(sum(map(stored_bytes, (*args, call(*args)))), operations)
    n, bound, moved = len(eager.operators), floor_us(least), roofline(eager.bytes, 0)["bytes"]
    print(f"{name:10} {n:9} {eager.bytes / 1e3:9.0f} {least.bytes / 1e3:9.0f} {operations / least.bytes:9.1f}", end="")
    print(f" {4.0 * n:13.1f} {moved:9.2f} {bound[0]:9.2f}  {bound[1]}")
print("attention holds", f"{peak_bytes(attention, q, q, q):,} bytes at its peak; its output has {stored_bytes(q):,}")
if time := seconds(rmsnorm, x, w):
    print(f"eager rmsnorm takes {time * 1e6:.1f} us here")

# %% [markdown]
# At this size the launches outweigh everything: production fuses until few are left, and captures those in a graph.
# Raise B to see bytes take over. The column ops/byte puts the fused pieces on the roofline (both axes logarithmic):
#
# ```text
#   TFLOP/s
#     750 |                                       ___*___________  operations
#         |                                      /:  mlp, fused    decide
#     400 |    bytes                          **  :
#         |    decide                     /       :  linear 128 -> 384,
#      40 |                        /              :  attention, fused
#         |                 /                     : ridge
#       4 |          *                            :
#         |          rmsnorm                      :
#         +----------+-------------+------------+-:-------------+-- ops/byte
#                    1            10          100               1000
# ```
#
# A linear layer of this width lies *left* of the ridge: however good its arithmetic, it waits for memory. An MLP whose
# hidden activations never leave the chip lies to the right of it. Fusing moves work to the right, and only that moves
# it up.
#
# ## Production context
#
# - `repository_after/mmdit/runtime/cuda_graph.py::GraphedForward` replays a whole forward as one graph: no launch costs
#   the host anything.
# - `repository_after/mmdit/runtime/launch.py::launch` is for calls without a graph, and says what Triton's own launch
#   takes of the host's time and what this one does.
# - `repository_after/mmdit/ops/norm_adaln/tuning.py::forward_tiles` chooses a kernel's tile by how many bytes there
#   are.
# - `repository_after/mmdit/ops/stack_rows/kernel.py::rows_kernel` holds rows on the chip from attention's output
#   through the MLP to the next layer's queries: the point at the right end of the roofline.
# - `evaluation/bench/floor.py` computes your floor for the whole model, and the README's table prints how near it is.
#
# ## Thinking questions
#
# Change a line, run, explain.
# 1. Set B = 1, then 64. For which pieces do bytes overtake launches, and at which B does that happen for attention?
# 2. Make the model wider: D = 256, 512. When does the plain linear layer cross the ridge? Derive it from `linear_work`.
# 3. `F.rms_norm` is one call. Put it into `pieces`: how many operators does `Traffic` hear? And on a GPU?
# 4. Double L. Which piece's eager bytes grow fourfold, and what happens to its floor?
# 5. A softmax needs an exponential per weight, and `roofline` takes them as its third argument: B * H * L * L. Is
#    attention bound by bytes or operations after all?
#
# ## Summary
#
# - Bytes, operations and launches are counted, not guessed; the slowest of them is the floor.
# - An operator's cost is mostly the trip to memory, and eager code makes one per operator.
# - Intensity below the ridge: move less. Tiny tensors: launch less. Both have the same answer, fusion.
# - From here on every kernel in this course is judged by its distance from a floor that you can compute.
