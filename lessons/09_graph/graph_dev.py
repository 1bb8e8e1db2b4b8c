# %% [markdown]
# # 09 · Rewriting a model's graph: the fused call without touching the model
#
# ## Objectives
#
# - turn a model into a graph, read its nodes, and say when a piece of it may be replaced;
# - write a pattern, its replacement and its filter for `torch.fx.subgraph_rewriter`;
# - hold a rewritten model to the original, outputs *and* gradients, and take back a rewrite that changes it.

# %%
from collections.abc import Callable
from itertools import product

from lessons.kit import DEVICE, check, expect, launches, peak_bytes, registers, roofline, seconds

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.subgraph_rewriter import replace_pattern_with_filters

aten = torch.ops.aten
torch.manual_seed(9)

# %% [markdown]
# ## Foundations
#
# A user's model is already written. `torch.export` runs it once, on tensors without values, and notes every operator.
# Modules, loops and flags are gone; a list of nodes is left:
#
# ```text
#   x        scale   shift     x, scale, ..    placeholder: an input
#   |          |       |       layer_norm      aten.layer_norm.default
# layer_norm  add 1    |       its args        (x, [48], None, None, 1e-06, ..)
#      \      /        |       its users       {mul}
#        mul           |       its meta["val"] shape and dtype, no values
#           \         /
#             add ---'         four kernels, three tensors in between; the
#           linear ...         fused call is one kernel, and nothing between
# ```
#
# A piece may be replaced where its inner nodes have no users outside of it (their values will exist no more), and the
# shapes are those that the kernel was written for. In `Branch`, half a block, "norm used twice" only looks alike.


# %%
class Branch(nn.Module):
    """x + gate * silu(linear(LayerNorm(x) * (1 + scale) + shift)); x (B, L, D), the modulation (B, 1, D) each."""

    def __init__(self, spelling: str = "plain", eps: float = 1e-6) -> None:
        super().__init__()
        self.spelling, self.eps, self.linear = spelling, eps, nn.Linear(48, 48, device=DEVICE)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
        normed = F.layer_norm(x, (48,), eps=self.eps)
        h = shift + (scale + 1) * normed if self.spelling == "turned" else normed * (1 + scale) + shift
        return (normed if self.spelling == "norm used twice" else x) + gate * F.silu(self.linear(h))


def draw(batch: int = 2, length: int = 13, dim: int = 48, size: float = 1.0) -> tuple[Tensor, ...]:  # as Branch's
    return tuple((size * torch.randn(batch, rows, dim)).to(DEVICE) for rows in (length, 1, 1, 1))


def exported(model: nn.Module, inputs: tuple[Tensor, ...] | None = None) -> GraphModule:
    return torch.export.export(model, inputs or draw()).module()


print(exported(Branch()).graph)
# %% [markdown]
# A graph shares the model's parameters, and holds operators; lesson 04's kernel becomes one: name, shape, gradient.


