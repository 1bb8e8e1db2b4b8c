"""Joint softmax attention of x and a context: registration, dispatch, launch."""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from mmdit.ops.joint_attention.reference import joint_attention_reference
from mmdit.ops.joint_attention.tuning import attention_tiles
from mmdit.runtime.custom_op import register_op
from mmdit.runtime.dispatch import takes_fused
from mmdit.runtime.launch import launch

# Above these the best SDPA backend is faster on an H200: bf16, head dim 128, 2 x 16 x 4352 rows, 532 us against 606;
# fp32, head dim 64, 8 x 8 x 1088 rows, 616 against 1013.
MAX_HEAD_DIM = {torch.float16: 64, torch.bfloat16: 64, torch.float32: 16}
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
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript compiles a condition, but not what is under this one)
        if takes_fused("joint_attention", query, _obstacle(query, key, value)):
            return _call(query, key, value, attn_mask, context_length)
    return joint_attention_reference(query, key, value, attn_mask, context_length)


def _obstacle(query: Tensor, key: Tensor, value: Tensor) -> Optional[str]:
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return "gradients are recorded, and the kernel has no backward"
    return _unsupported(query)


def _unsupported(query: Tensor) -> Optional[str]:
    limit = MAX_HEAD_DIM.get(query.dtype, query.shape[3])
    return None if query.shape[3] <= limit else f"a head dim of more than {limit} in {query.dtype}"


def _rows(t: Tensor) -> Tensor:
    """t with a last stride of 1, which the kernel relies on."""
    return t if t.stride(-1) == 1 else t.contiguous()


def _forward(query: Tensor, key: Tensor, value: Tensor, attn_mask: Optional[Tensor], context_length: int) -> Tensor:
    from mmdit.ops.joint_attention.kernel import joint_attention_kernel

    batch, heads, joint_length, dim_head = query.shape
    query, key, value = _rows(query), _rows(key), _rows(value)
    out = query.new_empty(batch, joint_length, heads * dim_head)
    bits = None if attn_mask is None else _pack(attn_mask, joint_length)
    tiles = attention_tiles(batch * heads, joint_length, dim_head, query.dtype, bits is not None)
    launch(
        joint_attention_kernel,
        batch * heads * -(-joint_length // tiles.queries),
        tensors=(query, key, value, bits, out),
        strides=(*query.stride()[:3], *key.stride()[:3], *value.stride()[:3]),
        lengths=(joint_length,),
        constants=(
            *(heads, dim_head, LOG2_E / dim_head**0.5, bits is not None, LARGEST_SUM[query.dtype], _precision()),
            *(tiles.queries, tiles.keys, tiles.block, tiles.stages),
        ),
        warps=tiles.warps,
    )
    return out


def _pack(attn_mask: Tensor, joint_length: int) -> Tensor:
    """The joint mask (B, S, S) of attn_mask (B, L, L), 32 columns to a word."""
    from mmdit.ops.joint_attention.kernel import pack_mask_kernel

    batch, length, _ = attn_mask.shape
    bits = attn_mask.new_empty(batch, joint_length, -(-joint_length // 32), dtype=torch.int32)
    mask, seen = attn_mask.contiguous().view(torch.uint8), attn_mask.any(1).view(torch.uint8)
    launch(
        pack_mask_kernel,
        batch * -(-joint_length // PACK_ROWS),
        tensors=(mask, seen, bits),
        strides=(),
        lengths=(length, joint_length),
        constants=(PACK_ROWS,),
        warps=4,
    )
    return bits


def _precision() -> str:
    """How an fp32 product is taken: as torch's own precision flag allows."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _reference(*arguments: Any) -> Tensor:
    return joint_attention_reference(*arguments).contiguous()


def _fake(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1] * query.shape[3])


def _setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.context_length = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    """By autograd through the reference, once more from the inputs."""
    *streams, attn_mask = ctx.saved_tensors
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in streams]
        out = joint_attention_reference(*leaves, attn_mask, ctx.context_length)
    return *torch.autograd.grad(out, leaves, grad), None, None


_call = register_op(
    "joint_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, int context_length) -> Tensor",
    kernel=_forward,
    reference=_reference,
    fake=_fake,
    unsupported=_unsupported,
    setup_context=_setup_context,
    backward=_autograd,
)
