"""A model as graphs of ATen operators (torch.export), or of its own calls (torch.fx), weights shared."""

import copy
import inspect
import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from mmdit.graph.effects import find_effects
from mmdit.graph.errors import TraceError
from mmdit.graph.passes.base import copy_graph
from mmdit.validation import check_choice

CHECKS = (torch.ops.aten._assert_tensor_metadata.default, torch.ops.aten.promote_types.default)
METHODS = ("export", "fx")
ANOTHER_WAY = 'keep it out of the traced model, or use torch.compile(model, backend="mmdit"), which breaks there'
WAYS_OUT = (
    ("data-dependent", "choose by torch.where or torch.cond instead of by a tensor's value"),
    ("could not guard", "choose by torch.where or torch.cond instead of by a tensor's value"),
    ("could not extract specialized", "keep the value a tensor instead of reading it with .item() or int()"),
    ("traced variables cannot be used as inputs to control flow", 'trace with method="export", which follows shapes'),
    ("symbolically traced", 'trace with method="export", which follows shapes'),
)
# Frames that are not the user's: torch's, the standard library's, this package's, and made-up files.
FOREIGN = (str(Path(torch.__file__).parent), sysconfig.get_path("stdlib"), str(Path(__file__).parent), "<")
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Traced:
    """A graph of a model in one mode; `batch` is why the graph is for its example's batch size alone, or None."""

    graph_module: fx.GraphModule
    batch: str | None