# %%
@triton.jit
def adaln_kernel(p_x, p_scale, p_shift, p_out, L, D: tl.constexpr, EPS: tl.constexpr, BLOCK_D: tl.constexpr):
    """out = LayerNorm(x) * (1 + scale) + shift. Grid: (B * L,). x, out (B, L, D), scale, shift (B, D), contiguous."""
    row = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_x = tl.load(p_x + row * D + o_d, mask=m_d, other=0.0)
    b_x = tl.where(m_d, b_x - tl.sum(b_x, 0) / D, 0.0)
    b_normed = b_x * tl.rsqrt(tl.sum(b_x * b_x, 0) / D + EPS)
    b_out = b_normed * (1.0 + tl.load(p_scale + row // L * D + o_d, mask=m_d, other=0.0))
    tl.store(p_out + row * D + o_d, b_out + tl.load(p_shift + row // L * D + o_d, mask=m_d, other=0.0), mask=m_d)


@torch.library.custom_op("lesson09::adaln", mutates_args=())
def adaln(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    (batch, length, dim), out = x.shape, torch.empty_like(x)
    adaln_kernel[(batch * length,)](x, scale, shift, out, length, dim, eps, triton.next_power_of_2(dim))
    return out


def keep(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


def gradients(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.func.vjp(lambda *tensors: modulate(*tensors, ctx.eps), *ctx.saved_tensors)[1](grad), None


adaln.register_fake(lambda x, scale, shift, eps: torch.empty_like(x))
adaln.register_autograd(gradients, setup_context=keep)
FUSED = torch.fx.symbolic_trace(lambda x, scale, shift, shape, eps: adaln(x, scale, shift, eps))  # a replacement

# %% [markdown]
# ## Implementation
#
# ### v1: find it by hand
#
# From each `aten.layer_norm.default` follow the users: one `aten.mul.Tensor`, of it one `aten.add.Tensor`. The other
# factor must be an `aten.add.Tensor` of scale and 1. Arguments come in either order. Compare nodes with `is`.


# %% nbgrader={"grade": false, "grade_id": "09-graph-find", "locked": false, "schema_version": 3, "solution": true, "task": false}
def find_modulated_norms(graph: Graph) -> list[tuple[Node, Node]]:
    """(x, scale) of every LayerNorm(x) * (1 + scale) + shift whose norm and product nobody else uses."""
    ### BEGIN SOLUTION
    found = []
    for norm in graph.find_nodes(op="call_function", target=aten.layer_norm.default):
        users = [*norm.users, *(user for mul in norm.users for user in mul.users)]
        if [user.target for user in users] == [aten.mul.Tensor, aten.add.Tensor]:
            (gain,) = (arg for arg in users[0].args if arg is not norm)
            found += [(norm.args[0], gain.args[0])] if gain.target == aten.add.Tensor and gain.args[1] == 1 else []
    return found
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "09-graph-find-test", "locked": true, "points": 25, "schema_version": 3, "solution": false, "task": false}
def test_find() -> None:
    for spelling in ("plain", "turned"):
        got = str(find_modulated_norms(exported(Branch(spelling)).graph))
        expect(
            got == "[(x, scale)]",
            f"found in {spelling!r}: expected [(x, scale)], got {got} (either order of arguments)",
        )
    twice = find_modulated_norms(exported(Branch("norm used twice")).graph)
    expect(twice == [], f"a norm that someone else uses too: expected nothing, got {twice} (count the users)")


test_find()

# %% [markdown]
# ### v2: a pattern, a replacement, a filter
#
# `replace_pattern_with_filters(model, pattern, replacement, match_filters=[fits])` walks for you, and returns what it
# replaced. Both (`FUSED` is one) are functions of the same arguments. An argument stands for any node or number
# (eps!). It knows that inner nodes may have no users outside. It does not know that products and sums commute (so run
# it for each order, 2 x 2), nor which *shapes* fit: `fits` finds the model's nodes in `match.nodes_map`.


# %% nbgrader={"grade": false, "grade_id": "09-graph-fuse", "locked": false, "schema_version": 3, "solution": true, "task": false}
def fits(match, graph: Graph, pattern_graph: Graph) -> bool:
    """Whether x is (B, L, D), and scale and shift (B, 1, D), as the kernel wants them."""
    ### BEGIN SOLUTION
    inputs = {node.name: match.nodes_map.get(node) for node in pattern_graph.find_nodes(op="placeholder")}
    x, scale, shift = (tuple(inputs[name].meta["val"].shape) for name in ("x", "scale", "shift"))
    return len(x) == 3 and scale == shift == (x[0], 1, x[2])
    ### END SOLUTION


def fuse(model: GraphModule) -> int:
    """Replace each LayerNorm(x) * (1 + scale) + shift of the model by lesson09::adaln, in place; how many it were."""
    ### BEGIN SOLUTION
    count, steps = 0, {}

    def pattern(x, scale, shift, shape, eps):
        factors = aten.layer_norm.default(x, shape, None, None, eps, False), aten.add.Tensor(scale, 1)
        terms = aten.mul.Tensor(*factors[:: steps["factors"]]), shift
        return aten.add.Tensor(*terms[:: steps["terms"]])

    for steps["factors"], steps["terms"] in product((1, -1), repeat=2):
        count += len(replace_pattern_with_filters(model, pattern, FUSED, match_filters=[fits]))
    return count
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "09-graph-fuse-test", "locked": true, "points": 40, "schema_version": 3, "solution": false, "task": false}
def test_fuse() -> None:
    for spelling, wanted, because in (
        *(("plain", 1, "the pattern itself"), ("turned", 1, "the other orders of arguments")),
        *(("norm used twice", 0, "the norm has another user"), ("per position", 0, "fits: scale is (B, L, D) there")),
    ):
        model, (x, scale, *rest) = Branch(spelling, eps=1e-2), draw(size=0.1)
        inputs = (x, torch.randn_like(x) if spelling == "per position" else scale, *rest)
        count = fuse(rewritten := exported(model, inputs))
        expect(count == wanted, f"replaced in {spelling!r}: expected {wanted}, got {count} ({because})")
        expect(launches(rewritten, *inputs) == ["adaln_kernel"] * wanted, f"expected {wanted} launches of adaln_kernel")
        check(f"{spelling!r}, rewritten", rewritten(*inputs), model(*inputs), hint="eps is an argument of the pattern")


test_fuse()

# %% [markdown]
# ### production: keep no rewrite that you did not compare
#
# Rewrite a graph of the model; run both on several sets of inputs; compare the output and the gradient of every input
# and parameter. Where all agree hand out the rewritten graph, else an untouched one and the name of what differs.


# %% nbgrader={"grade": false, "grade_id": "09-graph-verify", "locked": false, "schema_version": 3, "solution": true, "task": false}
def values(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """By name "output" and "gradient of NAME", for each input (named by its place) and parameter, of some loss."""
    ### BEGIN SOLUTION
    leaves = {str(place): t.detach().clone().requires_grad_() for place, t in enumerate(inputs)}
    out = model(*leaves.values())
    leaves |= dict(model.named_parameters())
    found = torch.autograd.grad(out.sin().sum(), list(leaves.values()), materialize_grads=True)
    return {"output": out.detach()} | {f"gradient of {name}": g for name, g in zip(leaves, found, strict=True)}
    ### END SOLUTION


def rewritten_safely(model: nn.Module, transform: Callable, input_sets: list) -> tuple[GraphModule, str]:
    """The model's graph after transform(graph) and ""; or before it, and what went wrong (relative error > 1e-4)."""
    ### BEGIN SOLUTION
    candidate, untouched = exported(model, input_sets[0]), exported(model, input_sets[0])
    try:
        transform(candidate)
    except Exception as error:
        return untouched, f"{type(error).__name__}: {error}"
    for inputs in input_sets:
        got, expected = values(candidate, inputs), values(model, inputs)
        for name in expected:
            if not (got[name] - expected[name]).norm() <= 1e-4 * expected[name].norm():
                return untouched, f"{name} differs"
    return candidate, ""
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "09-graph-verify-test", "locked": true, "points": 35, "schema_version": 3, "solution": false, "task": false}
def test_verify() -> None:
    model, sets = Branch(), [draw(), draw(), draw(size=1e-2)]
    rewritten, problem = rewritten_safely(model, fuse, sets)
    expect(problem == "", f"fuse is right: expected no problem, got {problem!r}")
    expect(launches(rewritten, *sets[0]) == ["adaln_kernel"], "what comes back of fuse: expected its graph")
    spoilers = {
        "output": lambda graph: graph.register_forward_hook(lambda _, inputs, out: out + 1e-5),
        "gradient": lambda graph: graph.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(), *inputs[1:])),
    }
    for spoiled, transform in spoilers.items():
        same, problem = rewritten_safely(model, transform, sets)
        expect(problem.startswith(spoiled), f"it spoils the {spoiled}: expected that name, got {problem!r}")
        check("what comes back then", same(*sets[2]), model(*sets[2]), hint="the untouched graph, not the spoiled one")
    ### BEGIN HIDDEN TESTS
    problem = rewritten_safely(model, lambda graph: 1 / 0, sets)[1]
    expect("division by zero" in problem, f"a transform that raises: expected its message, got {problem!r}")
    ### END HIDDEN TESTS


test_verify()

# %% [markdown]
# ## Systems analysis
#
# Nodes are not costs. Count what a GPU would see: bytes that move, memory held, launches.
#
# ```text
#   eager, alive over time          fused
#   normed  |#########|             out  |####
#   product       |########|
#   out                |####      2 passes over memory of x's size, not 6;
#         --------------> time    1 tensor of its size at once, not 2
# ```

# %%
model, inputs = nn.Module(), draw(8, 186, 128)[:3]
model.forward, size = modulate, inputs[0].numel() * 4
fuse(fused := exported(model, inputs))
for name, call, passes in (("eager", exported(model, inputs), 6), ("fused", fused, 2)):
    held, floor = peak_bytes(call, *inputs) / size, roofline(passes * size, 0)["bytes"]
    print(f"{name}: Triton kernels {launches(call, *inputs)}, holds {held:.2f} times x beyond x")
    print(f"  at least {floor:.2f} us on an H200, measured: {seconds(call, *inputs)} s")
signature = {"p_x": "*fp32", "p_scale": "*fp32", "p_shift": "*fp32", "p_out": "*fp32", "L": "i32"}
print(registers(adaln_kernel, signature, {"D": 128, "EPS": 1e-6, "BLOCK_D": 128}))

# %% [markdown]
# ## Production context
#
# - `repository_after/mmdit/runtime/custom_op.py::register_op` registers each kernel as you did `adaln`: name, fake,
#   gradient; and a shorter way for plain calls.
# - `repository_after/mmdit/inference/stack.py::layers_problem` asks of modules what `fits` asks of nodes: hooks,
#   replaced parts and strange shapes keep a layer from being fused.
#
# ## Thinking questions
#
# 1. Spell it `torch.addcmul(shift, normed, 1 + scale)`. Who finds it? Write the pattern that does.
# 2. May a pattern match across a dropout? In which mode, and what would tell you?
# 3. Which transform passes your three sets and is wrong? Draw a set that shows it.
#
# ## Summary
#
# - What may be replaced has no users outside, and the shapes that the kernel was written for.
# - The rewriter finds every copy; what commutes and what fits you tell it. Then compare, gradients included.
