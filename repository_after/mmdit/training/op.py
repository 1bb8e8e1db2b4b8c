"""Blocks with gradients as one operator, mmdit::stack_training, and its backward as another, for what is compiled.

B batch, L x length, C context length, R rows a sample (see padded_layout), D model dim, H heads, N layers, M streams.
An output that is not there is empty. The PyTorch arithmetic of both is mmdit::stack's reference, with its gradients.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor

from mmdit.inference.weights import TRACED_TENSORS, BlockWeights, blocks_of, layers_of, same_kind
from mmdit.ops.joint_attention.op import bits_shape
from mmdit.ops.stack_backward.op import row_size
from mmdit.ops.stack_rows.op import padded_layout
from mmdit.runtime.custom_op import register_op
from mmdit.runtime.launch import unit_stride
from mmdit.training.passes import Call, Saved, saved_shapes
from mmdit.training.stack import (
    UP_WEIGHT,
    Tape,
    backward_pass,
    buffers_wanted,
    forward_pass,
    gradients_of,
    training_obstacle,
)

Outputs = Tuple[Tensor, ...]
GIVEN = (
    "Tensor cos, Tensor sin, Tensor? start_pos, SymInt start, Tensor? seeds, float p, str recompute, Tensor[] weights,"
    " int num_heads"
)
TAPE = ("modulation", "bits", *Saved._fields)


class Given(NamedTuple):
    """What both operators are given alike."""

    cos: Tensor  # (positions, Dh / 2)
    sin: Tensor
    start_pos: Optional[Tensor]  # (B,)
    start: int  # added to it
    seeds: Optional[Tensor]  # (N, 2) int64, of the dropout
    p: float
    recompute: str
    weights: Sequence[Tensor]  # as tensors_of(blocks) gives them
    heads: int


def _exporting() -> bool:
    """torch.compiler.is_exporting, of which Dynamo before torch 2.13 believes that it is always true."""
    return torch.compiler.is_exporting()


_exporting._dynamo_marked_constant = True  # as torch.compiler.assume_constant_result does, which imports Dynamo


def operator_obstacle(
    x: Tensor, context: Optional[Tensor], blocks: Sequence[BlockWeights], heads: int, rates: Set[float]
) -> Optional[str]:
    """What keeps these operators from a call that is traced or in a graph, or None."""
    if _exporting():
        return "a program that is exported"
    if x.dtype == torch.float32 or not same_kind(x, blocks, TRACED_TENSORS):
        return "fp32, or weights of another size, dtype, device or class, or not contiguous"
    return training_obstacle(x, context, blocks[0].layer, heads, rates)


def _call(given: Given, context: Optional[Tensor], y: Optional[Tensor], mask: Optional[Tensor]) -> Call:
    streams, start_pos = 1 if context is None else 2, given.start_pos
    if start_pos is not None:
        start_pos = (start_pos + given.start if given.start else start_pos).contiguous()
    where = given.start if start_pos is None else start_pos
    layers, tables = layers_of(given.weights, streams, y is not None), (given.cos.contiguous(), given.sin.contiguous())
    return Call(y is not None, layers, streams, given.heads, *tables, mask, where, given.recompute, given.p, True)


def _forward(x: Tensor, context: Optional[Tensor], y: Optional[Tensor], mask: Optional[Tensor], *rest: Any) -> Outputs:
    given = Given(*rest)
    call = _call(given, context, y, mask)
    blocks = blocks_of(given.weights, call.streams, call.layers)
    x_out, context_out, tape = forward_pass(call, blocks, unit_stride(x), unit_stride(context), y, given.seeds)
    found = x_out, context_out, tape.modulation, tape.bits, *tape.saved
    return tuple(x.new_empty(0) if t is None else t for t in found)


def _forward_fake(
    x: Tensor, context: Optional[Tensor], y: Optional[Tensor], mask: Optional[Tensor], *rest: Any
) -> Outputs:
    call = _call(Given(*rest), context, y, mask)
    batch, length, dim = x.shape
    rows = padded_layout(length, 0 if context is None else context.shape[1])[3]
    shapes: Dict[str, Sequence[int]] = {"x": x.shape, "context": (0,) if context is None else context.shape}
    shapes["modulation"] = (batch if call.conditioned else 1, call.layers, call.streams, 6, dim)
    shapes["bits"] = (0,) if mask is None else bits_shape(batch, rows)
    shapes |= dict.fromkeys(Saved._fields, (0,)) | saved_shapes(call, batch, rows, dim)
    dtypes = {"modulation": torch.float32, "lse": torch.float32, "bits": torch.int32}
    own = {name: dtypes.get(name, x.dtype) if shape != (0,) else x.dtype for name, shape in shapes.items()}
    return tuple(x.new_empty(shape, dtype=own[name]) for name, shape in shapes.items())


def _backward(
    d_x: Tensor, d_context: Optional[Tensor], y: Optional[Tensor], wanted: Sequence[bool], *rest: Any
) -> List[Tensor]:
    """What backward_pass gives, without Nones."""
    modulation, bits, *saved = [t if t.numel() else None for t in rest[: len(TAPE)]]
    given = Given(*rest[len(TAPE) :])
    call = _call(given, d_context, y, None)
    lengths = d_x.shape[1], 0 if d_context is None else d_context.shape[1]
    tape = Tape(modulation, bits, Saved(*saved))
    found = backward_pass(call, given.weights, lengths, y, given.seeds, tape, d_x, d_context, wanted)
    return [t.contiguous() for t in found if t is not None]


def _backward_fake(
    d_x: Tensor, d_context: Optional[Tensor], y: Optional[Tensor], wanted: Sequence[bool], *rest: Any
) -> List[Tensor]:
    given = Given(*rest[len(TAPE) :])
    call = _call(given, d_context, y, None)
    forward, dim = given.weights[UP_WEIGHT].shape
    first, buffers = buffers_wanted(wanted, call.layers, call.streams, call.conditioned)
    modulated = (call.layers - first, call.streams, 6 * dim) if call.conditioned else (call.layers - first, 6)
    shapes = [None if t is None else t.shape for t in (d_x, d_context, y)] + [(*modulated, dim), modulated]
    shapes += [(call.streams, row_size(dim, forward))] * call.layers
    return [d_x.new_empty(shape) for shape, want in zip(shapes, buffers, strict=True) if want]


def _none(*_: Any) -> Any:
    raise RuntimeError("stack_training: expected tensors that its kernels take, got others; call the modules instead")


def _setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Outputs) -> None:
    x, context, y, _, *rest = inputs
    given, tape = Given(*rest), output[2:]
    ctx.shapes = [t.shape for t in (x, context) if t is not None]
    ctx.set_materialize_grads(False)  # else zeros are made for all of the tape
    ctx.rest = given._replace(cos=None, sin=None, start_pos=None, seeds=None, weights=None)
    ctx.mark_non_differentiable(*tape)
    ctx.save_for_backward(y, given.cos, given.sin, given.start_pos, given.seeds, *tape, *given.weights)


def _gradients(ctx: Any, d_x: Optional[Tensor], d_context: Optional[Tensor], *_: Any) -> Tuple[Any, ...]:
    y, cos, sin, start_pos, seeds, *rest = ctx.saved_tensors
    tape, weights = rest[: len(TAPE)], rest[len(TAPE) :]
    given = ctx.rest._replace(cos=cos, sin=sin, start_pos=start_pos, seeds=seeds, weights=weights)
    needed = ctx.needs_input_grad
    wanted = [*needed[:3], *needed[-2]]
    streams = len(ctx.shapes)
    outputs = zip((d_x, d_context), ctx.shapes, strict=False)
    known = [weights[0].new_zeros(shape) if t is None else t for t, shape in outputs] + [None] * (2 - streams)
    found = iter(torch.ops.mmdit.stack_training_backward(*known, y, wanted, *tape, *given))
    _, buffers = buffers_wanted(wanted, layers_of(weights, streams, y is not None), streams, y is not None)
    forward, dim = weights[UP_WEIGHT].shape
    gradients = gradients_of([next(found) if want else None for want in buffers], wanted, streams, dim, forward)
    return *gradients[:3], *[None] * 8, gradients[3:], None


register_op(
    f"stack_training_backward(Tensor d_x, Tensor? d_context, Tensor? y, bool[] wanted,"
    f" {', '.join(f'Tensor {name}' for name in TAPE)}, {GIVEN}) -> Tensor[]",
    kernel=_backward,
    reference=_none,
    fake=_backward_fake,
    unsupported=lambda x: None,
)
register_op(
    f"stack_training(Tensor x, Tensor? context, Tensor? y, Tensor? attn_mask, {GIVEN})"
    f" -> ({', '.join(['Tensor'] * (2 + len(TAPE)))})",
    kernel=_forward,
    reference=_none,
    fake=_forward_fake,
    unsupported=lambda x: None,
    setup_context=_setup_context,
    backward=_gradients,
)
