"""Joint softmax attention of x and a context: registration, dispatch, launch."""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from mmdit.ops.joint_attention.backward import attend_backward
from mmdit.ops.joint_attention.reference import (
    attention_backward_reference,
    attention_forward_reference,
    joint_attention_reference,
)
from mmdit.ops.joint_attention.tuning import attention_precision, attention_tiles
from mmdit.runtime.architecture import table_key
from mmdit.runtime.custom_op import register_op
from mmdit.runtime.dispatch import takes_fused, why_not
from mmdit.runtime.launch import launch, unit_stride

# Above these the best SDPA backend is faster on an H200: bf16, head dim 128, 2 x 16 x 4352 rows, 532 us against 606;
# fp32, head dim 64, 8 x 8 x 1088 rows, 616 against 1013.
MAX_HEAD_DIM = {torch.float16: 64, torch.bfloat16: 64, torch.float32: 16}
# With gradients, until wider ones are measured.
MAX_TRAINED_HEAD_DIM = {torch.float16: 16, torch.bfloat16: 16}
PACK_ROWS = 32
LOG2_E = 1.4426950408889634
# What a row's sum of weights may reach before the tile is done again: the weights are cast to the values' dtype.
LARGEST_SUM = {torch.float16: 2.0**15, torch.bfloat16: 2.0**60, torch.float32: 2.0**60}


def joint_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Optional[Tensor], context_length: int
) -> Tensor:
    """softmax(q k^T / sqrt(Dh)) v (B, S, H Dh); a row that may attend to nothing gives 0.

    Args:
        query, key, value: (B, H, S, Dh) of one dtype, S = L + context_length, x first; any strides.
        attn_mask: None, or (B, L, L) bool over x, True = attend. Context columns are visible to every x row that sees
            anything, context rows see every x column that anyone sees, the context sees all of itself.
    """
    if not torch.jit.is_scripting():
        recorded = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
        if takes_fused("joint_attention", query, obstacle(query, recorded)):
            arguments = (query, key, value, attn_mask, context_length)
            return _call_forward(*arguments)[0] if recorded else _call(*arguments)
    return joint_attention_reference(query, key, value, attn_mask, context_length)


def obstacle(query: Tensor, recorded: bool) -> Optional[str]:
    """What keeps the kernel from a call, beside the device; recorded: whether gradients are."""
    if recorded and query.shape[3] > MAX_TRAINED_HEAD_DIM.get(query.dtype, 0):
        return f"gradients are recorded, for a head dim of {query.shape[3]} in {query.dtype}"
    return _unsupported(query)


def _unsupported(query: Tensor) -> Optional[str]:
    limit = MAX_HEAD_DIM.get(query.dtype, query.shape[3])
    return None if query.shape[3] <= limit else f"a head dim of more than {limit} in {query.dtype}"


def _forward(query: Tensor, key: Tensor, value: Tensor, attn_mask: Optional[Tensor], context_length: int) -> Tensor:
    return _run(query, key, value, attn_mask, context_length, None)


def _forward_with_lse(query: Tensor, *rest: Any) -> Tuple[Tensor, Tensor]:
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    return _run(query, *rest, lse), lse


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Optional[Tensor],
    context_length: int,
    lse: Optional[Tensor],
) -> Tensor:
    return attend_rows(query, key, value, _bits(query, attn_mask, context_length), lse)


def attend_rows(
    query: Tensor, key: Tensor, value: Tensor, bits: Optional[Tensor], lse: Optional[Tensor] = None
) -> Tensor:
    """joint_attention by the kernel, for a mask that is packed; lse as attend has it."""
    query, key, value = map(unit_stride, (query, key, value))
    out = _fake(query)
    attend(query, key, value, bits, out, *_unpadded(query), lse=lse)
    return out


def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    attn_mask: Optional[Tensor],
    context_length: int,
) -> Tensor:
    query, key, value, grad = map(unit_stride, (query, key, value, grad))
    d_heads, bits, (layout, scale) = _fake_backward(query), _bits(query, attn_mask, context_length), _unpadded(query)
    attend_backward(grad, out, query, key, value, lse, bits, d_heads, layout, scale=scale)
    return d_heads


def _bits(query: Tensor, attn_mask: Optional[Tensor], context_length: int) -> Optional[Tensor]:
    return None if attn_mask is None else pack_mask(attn_mask, context_length, attn_mask.shape[1], query.shape[2])


