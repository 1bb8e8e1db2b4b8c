"""What each node of a graph does beside giving a value, found by running the graph on fake tensors.

Every function, method and module is known by the ATen operators that it runs there: their schemas and tags say what is
written and what is random, so there is no list of names. torch's own fx_graph_cse assumes a graph without mutation.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

ASSERTIONS = (torch.ops.aten._assert_async.msg, torch.ops.aten._assert_async.default)  # twice is once
OUTSIDE = -1  # the storages of inputs and weights: a caller may have made any two of them one


@dataclass(frozen=True)
class Effect:
    """What one node does. Storages are numbers, OUTSIDE for all that came in.

    obstacle: why two copies of it are not one, or None; writes, gives: the storages that it writes, and that its
    outputs lie in. Only where costs were asked for: flops, of its matrix products, and saved, the storages that
    autograd keeps of it, and their bytes, inputs and weights left out.
    """

    obstacle: str | None = None
    writes: frozenset[int] = frozenset()
    gives: frozenset[int] = frozenset()
    writes_input: bool = False
    flops: int = 0
    saved: frozenset[tuple[int, int]] = frozenset()


@dataclass
class Effects:
    """The effects of a graph's nodes, and the values that they had on fake tensors."""

    of: dict[fx.Node, Effect] = field(default_factory=dict)
    values: dict[fx.Node, Any] = field(default_factory=dict)


def fake_copy(value: Any, mode: FakeTensorMode) -> Any:
    """value, a placeholder's, as a fresh fake tensor of plain sizes."""
    if isinstance(value, Tensor):
        sizes, strides = [plain(n) for n in value.shape], [plain(n) for n in value.stride()]
        with mode:
            made = torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)
        return made.requires_grad_(value.requires_grad and value.is_floating_point())
    return plain(value)


def plain(value: Any) -> Any:
    """A symbolic int as the int that it was traced with."""
    return value.node.hint if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) else value


def find_effects(graph_module: fx.GraphModule, costs: bool = False) -> Effects:
    """Run the graph on fake tensors, its placeholders as their meta["val"] says; the module is left as it was."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    inputs = [fake_copy(n.meta.get("val"), mode) for n in graph_module.graph.nodes if n.op == "placeholder"]
    interpreter = _Prober(graph_module, mode, costs)
    with mode, torch.random.fork_rng([]), kept_modes(costs):
        interpreter.run(*inputs, enable_io_processing=False)
    return interpreter.effects


@contextmanager
def kept_modes(recording: bool) -> Iterator[None]:
    """Gradient recording as it was, whatever a graph switches, or on."""
    with torch.set_grad_enabled(recording or torch.is_grad_enabled()):
        yield


class _Recorder(TorchDispatchMode):
    """What the operators of one node write, and whether one of them is random."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Tensor] = []
        self.random: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        named = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
        rate = next((named.get(a.name, a.default_value) for a in schema.arguments if a.name == "dropout_p"), None)
        info = torch._C._SchemaInfo(schema)  # knows batch norm's running statistics, which the bare schema does not
        info.add_argument_values({k: v for k, v in named.items() if isinstance(v, (bool, int, float, Tensor))})
        for name, value in named.items():
            if info.is_mutable(name):
                self.written += [t for t in tree_leaves(value) if isinstance(t, Tensor)]
        if torch.Tag.nondeterministic_seeded in func.tags and rate != 0.0:
            self.random = self.random or str(func)
        return func(*args, **kwargs)


