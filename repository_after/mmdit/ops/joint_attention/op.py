"""Joint softmax attention of x and a context: registration, dispatch, launch."""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from mmdit.ops.joint_attention.reference import joint_attention_reference
from mmdit.ops.joint_attention.tuning import attention_tiles
from mmdit.runtime.architecture import table_key
from mmdit.runtime.custom_op import register_op
from mmdit.runtime.dispatch import takes_fused
from mmdit.runtime.launch import launch, product_precision, unit_stride

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


def _forward(query: Tensor, key: Tensor, value: Tensor, attn_mask: Optional[Tensor], context_length: int) -> Tensor:
    batch, heads, joint_length, dim_head = query.shape
    query, key, value = map(unit_stride, (query, key, value))
    out = query.new_empty(batch, joint_length, heads * dim_head)
    bits = None if attn_mask is None else pack_mask(attn_mask, context_length, attn_mask.shape[1], joint_length)
    attend(query, key, value, bits, out, (joint_length, 0, joint_length, joint_length), LOG2_E / dim_head**0.5)
    return out


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
    from mmdit.ops.joint_attention.kernel import joint_attention_kernel

    batch, heads, rows, dim_head = query.shape
    precision = attention_precision()
    sizes = (batch * heads, rows, dim_head, query.dtype)
    tiles = attention_tiles(table_key(query), *sizes, bits is not None, precision)
    launch(
        joint_attention_kernel,
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


def attention_precision() -> str:
    """How the kernels take fp32 products: where TF32 is allowed by three of them, as vanilla takes IEEE's there."""
    return "ieee" if product_precision() == "ieee" else "tf32x3"


def pack_mask(attn_mask: Tensor, context_length: int, x_rows: int, rows: int) -> Tensor:
    """The joint mask of attn_mask (B, L, L) bool, 32 columns to a word: (B, rows, cdiv(rows, 32)) int32. x begins at
    row 0 and the context at x_rows; the other rows are padding.
    """
    from mmdit.ops.joint_attention.kernel import pack_mask_kernel

    batch, length, _ = attn_mask.shape
    bits = attn_mask.new_empty(batch, rows, -(-rows // 32), dtype=torch.int32)
    mask, seen = attn_mask.contiguous().view(torch.uint8), attn_mask.any(1).view(torch.uint8)
    launch(
        pack_mask_kernel,
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
