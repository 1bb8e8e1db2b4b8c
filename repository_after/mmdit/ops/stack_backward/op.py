"""The backward of a stack's rows: all of a layer but attention, two launches from gradient to gradient and three for
the weights'. Its reference is autograd through the modules.

B batch, L x length, C context length, R rows a sample (see padded_layout), D model dim, H heads, F feed-forward.
"""

from math import prod
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from mmdit.attention import RMS_EPS
from mmdit.inference.weights import NORM_EPS, LayerWeights, StreamWeights
from mmdit.ops.joint_attention.op import LOG2_E
from mmdit.ops.stack_backward.tuning import backward_tiles
from mmdit.ops.stack_rows.op import HEAD_FIELDS, pairs
from mmdit.runtime.architecture import on_gpu
from mmdit.runtime.launch import can_chain, launch, product_precision

MATRICES = ("qkv_weight", "out_weight", "up_weight", "down_weight", "up_bias")  # an order of the kernels'
VECTORS = ("qkv_bias", "query_norm", "key_norm", "out_bias", "out_norm", "down_bias")
BLOCK_FIELDS = ("out_weight", "out_bias", "out_norm", "up_weight", "up_bias", "down_weight", "down_bias")
SUMS = 14


class Gradients(NamedTuple):
    """What the kernels of a layer's backward hand to each other."""

    residual: Tensor  # (B, R, D) fp32
    heads: Tensor  # (3, B, R, D): as query, key and value are stored; then of what Wq's, Wk's and Wv's products give
    joined: Tensor  # (B, R, D); then what entered those products
    attended: Tensor  # (B, R, D): of what Wo's product gives
    hidden: Tensor  # (B, R, D): what entered the MLP, in the memory of heads
    mlp: Tensor  # (B, R, D): of what the MLP's last product gives, in the memory of heads
    sums: Tensor  # (B, R / rows, 14, D) fp32
    parts: Optional[Tensor]  # (splits, SIZE) fp32, or None: no weight's gradient is wanted
    modulation: Tensor  # (B, N, M, 6, D) fp32


def matrices_size(dim: int, forward: int) -> int:
    """Elements of MATRICES."""
    return (4 * dim + 2 * forward) * dim + forward


def row_size(dim: int, forward: int) -> int:
    """Elements of a row of what sum_up gives."""
    return matrices_size(dim, forward) + 8 * dim


def stream_weights(row: Tensor, dim: int, forward: int) -> StreamWeights:
    """A row of what sum_up gives as a stream's weights."""
    shapes: Any = {"qkv_weight": (3 * dim, dim), "out_weight": (dim, dim), "up_weight": (forward, dim)}
    shapes |= {"down_weight": (dim, forward), "up_bias": (forward,), "qkv_bias": (3 * dim,)}
    shapes = [shapes.get(name, (dim,)) for name in MATRICES + VECTORS]
    views = row.split([prod(shape) for shape in shapes])
    named = zip(MATRICES + VECTORS, [v.view(shape) for v, shape in zip(views, shapes, strict=True)], strict=True)
    return StreamWeights(**dict(named))