class _Prober(fx.Interpreter):
    """Runs every node under a recorder of its own; weights as fakes, modules with fakes in the place of theirs."""

    def __init__(self, graph_module: fx.GraphModule, mode: FakeTensorMode, costs: bool) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.mode, self.costs = mode, costs
        self.effects = Effects()
        self.outside: set[int] = set()
        self.inputs: set[int] = set()
        self.made: set[int] = set()  # what the nodes so far gave
        self.kept: list[Tensor] = []  # so that no storage's number is given twice

    def run_node(self, node: fx.Node) -> Any:
        if node.op == "output":
            return super().run_node(node)
        recorder, changed = _Recorder(), None
        saved: list[Tensor] = []
        hooks = saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t) if self.costs else nullcontext()
        counts = FlopCounterMode(display=False) if self.costs else nullcontext()
        with recorder, counts, hooks:
            if node.op == "call_module":
                result, changed = self.run_module(node)
            else:
                result = super().run_node(node)
        tensors = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        written = [t for t in recorder.written if t.untyped_storage()._cdata in self.made | self.outside]
        self.made |= storages(tensors)
        self.kept += [*tensors, *recorder.written, *saved]
        if node.op in ("placeholder", "get_attr"):
            self.outside |= storages(tensors)
        if node.op == "placeholder":
            self.inputs |= storages(tensors)
        obstacle = None
        if node.op in ("placeholder", "get_attr"):
            obstacle = "an input"
        elif recorder.random:
            obstacle = f"random: {recorder.random}"
        elif written:
            obstacle = "writes to a tensor"
        elif changed:
            obstacle = f"has a state: {changed}"
        elif not tensors and _switches(node):
            obstacle = "switches a mode"
        elif not self.known(node):
            obstacle = "the user's own, which may do more than it shows"
        self.effects.of[node] = Effect(
            obstacle,
            self.numbers(written),
            self.numbers(tensors),
            writes_input=bool(storages(written) & self.inputs),
            flops=counts.get_total_flops() if self.costs else 0,
            saved=frozenset((t.untyped_storage()._cdata, t.untyped_storage().nbytes()) for t in saved if self.inner(t)),
        )
        self.effects.values[node] = result
        return result

    def known(self, node: fx.Node) -> bool:
        """Whether what a node calls is an operator, or torch's or Python's own."""
        if node.op == "call_module":
            return all(type(m).__module__.startswith("torch.") for m in self.fetch_attr(str(node.target)).modules())
        module = getattr(node.target, "__module__", None) or ""
        own = module.partition(".")[0] in ("torch", "_operator", "operator", "math", "builtins", "")
        return node.op != "call_function" or own or isinstance(node.target, torch._ops.OpOverload)

    def inner(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata not in self.outside

    def numbers(self, tensors: list[Tensor]) -> frozenset[int]:
        return frozenset(OUTSIDE if number in self.outside else number for number in storages(tensors))

    def get_attr(self, target: str, args: Any, kwargs: Any) -> Any:
        return tree_map(self.faked, super().get_attr(target, args, kwargs))

    def faked(self, value: Any) -> Any:
        return self.mode.from_tensor(value, static_shapes=True) if isinstance(value, Tensor) else value

    def run_module(self, node: fx.Node) -> tuple[Any, str | None]:
        """What the module gives, and the name of an attribute that calling it changed, if any."""
        module = self.fetch_attr(str(node.target))
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        faked = {name: self.faked(t) for name, t in state.items()}
        self.outside |= storages(list(faked.values()))
        before = _snapshot(module)
        try:
            result = functional_call(module, faked, args, kwargs)
            changed = next(
                (n for (n, a), (_, b) in zip(before, _snapshot(module), strict=False) if _differs(a, b)), None
            )
        finally:
            for (_, values), part in zip(before, module.modules(), strict=False):
                part.__dict__.update(values)
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
        return result, "a hook" if hooked else changed


def storages(tensors: list[Tensor]) -> set[int]:
    return {t.untyped_storage()._cdata for t in tensors}


def _snapshot(module: nn.Module) -> list[tuple[str, dict[str, Any]]]:
    """Each part's plain attributes; containers copied."""
    return [
        (name or "itself", {k: copy.copy(v) for k, v in part.__dict__.items() if not k.startswith("_")})
        for name, part in module.named_modules()
    ]


def _differs(before: dict[str, Any], after: dict[str, Any]) -> bool:
    if before.keys() != after.keys():
        return True
    return any(a is not b and not _equal(a, b) for a, b in ((before[k], after[k]) for k in before))


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:
        return False


def _is_call(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method", "call_module")


def _switches(node: fx.Node) -> bool:
    """Whether a call without tensors out is there for what it does to others: gradient recording, autocast."""
    if node.target in ASSERTIONS:
        return False
    return _is_call(node) and (
        node.is_impure() or not node.users or getattr(node.target, "__module__", "") == "torch._C"
    )
