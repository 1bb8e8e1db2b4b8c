"""MMDiT's parts as fused operators: modulated norms, attention from projections to joined heads, gated residuals."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_map

import mmdit.graph.differentiable  # noqa: F401  so that what is fused can be trained
from mmdit.graph import vanilla
from mmdit.graph.effects import Effects, find_effects
from mmdit.graph.expression import aten, base, dtype_of, express, source
from mmdit.graph.match import Match, NearMiss, find
from mmdit.graph.passes.base import Opportunity, OptimizationPass, register_pass
from mmdit.graph.passes.redundant_ops import RedundantOps
from mmdit.ops.joint_attention.op import MAX_HEAD_DIM, MAX_TRAINED_HEAD_DIM
from mmdit.ops.norm_adaln.tuning import MAX_DIM as MAX_NORM_DIM
from mmdit.ops.pack_heads.tuning import MAX_DIM as MAX_PACK_DIM

ops = torch.ops.mmdit
Emit = Callable[..., fx.Node]


@register_pass("fuse_mmdit")
class FuseMMDiT(OptimizationPass):
    """Rewrites what computes as the vanilla parts do, however it is spelled, to the operators of torch.ops.mmdit.

    What comes near and is not taken is told with the nearest pattern and the first difference.
    """

    def analyze(self, graph_module: fx.GraphModule) -> list[Opportunity]:
        return _Rewrite(graph_module).run()

    def transform(self, graph_module: fx.GraphModule, opportunities: list[Opportunity]) -> fx.GraphModule:
        if not opportunities:
            return graph_module
        rewrite = _Rewrite(graph_module)
        rewrite.run()
        rewrite.graph_module.recompile()
        return rewrite.graph_module


@dataclass
class _Rewrite:
    """One run over one graph, which is left as it was: graph_module is then the new one."""

    graph_module: fx.GraphModule

    def run(self) -> list[Opportunity]:
        self.graph_module = RedundantOps()(self.graph_module).graph_module  # a pattern has each value once
        self.graph = self.graph_module.graph
        self.effects = find_effects(self.graph_module)
        self.found: list[Opportunity] = []
        self.covered: set[fx.Node] = set()
        self.silent: set[fx.Node] = set()  # made here, or told already
        misses: dict[fx.Node, NearMiss] = {}
        for spelling in (*vanilla.OPERATORS, *vanilla.FUSED):
            matches, near = find(self.graph, spelling)
            for match in matches:
                self._take(match)
            for miss in near if spelling in vanilla.FUSED else ():
                before = misses.get(miss.result)
                if before is None or miss.reached > before.reached:
                    misses[miss.result] = miss
        self._merge_norms()
        for node, miss in misses.items():
            if node not in self.covered | self.silent and not node._erased:
                told = f"nearest pattern {miss.spelling.function.__name__}: {miss.difference}"
                self.found.append(Opportunity(miss.spelling.name, (node.name,), "fuse", told))
        return self.found

    def _take(self, match: Match) -> None:
        """Put the fused operators in the place of a match, or tell why not."""
        if match.result in self.covered:
            return
        rewrite = REWRITES[match.spelling.name]
        action, refused = (
            f"to {rewrite.__name__.removeprefix('_')}",
            _refusal(match, self.effects, self.graph_module.training),
        )
        if refused is None:
            with self.graph.inserting_before(match.result):
                made = rewrite(match, self._emit, self.graph_module.training)
            made.meta.update({k: v for k, v in match.result.meta.items() if k != "val"})
            match.result.replace_all_uses_with(made)
            self.covered |= {match.result, *match.inside}
            _erase_unused(self.graph, match.result)
        self.silent.add(match.result)
        self.found.append(Opportunity(match.spelling.name, (match.result.name,), action, refused))

    def _emit(self, target: Any, *args: Any) -> fx.Node:
        """A call, with the fake value that it gives."""
        node = self.graph.call_function(target, args)
        self.silent.add(node)
        node.meta["val"] = target(*tree_map(lambda a: a.meta["val"] if isinstance(a, fx.Node) else a, args))
        return node

    def _merge_norms(self) -> None:
        """A modulated LayerNorm of a gated residual's result is the residual's second result."""
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        for norm in [n for n in self.graph.nodes if n.target is ops.norm_adaln.default]:
            x, scale, shift, weight, eps, center = norm.args
            gated = x.args[0] if x.target is operator.getitem and x.args[1] == 0 else None
            if (
                getattr(gated, "target", None) is not ops.gated_residual.default
                or not center
                or weight is not None
                or gated.args[5] is not None
            ):
                continue
            if any(order.get(user, -1) < order[norm] for user in x.users):
                continue
            with self.graph.inserting_before(norm):
                arguments = (*gated.args[:5], self._row(scale), self._row(shift), gated.args[7], eps)
                both = self._emit(ops.gated_residual.default, *arguments)
                out, normed = self._emit(operator.getitem, both, 0), self._emit(operator.getitem, both, 1)
            x.replace_all_uses_with(out)
            norm.replace_all_uses_with(normed)
            self.found.append(Opportunity("modulated LayerNorm", (norm.name,), "into the residual before it"))
            _erase_unused(self.graph, norm)
            _erase_unused(self.graph, x)

    def _row(self, modulation: fx.Node) -> fx.Node:
        return _per_sample(modulation, self._emit)


def _refusal(match: Match, effects: Effects, training: bool) -> str | None:
    """Why a match cannot be rewritten, or None."""
    written = frozenset().union(*(effect.writes for effect in effects.of.values()))
    nodes = (*match.inside, *match.arguments.values())
    for node in nodes:
        known = effects.of.get(node)
        if known and known.gives & written and node.op not in ("placeholder", "get_attr"):
            return f"{node.name} is written to"
        if known and known.obstacle and node in match.inside:
            return f"{node.name}: {known.obstacle}"
    arguments = [
        a for name, a in match.arguments.items() if isinstance(a, fx.Node) and name not in ("turns", "attn_mask")
    ]
    if len({dtype_of(a) for a in arguments}) > 1:
        return "arguments of different dtypes"
    if any(isinstance(match.numbers.get(n, 0), torch.SymInt) for n in ("D", "H", "Dh", "C")):
        return "a size that varies, other than the batch"
    if "attn_mask" in match.arguments and match.numbers["Dh"] > _head_limit(match, training):
        return "a mask, and no kernel for the head dim"
    limits = {"modulated LayerNorm": MAX_NORM_DIM, "modulated RMSNorm": MAX_NORM_DIM, "RMS norm": None}
    limit = limits.get(match.spelling.name, MAX_PACK_DIM)
    if limit is not None and match.numbers.get("D", 0) > limit:
        return f"a row of more than {limit}"
    return None


def _head_limit(match: Match, training: bool) -> int:
    """The widest heads that attention has a kernel for."""
    return (MAX_TRAINED_HEAD_DIM if training else MAX_HEAD_DIM).get(dtype_of(match.arguments["q"]), 0)


def _per_sample(modulation: Any, emit: Emit) -> Any:
    """(B, D) of (B, 1, D)."""
    return emit(aten.squeeze.dim, modulation, 1)


def _rms_norm(match: Match, emit: Emit, training: bool) -> fx.Node:
    x, weight = match.arguments["x"], match.arguments["weight"]
    return emit(aten.rms_norm.default, x, [match.numbers["D"]], weight, match.numbers["rms_eps"])


def _scaled_dot_product_attention(match: Match, emit: Emit, training: bool) -> fx.Node:
    q, k, v = (match.arguments[name] for name in "qkv")
    return emit(aten.scaled_dot_product_attention.default, q, k, v)


def _norm_adaln(match: Match, emit: Emit, training: bool) -> fx.Node:
    a = match.arguments
    center = match.spelling.name == "modulated LayerNorm"
    eps = match.numbers["eps" if center else "rms_eps"]
    return emit(ops.norm_adaln.default, a["x"], a["scale"], a["shift"], a.get("weight"), eps, center)


def _gated_residual(match: Match, emit: Emit, training: bool) -> fx.Node:
    a = match.arguments
    branch = a["branch"] if "branch" in a else emit(aten.linear.default, a["h"], a["weight"])
    gate = _per_sample(a["gate"], emit) if "gate" in a else None
    rms_eps = match.numbers.get("rms_eps", 0.0)
    arguments = (branch, a["residual"], a.get("bias"), gate, a.get("norm"), None, None, rms_eps, 1e-6)
    return emit(operator.getitem, emit(ops.gated_residual.default, *arguments), 0)


def _joint_attention(match: Match, emit: Emit, training: bool) -> fx.Node:
    a, sizes = match.arguments, match.numbers
    qkv = _joined(a["q"], a["k"], a["v"], emit)
    context = _joined(a["c_q"], a["c_k"], a["c_v"], emit) if "c_q" in a else None
    if "turns" in a:
        parts = emit(aten.view_as_real.default, a["turns"])
        cos, sin = emit(aten.select.int, parts, -1, 0), emit(aten.select.int, parts, -1, 1)
    else:
        cos, sin = a["cos"], a["sin"]
    norms = (a["q_norm"], a["k_norm"], a.get("c_q_norm"), a.get("c_k_norm"))
    packed = emit(ops.pack_heads.default, qkv, context, *norms, cos, sin, None, 0, sizes["H"], sizes["rms_eps"])
    heads = [emit(operator.getitem, packed, i) for i in range(3)]
    mask = emit(aten.ne.Scalar, a["attn_mask"], 0) if "attn_mask" in a else None
    if sizes["Dh"] <= _head_limit(match, training):
        out = emit(ops.joint_attention_forward.default, *heads, mask, sizes.get("C", 0))
        return emit(operator.getitem, out, 0)
    attended = emit(aten.scaled_dot_product_attention.default, *heads)
    return emit(aten.flatten.using_ints, emit(aten.transpose.int, attended, 1, 2), 2)


def _joined(q: fx.Node, k: fx.Node, v: fx.Node, emit: Emit) -> fx.Node:
    """(B, rows, 3 D) of three (B, rows, D): what they are parts of, or one product in the place of three."""
    parts = [express(source(t)) for t in (q, k, v)]
    wholes = {part.inputs[0] for part in parts if part.inputs and isinstance(part.inputs[0], fx.Node)}
    thirds = [part.name.startswith(f"part {i} of") and part.numbers == (2,) for i, part in enumerate(parts)]
    if len(wholes) == 1 and all(thirds) and wholes.copy().pop().meta["val"].shape[2] == 3 * q.meta["val"].shape[2]:
        return wholes.pop()
    linears = [source(t) for t in (q, k, v)]
    products = all(n.target is aten.linear.default and len(n.args) == 3 for n in linears)
    if products and len({base(n.args[0]) for n in linears}) == 1:
        weight, bias = (emit(aten.cat.default, [n.args[i] for n in linears]) for i in (1, 2))
        return emit(aten.linear.default, linears[0].args[0], weight, bias)
    return emit(aten.cat.default, [q, k, v], -1)


def _erase_unused(graph: fx.Graph, node: fx.Node) -> None:
    """A node that nobody uses, and what only it used."""
    if node._erased or node.users or node.op in ("placeholder", "output"):
        return
    inputs = node.all_input_nodes
    graph.erase_node(node)
    for source_ in inputs:
        _erase_unused(graph, source_)


REWRITES: dict[str, Callable[[Match, Emit, bool], fx.Node]] = {
    "RMS norm": _rms_norm,
    "softmax attention": _scaled_dot_product_attention,
    "modulated LayerNorm": _norm_adaln,
    "modulated RMSNorm": _norm_adaln,
    "joint attention": _joint_attention,
    "self attention": _joint_attention,
    "gated residual of a normed projection": _gated_residual,
    "residual of a normed projection": _gated_residual,
    "gated residual of a projection": _gated_residual,
    "gated residual": _gated_residual,
}