def split_inputs(example_inputs: Any) -> Arguments:
    """Positional and keyword arguments of a tensor, a tuple, a dict, or a pair of both."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, dict):
        return (), dict(example_inputs)
    pair = isinstance(example_inputs, (tuple, list)) and len(example_inputs) == 2
    if pair and isinstance(example_inputs[0], (tuple, list)) and isinstance(example_inputs[1], dict):
        return tuple(example_inputs[0]), dict(example_inputs[1])
    return tuple(example_inputs), {}


def batch_of(arguments: Arguments) -> int | None:
    """The size of the first axis of the first tensor that has one."""
    return next((len(t) for t in tree_leaves(arguments) if isinstance(t, Tensor) and t.ndim), None)


def trace(model: nn.Module, arguments: Arguments, method: str = "export", fixed: bool = False) -> Traced:
    """The graph of model(*args, **kwargs) in the mode that the model is in; its weights are the model's own.

    Args:
        arguments: as split_inputs gives them, on the model's device.
        method: "export", ATen operators, for any batch size where the model is; "fx", symbolic tracing, whose nodes
            are the functions, methods and torch.nn modules that the model calls.
        fixed: export for the arguments' own sizes alone.

    Raises TraceError, with file, line and a way out, for control flow by a tensor's values, for inputs that the model
    writes to, and for calls that cannot be traced; ConfigError for another method.
    """
    check_choice("method", method, METHODS)
    with _told(method), kept_state(model):  # fx runs what hangs on no input
        traced = _export(model, arguments, fixed) if method == "export" else _symbolic(model, arguments)
        _refuse_written_inputs(traced.graph_module, method)
    traced.graph_module.train(model.training)
    return traced


def _export(model: nn.Module, arguments: Arguments, fixed: bool) -> Traced:
    batch, why = batch_of(arguments), None
    if fixed:
        why = "asked for"
    elif batch is None or batch < 2:
        why = f"a batch of {batch} is fixed: torch.export takes 0 and 1 for constants"
    else:
        try:
            return Traced(plain_graph(_exported(model, arguments, batch)), None)
        except Exception as error:  # told by the export of the fixed size, should that fail too
            why = f"not exportable for any batch size: {str(error).splitlines()[0]}"
    return Traced(plain_graph(_exported(model, arguments, None)), why)


def _exported(model: nn.Module, arguments: Arguments, batch: int | None) -> fx.GraphModule:
    def free(value: Any) -> Any:
        follows = batch is not None and isinstance(value, Tensor) and value.ndim and len(value) == batch
        return {0: torch.export.Dim.DYNAMIC} if follows else None

    args, kwargs = arguments
    shapes = None
    if batch is not None:
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        shapes = {name: tree_map(free, value) for name, value in bound.items()}
    program = torch.export.export(model, args, kwargs or None, dynamic_shapes=shapes, strict=False)
    return program.module(check_guards=False)


def plain_graph(exported: fx.GraphModule) -> fx.GraphModule:
    """The exported graph in a module that may be put into training and evaluation mode, without what only checks."""
    graph_module = copy_graph(exported)
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target in CHECKS and not node.users:
            graph.erase_node(node)
        elif node.target is torch.ops.aten.to.dtype and _same_dtype(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph_module.recompile()
    return graph_module


def _same_dtype(node: fx.Node) -> bool:
    """Whether a cast gives its very input."""
    source = node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
    return isinstance(source, Tensor) and source.dtype == node.args[1] and len(node.args) == 2 and not node.kwargs


def _symbolic(model: nn.Module, arguments: Arguments) -> Traced:
    tracer = fx.Tracer()
    tracer.record_stack_traces = True
    graph_module = fx.GraphModule(model, tracer.trace(model))
    args, kwargs = arguments
    given = {**dict(zip((n.target for n in _placeholders(graph_module)), args, strict=False)), **kwargs}
    for target in {n.target for n in graph_module.graph.nodes if n.op == "call_module"}:
        graph_module.set_submodule(target, shared_copy(graph_module.get_submodule(target)))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for node in _placeholders(graph_module):
        value = given.get(node.target, node.args[0] if node.args else None)
        node.meta["val"] = mode.from_tensor(value, static_shapes=True) if isinstance(value, Tensor) else value
    return Traced(graph_module, None)


def shared_copy(module: nn.Module) -> nn.Module:
    """The module with a mode and plain attributes of its own, and the same parameters and buffers."""
    return copy.deepcopy(module, {id(t): t for t in (*module.parameters(), *module.buffers())})


def _placeholders(graph_module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph_module.graph.nodes if node.op == "placeholder"]


def _refuse_written_inputs(graph_module: fx.GraphModule, method: str) -> None:
    """Raise TraceError where the graph writes to one of its inputs (weights and buffers it may write to)."""
    for node, effect in find_effects(graph_module).of.items():
        if effect.writes_input:
            where = _last_frame(node.meta.get("stack_trace") or "")
            raise TraceError(method, f"a write to an input, by {node.target}", where, "write to a clone of the input")


@contextmanager
def kept_state(model: nn.Module) -> Iterator[None]:
    """Buffers as they were, afterwards."""
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in one mode, and afterwards every part in its own again."""
    was = {module: module.training for module in model.modules()}
    try:
        model.train(training)
        yield
    finally:
        for module, mode in was.items():
            module.training = mode


@contextmanager
def _told(method: str) -> Iterator[None]:
    """Whatever tracing raises, as one TraceError."""
    try:
        yield
    except TraceError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        text = f"{type(error).__name__} {error}".lower()
        way_out = next((way for sign, way in WAYS_OUT if sign in text), ANOTHER_WAY)
        raise TraceError(method, reason, _location(error), way_out) from error


def _location(error: BaseException) -> str:
    """The innermost of the user's own frames, over the error and its causes."""
    found: BaseException | None = error
    while found is not None:
        frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(found.__traceback__)]
        if any(not file.startswith(FOREIGN) for file, _ in frames):
            return _innermost(frames)
        found = found.__cause__ or found.__context__
    return "unknown"


def _last_frame(stack_trace: str) -> str:
    """Of a node's stack trace, as a location."""
    return _innermost([(file, int(line)) for file, line in re.findall(r'File "(.+?)", line (\d+)', stack_trace)])


def _innermost(frames: list[tuple[str, int]]) -> str:
    own = [(file, line) for file, line in frames if not file.startswith(FOREIGN)]
    if not own:
        return "unknown"
    file, line = own[-1]
    return f"{file}:{line}: {linecache.getline(file, line).strip()}"