def _unpadded(query: Tensor) -> Tuple[Tuple[int, int, int, int], float]:
    """attend's layout and scale, for rows without padding and queries as they are."""
    rows, dim_head = query.shape[2:]
    return (rows, 0, rows, rows), LOG2_E / dim_head**0.5


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bits: Optional[Tensor],
    out: Tensor,
    layout: Tuple[int, int, int, int],
    scale: float,
    chained: bool = False,
    lse: Optional[Tensor] = None,
) -> None:
    """Write softmax2(scale q k^T) v to out (B, R, H Dh), in powers of 2.

    Args:
        query, key, value: (B, H, R, Dh) with a last stride of 1; padding is 0 in key and value.
        bits: as pack_mask makes them, or None.
        layout: rows of x, of the context, where the context begins, and R: between lie rows of padding.
        chained: begin while the kernel before still runs; needs can_chain.
        lse: (B, H, R) fp32, written for attend_backward: log2(sum of 2^(scale q k^T)), infinite where nothing is seen.
    """
    batch, heads, rows, dim_head = query.shape
    precision = attention_precision()
    sizes = (batch * heads, rows, dim_head, query.dtype)
    tiles = attention_tiles(table_key(query), *sizes, bits is not None, precision)
    launch(
        "joint_attention.kernel:joint_attention_kernel",
        batch * heads * -(-rows // tiles.queries),
        tensors=(query, key, value, bits, out, lse),
        strides=(*query.stride()[:3], *key.stride()[:3], *value.stride()[:3]),
        lengths=layout,
        constants=(
            *(heads, dim_head, scale, LARGEST_SUM[query.dtype], precision),
            *(rows % tiles.keys == 0 and tiles.block == dim_head, tiles.queries, tiles.keys, tiles.block, tiles.stages),
            chained,
        ),
        warps=tiles.warps,
        **({"launch_pdl": True} if chained else {}),
    )


def bits_shape(batch: int, rows: int) -> Tuple[int, int, int]:
    """Of pack_mask's."""
    return batch, rows, -(-rows // 32)


def pack_mask(attn_mask: Tensor, context_length: int, x_rows: int, rows: int) -> Tensor:
    """The joint mask of attn_mask (B, L, L) bool, 32 columns to a word: (B, rows, cdiv(rows, 32)) int32. x begins at
    row 0 and the context at x_rows; the other rows are padding.
    """
    batch, length, _ = attn_mask.shape
    bits = attn_mask.new_empty(bits_shape(batch, rows), dtype=torch.int32)
    mask, seen = attn_mask.contiguous().view(torch.uint8), attn_mask.any(1).view(torch.uint8)
    launch(
        "joint_attention.kernel:pack_mask_kernel",
        batch * -(-rows // PACK_ROWS),
        tensors=(mask, seen, bits),
        strides=(),
        lengths=(length, context_length, x_rows, rows),
        constants=(PACK_ROWS,),
        warps=4,
    )
    return bits


def _reference(*arguments: Any) -> Tensor:
    return joint_attention_reference(*arguments).contiguous()


def _fake(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1] * query.shape[3])


def _fake_with_lse(query: Tensor, *_: Any) -> Tuple[Tensor, Tensor]:
    lse = torch.promote_types(query.dtype, torch.float32)
    return _fake(query), query.new_empty(query.shape[:3], dtype=lse)


def _fake_backward(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(3, *_fake(query).shape)


def _setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Tensor, Tensor]) -> None:
    *streams, attn_mask, ctx.context_length = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*streams, *output, attn_mask)


def _autograd(ctx: Any, grad: Optional[Tensor], _: Optional[Tensor]) -> Tuple[Optional[Tensor], ...]:
    *streams, out, lse, attn_mask = ctx.saved_tensors
    if grad is None:
        return (None,) * 5
    if torch.is_grad_enabled():  # create_graph=True: as differentiable again as PyTorch's own attention is
        out = joint_attention_reference(*streams, attn_mask, ctx.context_length)
        wanted = [stream for stream in streams if stream.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
        return *[next(found) if stream.requires_grad else None for stream in streams], None, None
    run = attention_backward_reference if _unsupported(streams[0]) or why_not(streams[0]) else _call_backward
    gradients = run(*streams, out, lse, grad, attn_mask, ctx.context_length)
    return *gradients.unflatten(-1, (streams[0].shape[1], -1)).transpose(2, 3), None, None


_call = register_op(
    "joint_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, SymInt context_length) -> Tensor",
    kernel=_forward,
    reference=_reference,
    fake=_fake,
    unsupported=_unsupported,
    by_reference=True,
)
_call_forward = register_op(
    "joint_attention_forward(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, SymInt context_length)"
    " -> (Tensor, Tensor)",
    kernel=_forward_with_lse,
    reference=attention_forward_reference,
    fake=_fake_with_lse,
    unsupported=_unsupported,
    setup_context=_setup_context,
    backward=_autograd,
)
_call_backward = register_op(
    "joint_attention_backward(Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, Tensor grad,"
    " Tensor? attn_mask, SymInt context_length) -> Tensor",
    kernel=_backward,
    reference=attention_backward_reference,
    fake=_fake_backward,
    unsupported=_unsupported,
)