class RowBackward:
    """One call's launches of the row kernels' backward.

    Args:
        like: a tensor of the weights' dtype and device.
        modulation: (B or 1, N, M, 6, D) fp32.
        layout: as padded_layout gives it.
        wanted: whether any weight's gradient is.
        seeds, p: as RowRun's.
    """

    def __init__(
        self,
        like: Tensor,
        batch: int,
        modulation: Tensor,
        layout: Tuple[int, int, int, int],
        heads: int,
        forward: int,
        cos: Tensor,
        sin: Tensor,
        start_pos: Optional[Union[int, Tensor]],
        wanted: bool,
        seeds: Optional[Sequence[Tensor]],
        p: float,
    ) -> None:
        length, context_length, x_rows, rows = layout
        _, self.layers, self.streams, _, self.dim = modulation.shape
        self.like, self.batch, self.modulation, self.forward = like, batch, modulation, forward
        self.cos, self.sin, self.seeds, self.p = cos, sin, seeds, p
        self.start, self.starts = (0, start_pos) if isinstance(start_pos, Tensor) else (start_pos or 0, None)
        self.plan = plan = backward_tiles(like, batch * rows, forward)
        self.tiles, self.x_tiles = rows // plan.rows, x_rows // plan.rows
        self.tile_lengths = (length, context_length, x_rows // plan.tile, rows // plan.tile)
        weights_tiles, weights_x_tiles = rows // plan.weights_tile, x_rows // plan.weights_tile
        self.x_splits = -(-batch * weights_x_tiles // plan.span)
        self.splits = self.x_splits + -(-batch * (weights_tiles - weights_x_tiles) // plan.span)
        self.weights_lengths = (
            *(length, context_length, weights_x_tiles, weights_tiles),
            *(batch, plan.span, self.x_splits),
        )
        self.head_dim = self.dim // heads
        self.size = matrices_size(self.dim, forward)
        self.block = max(16, 1 << (self.dim - 1).bit_length())
        self.approximate = on_gpu(like) and like.dtype != torch.float32
        self.precision, self.chained = product_precision(), can_chain(like)
        self.options: Dict[str, Any] = {"launch_pdl": True} if self.chained else {}
        shape = (batch, rows, self.dim)
        halves = like.new_empty(5, *shape)
        self.gradients = Gradients(
            torch.empty(shape, device=like.device),
            *(halves[:3], halves[3], halves[4], halves[0], halves[1]),
            torch.empty(batch, self.tiles, SUMS, self.dim, device=like.device),
            torch.empty(self.splits, self.size, device=like.device) if wanted else None,
            torch.empty(batch, *modulation.shape[1:], device=like.device),
        )

    def block_backward(self, index: int, weights: LayerWeights, residual: Tensor, joined: Tensor) -> None:
        """From the gradient of a layer's output to that of its attention, and of what passes by it."""
        plan, gradients = self.plan, self.gradients
        launch(
            "stack_backward.kernel:block_backward_kernel",
            self.batch * self.tile_lengths[3],
            tensors=(
                *(gradients.residual, residual, joined, self.modulation, *pairs(weights, BLOCK_FIELDS)),
                *(None if self.seeds is None else self.seeds[index], gradients.hidden, gradients.mlp),
                *(gradients.joined, gradients.attended, gradients.joined, gradients.sums),
            ),
            strides=(self._modulation_batch(),),
            lengths=(index * self.streams, *self.tile_lengths),
            constants=(
                *(
                    plan.tile,
                    plan.rows,
                    NORM_EPS,
                    RMS_EPS,
                    self.approximate,
                    self.dim,
                    self.forward,
                    self.block,
                    plan.block_f,
                ),
                *(plan.stages, self.precision, self.p, self.chained),
            ),
            warps=plan.block_warps,
            **self.options,
        )

    def heads_backward(
        self, index: int, weights: LayerWeights, residual: Tensor, halves: bool, scratch: Tensor
    ) -> None:
        """From the gradients of query, key and value to that of the layer's input. halves: in each head of query and
        key the even columns come first. scratch: (2 or more, B, R, D), overwritten.
        """
        plan, gradients = self.plan, self.gradients
        launch(
            "stack_backward.kernel_heads:heads_backward_kernel",
            self.batch * self.tile_lengths[3],
            tensors=(
                *(gradients.heads, gradients.residual, residual, self.modulation, *pairs(weights, HEAD_FIELDS)),
                *(self.cos, self.sin, self.starts, gradients.joined, scratch, gradients.sums),
            ),
            strides=(self._modulation_batch(), gradients.heads.stride(0), scratch.stride(0)),
            lengths=(index * self.streams, self.start, *self.tile_lengths),
            constants=(
                *(
                    plan.tile,
                    plan.rows,
                    halves,
                    LOG2_E / self.head_dim**0.5,
                    NORM_EPS,
                    RMS_EPS,
                    self.dim,
                    self.head_dim,
                ),
                *(self.block, plan.stages, self.precision, self.chained),
            ),
            warps=plan.heads_warps,
            **self.options,
        )

    def mlp_weights(self, weights: LayerWeights) -> None:
        """Each split's sums for the gradients of the MLP's weights; to be called right after block_backward."""
        plan, gradients = self.plan, self.gradients
        launch(
            "stack_backward.kernel_weights:mlp_weights_kernel",
            self.splits * self.forward // plan.weights_block_f,
            tensors=(
                *(gradients.hidden, gradients.mlp),
                *(*pairs(weights, ("up_weight", "up_bias", "down_weight")), gradients.parts),
            ),
            strides=(self.size,),
            lengths=self.weights_lengths,
            constants=(
                *(plan.weights_tile, self.approximate, self.dim, self.forward, self.block, plan.weights_block_f),
                *(plan.weights_stages, self.precision, self.chained),
            ),
            warps=plan.mlp_weights_warps,
            **self.options,
        )

    def attention_weights(self, joined: Tensor) -> None:
        """Each split's sums for the gradients of Wq, Wk, Wv and Wo; to be called after heads_backward."""
        plan, gradients = self.plan, self.gradients
        launch(
            "stack_backward.kernel_weights:attention_weights_kernel",
            self.splits * 4,
            tensors=(gradients.joined, gradients.heads, joined, gradients.attended, gradients.parts),
            strides=(gradients.heads.stride(0), self.size),
            lengths=self.weights_lengths,
            constants=(plan.weights_tile, self.dim, self.block, plan.weights_stages, self.precision, self.chained),
            warps=plan.attention_weights_warps,
            **self.options,
        )

    def sum_up(self, index: int, wanted: bool) -> Optional[Tensor]:
        """Write the modulations' gradients of a layer, and give its weights', if wanted, a row for each stream."""
        plan, gradients = self.plan, self.gradients
        flat = self.like.new_empty(self.streams, row_size(self.dim, self.forward)) if wanted else None
        columns = self.block // 16
        vectors_and_matrices = 8 * columns + -(-self.size // plan.sum_block) if wanted else 0
        launch(
            "stack_backward.kernel_weights:sum_parts_kernel",
            self.streams * (self.batch + vectors_and_matrices),
            tensors=(
                *(gradients.sums, gradients.parts if wanted else gradients.sums, gradients.modulation),
                flat if wanted else gradients.sums,
            ),
            strides=(self.size,),
            lengths=(index, self.x_tiles, self.tiles, self.batch, self.x_splits, self.splits),
            constants=(self.layers, self.streams, self.dim, self.block, plan.sum_block, columns, self.chained),
            warps=4,
            **self.options,
        )
        return flat

    def _modulation_batch(self) -> int:
        return self.modulation.stride(0) if self.modulation.shape[0] > 1 else 0
