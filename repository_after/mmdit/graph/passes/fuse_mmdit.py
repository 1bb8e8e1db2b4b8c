"""MMDiT's parts as fused operators: modulated norms, attention from projections to joined heads, gated residuals."""

import operator
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map

from mmdit.graph import vanilla
from mmdit.graph.effects import find_effects
from mmdit.graph.expression import aten, base, dtype_of, express, source
from mmdit.graph.match import Match, NearMiss, find
from mmdit.graph.passes.base import Opportunity, OptimizationPass, register_pass
from mmdit.graph.passes.blocks import CONSTANT, chains, emit_stack, find_blocks
from mmdit.graph.passes.redundant_ops import RedundantOps
from mmdit.graph.passes.rewrites import REWRITES, head_limit, pack_heads, per_sample
from mmdit.ops.norm_adaln.tuning import MAX_DIM as MAX_NORM_DIM
from mmdit.ops.pack_heads.tuning import MAX_DIM as MAX_PACK_DIM
from mmdit.runtime.dispatch import why_not

ops = torch.ops.mmdit
OF_ANY_DTYPE = ("turns", "cos", "sin", "attn_mask", "start_pos")


@register_pass("fuse_mmdit")
class FuseMMDiT(OptimizationPass):
    """Rewrites what computes as the vanilla parts do, however it is spelled, to the operators of torch.ops.mmdit; whole
    blocks, and those that follow each other, to one, in training where it has kernels for gradients. Their rotary
    tables, buffers with the same values now, are then the first one's.

    What comes near and is not taken is told with the nearest pattern and the first difference. Where no kernel runs, as
    on a CPU, the operators are PyTorch's arithmetic, computed again in backward, and slower than what they replace: the
    details say so.

    Args:
        own_dropout: whether blocks whose MLPs drop may be taken in training: as many are dropped, but others than those
            that PyTorch's generator would draw, so that verification against the model takes it back.
    """

    def __init__(self, own_dropout: bool = False) -> None:
        super().__init__()
        self.own_dropout = own_dropout
        self._details: dict[str, Any] = {}

    @property
    def details(self) -> dict[str, Any]:
        return self._details

    def analyze(self, graph_module: fx.GraphModule) -> list[Opportunity]:
        return _Rewrite(graph_module, self.own_dropout).run()

    def transform(self, graph_module: fx.GraphModule, opportunities: list[Opportunity]) -> fx.GraphModule:
        if not opportunities:
            return graph_module
        rewrite = _Rewrite(graph_module, self.own_dropout)
        rewrite.run()
        rewrite.graph_module.recompile()
        obstacle = next(map(why_not, rewrite.floats()), None)
        if obstacle is not None:
            self._details["train" if graph_module.training else "eval"] = {"slower_as_no_kernel_runs": obstacle}
        return rewrite.graph_module


