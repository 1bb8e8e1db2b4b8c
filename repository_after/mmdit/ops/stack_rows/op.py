"""A whole stack on tiles of rows: three launches a layer, or two where the batch fills the GPU. Its reference is
inference/rows.py, whose every op is PyTorch arithmetic where no kernel can run.

B batch, L x length, C context length, D model dim, H heads, Dh head dim, F feed-forward.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from mmdit.attention import RMS_EPS
from mmdit.inference.weights import NORM_EPS, LayerWeights
from mmdit.ops.joint_attention.op import LOG2_E, attend, pack_mask
from mmdit.ops.stack_rows.tuning import HOPPER_TILES, PADDING, RowTiles, row_tiles
from mmdit.runtime.architecture import on_gpu
from mmdit.runtime.launch import Block, can_chain, launch, product_precision

BLOCK_VECTORS = ("out_bias", "out_norm", "up_bias", "down_bias")
BLOCK_FIELDS = ("out_weight", "out_bias", "out_norm", "up_weight", "up_bias", "down_weight", "down_bias")
MATRICES = ("out_weight", "up_weight", "down_weight", "qkv_weight")
HEAD_FIELDS = ("qkv_weight", "qkv_bias", "query_norm", "key_norm")


class Buffers(NamedTuple):
    """What the kernels of a call hand to each other. R rows a sample: x, padding, the context, padding."""

    residual: Tensor  # (B, R, D) fp32
    heads: Tensor  # (3, B, R, D): query, key, value
    joined: Tensor  # (B, R, D): attention
    mid: Tensor  # (B, R, D) fp32, or x_out (B, L, D) where the MLP is not sliced
    partial: Tensor  # (slices, B, R, D) fp32, or context_out (B, C, D)
    kept: Optional[Tensor] = None  # (B, R, D): the residual again, for a backward


def run_tiles(
    layers: Sequence[LayerWeights],
    modulation: Tensor,
    x: Tensor,
    context: Optional[Tensor],
    attn_mask: Optional[Tensor],
    start_pos: Optional[Union[int, Tensor]],
    heads: int,
    cos: Tensor,
    sin: Tensor,
    plan: Optional[RowTiles] = None,
) -> Tuple[Tensor, Optional[Tensor]]:
    """x (B, L, D) and context (B, C, D), or None, after all layers, in their dtype; the arguments are run_rows'.

    plan: other tiles than the table's. The residual stream stays in fp32 between the layers.
    """
    batch, length, dim = x.shape
    context_length = 0 if context is None else context.shape[1]
    streams = modulation.shape[2]
    plan = plan or row_tiles(batch * (length + context_length), dim, layers[0].x.up_weight.shape[0], x)
    if plan.hopper and [1 for weights in layers for t in pairs(weights, MATRICES) if t.data_ptr() % 16]:
        plan = plan._replace(hopper=False)  # TMA takes no such address
    layout = padded_layout(length, context_length)
    _, _, x_rows, rows = layout
    x_out = x.new_empty(batch, length, dim)
    context_out = x_out if context is None else context.new_empty(batch, context_length, dim)
    buffers = _allocate(x, rows, plan.slices, x_out, context_out)
    query, key, value = buffers.heads.view(3, batch, rows, heads, -1).transpose(2, 3)
    bits = None if attn_mask is None else pack_mask(attn_mask, context_length, x_rows, rows)
    run = RowRun(
        plan,
        buffers,
        modulation,
        (x, x if context is None else context),
        layout,
        streams,
        heads,
        cos,
        sin,
        start_pos,
    )

    for index, weights in enumerate(layers):
        if index == 0 or plan.slices > 1:
            run.project(index, weights, layers[index - 1])
        attend(query, key, value, bits, buffers.joined, layout, 1.0, run.chained)
        run.update(index, weights, layers[index + 1] if index + 1 < len(layers) else None)
    if plan.slices > 1:
        run.finish(len(layers) - 1, layers[-1], x_out, context_out)
    return x_out, None if context is None else context_out


def padded_layout(length: int, context_length: int) -> Tuple[int, int, int, int]:
    """Rows of x, of the context, where the context begins, and R."""
    x_rows = -(-length // PADDING) * PADDING
    return length, context_length, x_rows, x_rows + -(-context_length // PADDING) * PADDING


def _allocate(x: Tensor, rows: int, slices: int, x_out: Tensor, context_out: Tensor) -> Buffers:
    batch, _, dim = x.shape
    shape = (batch, rows, dim)
    heads, joined = x.new_empty(3, *shape), x.new_empty(shape)
    if slices == 1:
        residual = torch.empty(shape, device=x.device)
        return Buffers(residual, heads, joined, x_out, context_out)
    wide = torch.empty(slices + 2, *shape, device=x.device)
    return Buffers(wide[0], heads, joined, wide[1], wide[2:])


def pairs(weights: Optional[LayerWeights], names: Sequence[str]) -> List[Optional[Tensor]]:
    """For each name x's weight, then the context's (x's again without one)."""
    if weights is None:
        return [None] * (2 * len(names))
    other = weights.context or weights.x
    return [getattr(stream, name) for name in names for stream in (weights.x, other)]


class RowRun:
    """One call's launches of the row kernels. `buffers` may be others at each layer.

    seeds: a seed (1,) int64 for each layer, whose MLP drops the share p; None for no dropout.
    """

    def __init__(
        self,
        plan: RowTiles,
        buffers: Buffers,
        modulation: Tensor,
        inputs: Tuple[Tensor, Tensor],
        layout: Tuple[int, int, int, int],
        streams: int,
        heads: int,
        cos: Tensor,
        sin: Tensor,
        start_pos: Optional[Union[int, Tensor]],
        seeds: Optional[Sequence[Tensor]] = None,
        p: float = 0.0,
    ) -> None:
        length, context_length, x_rows, rows = layout
        x = inputs[0]
        self.batch, _, self.dim = x.shape
        self.plan, self.buffers, self.modulation, self.inputs = plan, buffers, modulation, inputs
        self.streams, self.cos, self.sin, self.seeds, self.p = streams, cos, sin, seeds, p
        self.tiles = rows // plan.tile
        self.lengths = (length, context_length, x_rows // plan.tile, self.tiles)
        self.start, self.starts = (0, start_pos) if isinstance(start_pos, Tensor) else (start_pos or 0, None)
        self.modulation_batch = modulation.stride(0) if modulation.shape[0] > 1 else 0
        self.slice_stride = buffers.joined.numel()
        self.head_dim = self.dim // heads
        self.block = max(16, 1 << (self.dim - 1).bit_length())
        self.precision = product_precision()
        self.approximate = on_gpu(x) and x.dtype != torch.float32
        self.chained = can_chain(x)
        self.options: Dict[str, Any] = {"launch_pdl": True} if self.chained else {}

    def project(
        self,
        index: int,
        weights: LayerWeights,
        before: LayerWeights,
        residual: Optional[Tuple[Tensor, Tensor]] = None,
    ) -> None:
        """Query, key and value of a layer, from the inputs or from what the layer before left, which the buffers keep;
        or from its residual (B, L, D) and (B, C, D).
        """
        plan, buffers, first = self.plan, self.buffers, index == 0 or residual is not None
        source = residual or (self.inputs if first else (buffers.mid, buffers.partial))
        launch(
            "stack_rows.kernel:qkv_kernel",
            self.batch * self.tiles * plan.qkv_parts,
            tensors=(
                *(*source, self.modulation, *pairs(weights, HEAD_FIELDS), *pairs(before, ("down_bias",))),
                *(
                    self.cos,
                    self.sin,
                    self.starts,
                    *((None, None) if residual else (buffers.residual, buffers.kept)),
                    buffers.heads,
                ),
            ),
            strides=(
                *(*source[0].stride()[:2], *source[1].stride()[:2]),
                *(self.modulation_batch, buffers.heads.stride(0), self.slice_stride),
            ),
            lengths=(index * self.streams, self.start, *self.lengths),
            constants=(
                *(first, plan.slices, plan.qkv_parts, self.streams, plan.tile, self._scale(), NORM_EPS, RMS_EPS),
                *(self.dim, self.head_dim, self.block, self.precision, self.chained),
            ),
            warps=plan.qkv_warps,
            **self.options,
        )

    def update(self, index: int, weights: LayerWeights, following: Optional[LayerWeights]) -> None:
        """All of a layer that comes after its attention; without slices also the next layer's query, key and value."""
        plan, buffers, last = self.plan, self.buffers, following is None
        if plan.hopper and self.seeds is None:
            return self._update_hopper(index, weights, following)
        ahead = following if plan.slices == 1 else None
        tables = (None, None, None) if ahead is None else (self.cos, self.sin, self.starts)
        launch(
            "stack_rows.kernel:rows_kernel",
            self.batch * self.tiles * plan.slices,
            tensors=(
                *(buffers.joined, buffers.residual, self.modulation, *pairs(weights, BLOCK_FIELDS[:3])),
                *(*pairs(weights, BLOCK_FIELDS[3:]), *pairs(ahead, HEAD_FIELDS), *tables),
                None if self.seeds is None else self.seeds[index],
                *((buffers.mid, buffers.partial) if ahead is None else (buffers.residual, None)),
                *((None, None) if ahead is None else (buffers.kept, buffers.heads)),
            ),
            strides=(self.modulation_batch, buffers.heads.stride(0), self.slice_stride),
            lengths=(index * self.streams, self.start, *self.lengths),
            constants=(
                *(plan.slices, last, self.streams, plan.tile, self._scale(), NORM_EPS, RMS_EPS, self.approximate),
                *(self.dim, self.head_dim, weights.x.up_weight.shape[0], self.block, plan.block_f, plan.stages),
                *(self.precision, self.p, self.chained),
            ),
            warps=plan.rows_warps,
            **self.options,
        )

    def _update_hopper(self, index: int, weights: LayerWeights, following: Optional[LayerWeights]) -> None:
        buffers, last = self.buffers, following is None
        quad = self.batch * self.tiles > HOPPER_TILES
        width = 64 if quad else 128
        ahead = weights if last else following
        matrices = zip(
            pairs(weights, ("out_weight", "up_weight", "down_weight")) + pairs(ahead, ("qkv_weight",)),
            (128, 128, width, width, 128, 128, 128, 128),
            strict=True,
        )
        launch(
            "stack_rows.kernel_hopper_quad:rows_quad_kernel" if quad else "stack_rows.kernel_hopper:rows_hopper_kernel",
            self.batch * self.tiles,
            descriptors=(
                Block.of(buffers.joined.flatten(0, 1), 64, width),
                *[Block.of(matrix, rows, 64) for matrix, rows in matrices],
                Block.of(buffers.heads.flatten(0, 2), 64, width),
            ),
            tensors=(
                *(buffers.residual, None if last else buffers.kept, self.modulation, *pairs(weights, BLOCK_VECTORS)),
                *(*pairs(ahead, HEAD_FIELDS[1:]), self.cos, self.sin, self.starts),
                *(buffers.mid, buffers.partial),
            ),
            strides=(self.modulation_batch,),
            lengths=(index * self.streams, self.start, *self.lengths, self.batch),
            constants=(
                *(last, self.streams, self._scale(), NORM_EPS, RMS_EPS, self.head_dim, weights.x.up_weight.shape[0]),
                self.chained,
            ),
            warps=4 if quad else 8,
            **({"maxnreg": 128} if quad else {}),  # four programs to a multiprocessor
            **self.options,
        )

    def finish(self, index: int, weights: LayerWeights, x_out: Tensor, context_out: Tensor) -> None:
        """The outputs, from what the last layer's slices left."""
        launch(
            "stack_rows.kernel:sum_kernel",
            self.batch * self.tiles,
            tensors=(
                *(self.buffers.mid, self.buffers.partial, self.modulation, *pairs(weights, ("down_bias",))),
                *(x_out, context_out),
            ),
            strides=(self.modulation_batch, self.slice_stride),
            lengths=(index * self.streams, *self.lengths),
            constants=(self.plan.slices, self.plan.tile, self.dim, self.block, self.chained),
            warps=4,
            **self.options,
        )

    def _scale(self) -> float:
        return LOG2_E / self.head_dim**0.5
