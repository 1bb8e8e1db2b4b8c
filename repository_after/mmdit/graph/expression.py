"""A node as what it computes, however it is spelled: what patterns are compared by."""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

aten, ops = torch.ops.aten, torch.ops.mmdit
RESHAPES = (
    *(aten.view.default, aten.reshape.default, aten.unflatten.int, aten.flatten.using_ints, aten.unsqueeze.default),
    *(aten._unsafe_view.default, aten.squeeze.dim, aten.squeeze.default),
)
SAME = (aten.contiguous.default, aten.alias.default)
PARTS = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)
COMMUTATIVE = ("add", "mul")
NAMES = {
    **{aten.add.Tensor: "add", aten.add.Scalar: "add", aten.mul.Tensor: "mul", aten.mul.Scalar: "mul"},
    **{aten.sub.Tensor: "sub", aten.sub.Scalar: "sub", aten.matmul.default: "matmul", aten.bmm.default: "matmul"},
    **{aten.softmax.int: "softmax", aten._softmax.default: "softmax"},
}


@dataclass(frozen=True)
class Expression:
    """An operation, its inputs (nodes or plain values), and numbers: shapes, axes."""

    name: str
    inputs: tuple[Any, ...]
    numbers: tuple[Any, ...] = ()


def shape_of(node: Any) -> tuple[Any, ...] | None:
    """Of the tensor that a node gives."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else None


def dtype_of(node: Any) -> torch.dtype | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dtype if isinstance(value, Tensor) else None


def same_size(a: Any, b: Any) -> bool:
    """Of ints or symbolic ints, without a new guard."""
    return str(settled(a)) == str(settled(b))


def settled(size: Any) -> Any:
    """The int that a symbolic size has turned out to be, if it has; anything else as it is."""
    known = size.node.maybe_as_int() if isinstance(size, torch.SymInt) else None
    return size if known is None else known


def same_shape(a: tuple[Any, ...] | None, b: tuple[Any, ...] | None) -> bool:
    return a is not None and b is not None and len(a) == len(b) and all(map(same_size, a, b))


def source(node: Any) -> Any:
    """node without what changes nothing: copies for contiguity, casts to its own dtype, reshapes to its own shape,
    dropout that drops nothing.
    """
    while isinstance(node, fx.Node) and node.op == "call_function":
        first = node.args[0] if node.args else None
        same = node.target in SAME and len(node.args) == 1
        same = same or (node.target in (aten.to.dtype, aten._to_copy.default) and dtype_of(node) == dtype_of(first))
        same = same or (node.target is aten.dropout.default and (not node.args[2] or node.args[1] == 0.0))
        same = same or (node.target in RESHAPES and same_shape(shape_of(node), shape_of(base(node))))
        if not same:
            break
        node = base(node) if node.target in RESHAPES else first
    return node


def is_cast(node: Any) -> bool:
    """Whether a node gives floats in another precision."""
    if not isinstance(node, fx.Node) or node.target not in (aten.to.dtype, aten._to_copy.default):
        return False
    dtypes = dtype_of(node), dtype_of(node.args[0])
    return all(dtype is not None and dtype.is_floating_point for dtype in dtypes)


def base(node: Any) -> Any:
    """Under all reshapes, and what changes nothing between them."""
    while isinstance(node, fx.Node) and node.target in (*RESHAPES, *SAME):
        node = node.args[0]
    return node


def express(node: fx.Node) -> Expression:
    """What a call computes; a node that is not a call is its own expression."""
    if node.op != "call_function":
        return Expression(node.op, (), (node.name,))
    target, args = node.target, node.args
    shape = shape_of(node) or ()
    if target in RESHAPES:
        return Expression("reshape", (base(node),), shape)
    if target is aten.permute.default:
        return Expression("permute", (args[0],), tuple(a % len(shape) for a in args[1]))
    if target is aten.transpose.int:
        return _permuted(args[0], args[1] % len(shape), args[2] % len(shape), len(shape))
    if target in (aten.t.default, aten.mT.default):
        return _permuted(args[0], len(shape) - 2, len(shape) - 1, len(shape))
    if target is operator.getitem and isinstance(args[0], fx.Node):
        if args[0].target in PARTS:
            return _part(args[0], args[1])
        if args[0].target is ops.joint_attention_forward.default and args[1] == 0:  # the other is for its backward
            return Expression(str(ops.joint_attention.default), args[0].args)
    if target is aten.select.int:
        axis = args[1] % (len(shape) + 1)
        return Expression("select", (args[0],), (axis, args[2]))
    if target is aten.square.default or (target is aten.pow.Tensor_Scalar and args[1] == 2):
        return Expression("square", (args[0],))
    if target is aten.mul.Tensor and source(args[0]) is source(args[1]):
        return Expression("square", (args[0],))
    if target in (aten.div.Tensor, aten.div.Scalar) and isinstance(args[1], (int, float)):
        return Expression("mul", (args[0], 1.0 / args[1]))
    if target in (aten.add.Tensor, aten.sub.Tensor) and node.kwargs.get("alpha", 1) != 1:
        return Expression("add with alpha", args, ())
    if target in NAMES:
        return Expression(NAMES[target], args[:2])
    return _plain(node)


def _plain(node: fx.Node) -> Expression:
    """An operator with all its arguments, defaults too, in the schema's order."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return Expression(str(node.target), (*node.args, *node.kwargs.values()))
    schema = node.target._schema.arguments
    given = {a.name: v for a, v in zip(schema, node.args, strict=False)} | dict(node.kwargs)
    values = [given.get(a.name, a.default_value) for a in schema]
    if node.target is aten.layer_norm.default:
        values = values[:5]  # cudnn_enable says nothing
    if node.target is aten.mean.dim:
        values[1] = [axis % len(shape_of(values[0]) or (1,)) for axis in values[1]]
    if node.target in (aten.cat.default, aten.stack.default):
        values[1] %= len(shape_of(node) or (1,))
    return Expression(str(node.target), tuple(values))


def _permuted(node: fx.Node, a: int, b: int, ndim: int) -> Expression:
    order = list(range(ndim))
    order[a], order[b] = order[b], order[a]
    return Expression("permute", (node,), tuple(order))


def _part(parts: fx.Node, index: int) -> Expression:
    whole = parts.args[0]
    ndim = len(shape_of(whole) or (1,))
    given = {a.name: v for a, v in zip(parts.target._schema.arguments, parts.args, strict=False)} | parts.kwargs
    axis = given.get("dim", 0) % ndim
    if parts.target is aten.unbind.int:
        return Expression("select", (whole,), (axis, index))
    return Expression(f"part {index} of {parts.target}", (whole,), (axis,))