@dataclass
class _Rewrite:
    """One run over one graph, which is left as it was: graph_module is then the new one."""

    graph_module: fx.GraphModule
    own_dropout: bool

    def floats(self) -> Iterator[Tensor]:
        """The values of floating-point inputs, fake as they are."""
        values = [node.meta.get("val") for node in self.graph_module.graph.find_nodes(op="placeholder")]
        return (t for t in values if isinstance(t, Tensor) and t.is_floating_point())

    def run(self) -> list[Opportunity]:
        self.graph_module = RedundantOps()(self.graph_module).graph_module  # a pattern has each value once
        self.graph = self.graph_module.graph
        self.effects = find_effects(self.graph_module)
        self.mode = next((t.fake_mode for t in self.floats() if isinstance(t, FakeTensor)), nullcontext())
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
        self._take_heads()
        self._take_blocks()
        self._merge_norms()
        for node, miss in misses.items():
            if node not in self.covered | self.silent and not node._erased:
                told = f"nearest pattern {miss.spelling.function.__name__}: {miss.difference}"
                self.found.append(Opportunity(miss.spelling.name, (node.name,), "fuse", told))
        told = "nearest pattern modulated_layer_norm: expected a scale and a shift, got PyTorch's own operator alone"
        for node in self.graph.find_nodes(op="call_function", target=aten.layer_norm.default):
            if len(node.args) > 2 and isinstance(node.args[2], fx.Node) and not node.users.keys() & misses.keys():
                self.found.append(Opportunity("LayerNorm", (node.name,), "fuse", told))
        return self.found

    def _take(self, match: Match) -> None:
        """Put the fused operators in the place of a match, or tell why not."""
        if match.result in self.covered:
            return
        rewrite, refused = REWRITES[match.spelling.name], self._refusal(match)
        action = f"to {rewrite.__name__.removeprefix('_')}"
        if refused is None:
            with self.graph.inserting_before(match.result):
                made = rewrite(match, self._emit, self.graph_module.training)
            made.meta.update({k: v for k, v in match.result.meta.items() if k != "val"})
            match.result.replace_all_uses_with(made)
            self.covered |= {match.result, *match.inside}
            _erase_unused(self.graph, match.result)
        self.silent.add(match.result)
        self.found.append(Opportunity(match.spelling.name, (match.result.name,), action, refused))

    def _emit(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call, with the fake value that it gives."""
        node = self.graph.call_function(target, args, kwargs)
        self.silent.add(node)
        values = tree_map(lambda a: a.meta["val"] if isinstance(a, fx.Node) else a, args)
        with enable_python_dispatcher(), self.mode:  # without, linear refuses sizes that vary before torch 2.13
            node.meta["val"] = target(*values, **kwargs)
        return node

    def _take_heads(self) -> None:
        """Pack the queries, keys and values of attention that is none of the patterns', where all three are found."""
        groups: dict[Any, list[Match]] = defaultdict(list)
        taken: set[fx.Node] = set()
        for spelling in (*vanilla.TURNED, *vanilla.SPLIT):
            for match in find(self.graph, spelling)[0]:
                own = {match.result, *match.inside}
                if taken.isdisjoint(own):
                    taken |= own
                    groups[tuple(_origin(match.arguments.get(name)) for name in ("t", "c_t"))].append(match)
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        for matches in groups.values():
            split = [match for match in matches if "norm" not in match.arguments]
            turned = [match for match in matches if "norm" in match.arguments]
            turned.sort(key=lambda m: (express(source(m.arguments["t"])).name, order[m.result]))
            if (len(turned), len(split)) == (2, 1):
                self._pack(*turned, *split, order)

    def _pack(self, q: Match, k: Match, v: Match, order: dict[fx.Node, int]) -> None:
        results = [match.result for match in (q, k, v)]
        last = max(results, key=order.__getitem__)
        refused = next(filter(None, map(self._refusal, (q, k, v))), None)
        if refused is None and any(order[user] <= order[last] for node in results for user in node.users):
            refused = "used before all three are there"
        told = (q.arguments.get(n) is k.arguments.get(n) for n in ("turns", "cos", "sin"))
        if refused is None and not (all(told) and q.numbers == k.numbers):
            refused = "queries and keys are not normed and turned alike"
        self.found.append(Opportunity("heads", tuple(n.name for n in results), "to pack_heads", refused))
        if refused is not None:
            return
        arguments = {**q.arguments, "q_norm": q.arguments["norm"], "k_norm": k.arguments["norm"]}
        arguments |= {name: match.arguments["t"] for name, match in zip("qkv", (q, k, v), strict=True)}
        if "c_t" in arguments:
            arguments |= {f"c_{name}": match.arguments["c_t"] for name, match in zip("qkv", (q, k, v), strict=True)}
            arguments |= {"c_q_norm": q.arguments["c_norm"], "c_k_norm": k.arguments["c_norm"]}
        self._tell_attention(results[0])
        with self.graph.inserting_before(last.next):
            packed = pack_heads(arguments, q.numbers, self._emit)
        for node, made in zip(results, packed, strict=True):
            node.replace_all_uses_with(made)
            self.covered.add(node)
            _erase_unused(self.graph, node)

    def _take_blocks(self) -> None:
        """One operator in the place of blocks, and of those that follow each other; where gradients are recorded, if
        it has kernels for them.
        """
        training = self.graph_module.training
        if training and any(map(why_not, self.floats())):
            return
        taken, order = [], {node: i for i, node in enumerate(self.graph.nodes)}
        for block in find_blocks(self.graph):
            refused = block.obstacle(order, training, self.own_dropout)
            refused = refused or next(filter(None, map(self._refusal, block.matches)), None)
            names = tuple(node.name for node in block.results)
            self.found.append(Opportunity(block.kind, names, "to stack", refused))
            if refused is None:
                taken.append(block)
        for chain in reversed(list(chains(taken, self._constant))):
            results = chain[-1].results
            with self.graph.inserting_before(min(results, key=order.__getitem__)):
                made = emit_stack(chain, self._emit)
            for node, out in zip(results, made, strict=True):
                node.replace_all_uses_with(out)
            for block in reversed(chain):
                self.covered |= {node for match in block.matches for node in (match.result, *match.inside)}
                for node in block.results:
                    _erase_unused(self.graph, node)

    def _constant(self, node: fx.Node) -> Tensor | None:
        """The buffer or parameter that a node is, if it is one."""
        if node.op == "get_attr":
            return operator.attrgetter(node.target)(self.graph_module)
        return node.meta.get(CONSTANT)

    def _tell_attention(self, query: fx.Node) -> None:
        """What kind of attention takes the query, if not PyTorch's own operator, which has been told of."""
        users = list(query.users)
        for user in users:
            if (
                user.target is torch.ops.higher_order.wrap_with_autocast
            ):  # (device, dtype, on, cache, body, *its inputs)
                body = getattr(self.graph_module, user.args[4].target).graph
                inputs = body.find_nodes(op="placeholder")
                users += inputs[user.args.index(query) - 5].users
        got = sorted({str(user.target) for user in users if isinstance(user.target, torch._ops.OpOverload)})
        wanted = str(aten.scaled_dot_product_attention.default)
        if wanted not in got:
            told = f"nearest pattern self_attention_complex: expected {wanted} of the query, got {', '.join(got)}"
            self.found.append(Opportunity("attention", (query.name,), "fuse", told))

    def _refusal(self, match: Match) -> str | None:
        """Why a match cannot be rewritten, or None."""
        written = frozenset().union(*(effect.writes for effect in self.effects.of.values()))
        kept = {n for n in match.inside if n.target is not aten.dropout.default or "dropout" not in match.numbers}
        for node in (*match.inside, *match.arguments.values()):
            known = self.effects.of.get(node)
            if known and known.gives & written and node.op not in ("placeholder", "get_attr"):
                return f"{node.name} is written to"
            if known and known.obstacle and node in kept:
                return f"{node.name}: {known.obstacle}"
        arguments = [a for name, a in match.arguments.items() if isinstance(a, fx.Node) and name not in OF_ANY_DTYPE]
        if len({dtype_of(a) for a in (match.result, *arguments)}) > 1:
            return "arguments of different dtypes"
        if any(isinstance(match.numbers.get(n, 0), torch.SymInt) for n in ("D", "H", "Dh")):
            return "a size that varies, other than the batch and the lengths"
        masked = match.arguments.keys() >= {"attn_mask", "q"}
        if masked and match.numbers["Dh"] > head_limit(match, self.graph_module.training):
            return "a mask, and no kernel for the head dim"
        limits = {"modulated LayerNorm": MAX_NORM_DIM, "modulated RMSNorm": MAX_NORM_DIM, "RMS norm": None}
        limit = limits.get(match.spelling.name, MAX_PACK_DIM)
        if limit is not None and match.numbers.get("D", 0) > limit:
            return f"a row of more than {limit}"
        return None

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
        return per_sample(modulation, self._emit)


def _erase_unused(graph: fx.Graph, node: fx.Node) -> None:
    """A node that nobody uses, and what only it used."""
    left = [node]
    while left:
        node = left.pop()
        if not (node._erased or node.users or node.op in ("placeholder", "output")):
            left += node.all_input_nodes
            graph.erase_node(node)


def _origin(part: Any) -> Any:
    """What a projection is a part of; or, where it is a product of its own, what it is the product of."""
    part = source(part)
    if not isinstance(part, fx.Node):
        return None
    expression = express(part)
    if expression.name.startswith("part"):
        return expression.inputs[0]
    return base(part.args[0]) if part.target is aten.linear.default else part
