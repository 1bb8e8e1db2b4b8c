"""The layers of a stack forwards, keeping what backward needs, and backwards.

B batch, L x length, C context length, R rows a sample (see padded_layout), D model dim, H heads, N layers, M streams.
"""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from mmdit.inference.weights import LayerWeights
from mmdit.ops.joint_attention.backward import attend_backward
from mmdit.ops.joint_attention.op import attend
from mmdit.ops.stack_backward.op import RowBackward
from mmdit.ops.stack_rows.op import MATRICES, Buffers, RowRun, pairs
from mmdit.ops.stack_rows.tuning import training_tiles

KEPT = {
    "none": ("residual", "heads", "joined", "lse"),
    "selective": ("residual", "joined", "lse"),
    "full": ("residual",),
}
RECOMPUTE = tuple(KEPT)
Layout = Tuple[int, int, int, int]


class Call(NamedTuple):
    """What a call has beside tensors that gradients may be wanted of."""

    conditioned: bool
    layers: int  # N
    streams: int  # M
    heads: int
    cos: Tensor  # (positions, Dh / 2)
    sin: Tensor
    mask: Optional[Tensor]  # (B, L, L) bool
    start_pos: Optional[Union[int, Tensor]]
    recompute: str  # of RECOMPUTE
    p: float  # share that the dropout drops
    saves: bool  # whether a backward may follow


class Saved(NamedTuple):
    """What a forward leaves for its backward."""

    residual: Tensor  # (N, B, R, D): each layer's input, rounded; between the layers it is fp32
    heads: Optional[Tensor]  # (N, 3, B, R, D): query, key, value
    joined: Optional[Tensor]  # (N, B, R, D): attention
    lse: Optional[Tensor]  # (N, B, H, R) fp32


def saved_shapes(call: Call, batch: int, rows: int, dim: int) -> Dict[str, Tuple[int, ...]]:
    """Of each of Saved that the call keeps."""
    layers, rest = call.layers, (batch, rows, dim)
    shapes = {"residual": (layers, *rest), "heads": (layers, 3, *rest), "joined": (layers, *rest)}
    shapes |= {"lse": (layers, batch, call.heads, rows)}
    return {name: shape for name, shape in shapes.items() if call.saves and name in KEPT[call.recompute]}


class Passes:
    """The launches of one call, in either direction.

    Args:
        call: what is no tensor of the graph.
        layers: the weights.
        modulation: (B or 1, N, M, 6, D) fp32.
        like: a tensor of the call's dtype and device.
        batch: B.
        layout: as padded_layout gives it.
        bits: the mask as pack_mask makes it, or None.
        seeds: (N, 2) int64, of which the first count, or None for no dropout.
    """

    def __init__(
        self,
        call: Call,
        layers: Sequence[LayerWeights],
        modulation: Tensor,
        like: Tensor,
        batch: int,
        layout: Layout,
        bits: Optional[Tensor],
        seeds: Optional[Tensor],
    ) -> None:
        self.call, self.layers, self.modulation, self.like = call, layers, modulation, like
        self.batch, self.layout, self.bits = batch, layout, bits
        self.seeds = None if seeds is None else seeds.unbind()
        dim, forward = modulation.shape[-1], layers[0].x.up_weight.shape[0]
        plan = training_tiles(batch * layout[3], dim, forward, like)
        unaligned = [1 for weights in layers for t in pairs(weights, MATRICES) if t.data_ptr() % 16]
        self._again: Optional[Tuple[RowRun, Tensor]] = None
        self.plan = plan._replace(hopper=plan.hopper and not unaligned and seeds is None)  # TMA takes no such address

    def forward(self, x: Tensor, context: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor], Saved]:
        """x (B, L, D) and context (B, C, D), or None, after all layers, and what backward needs."""
        call, depth = self.call, len(self.layers)
        shape = (self.batch, self.layout[3], x.shape[2])
        kept = saved_shapes(call, *shape)
        residual = x.new_empty(kept["residual"]) if "residual" in kept else None
        heads, joined = x.new_empty(kept.get("heads", (1, 3, *shape))), x.new_empty(kept.get("joined", (1, *shape)))
        one = (1, self.batch, call.heads, shape[1])
        lse = torch.empty(kept.get("lse", one), device=x.device) if call.saves else None
        x_out = torch.empty_like(x, memory_format=torch.contiguous_format)
        context_out = x_out if context is None else torch.empty_like(context, memory_format=torch.contiguous_format)
        wide = torch.empty(shape, device=x.device)

        def buffers(index: int) -> Buffers:
            """With what is written for layer `index`, of what is read of the one before."""
            own_heads, own_joined = heads[min(index, len(heads) - 1)], joined[min(index - 1, len(joined) - 1)]
            own = None if residual is None or index == depth else residual[index]
            return Buffers(wide, own_heads, own_joined, x_out, context_out, own)

        run = self._run(buffers(0), (x, x if context is None else context))
        run.project(0, self.layers[0], self.layers[0])
        for index, weights in enumerate(self.layers):
            own_heads, run.buffers = run.buffers.heads, buffers(index + 1)
            own_lse = None if lse is None else lse[min(index, len(lse) - 1)]
            self._attend(own_heads, run.buffers.joined, own_lse, run.chained)
            run.update(index, weights, None if index + 1 == depth else self.layers[index + 1])
        saved = zip(Saved._fields, (residual, heads, joined, lse), strict=True)
        found = Saved(*[t if name in kept else None for name, t in saved])
        return x_out, None if context is None else context_out, found

    def backward(
        self,
        saved: Saved,
        d_x: Optional[Tensor],
        d_context: Optional[Tensor],
        first: int,
        wanted: Sequence[bool],
    ) -> Tuple[Tensor, Tensor, List[Optional[Tensor]]]:
        """Down to layer `first`: d_residual (B, R, D) fp32 before it, d_modulation (B, N, M, 6, D) fp32, in which the
        layers before it are not written, and each layer's weights' gradients as sum_up gives them, where `wanted`.
        """
        call = self.call
        run = RowBackward(
            *(self.like, self.batch, self.modulation, self.layout, call.heads, self.layers[0].x.up_weight.shape[0]),
            *(call.cos, call.sin, call.start_pos, any(wanted), self.seeds, call.p),
        )
        length, context_length, x_rows, _ = self.layout
        gradients = run.gradients
        for start, size, d in ((0, length, d_x), (x_rows, context_length, d_context)):
            rows = gradients.residual[:, start : start + size]
            if d is None:
                rows.zero_()
            else:
                rows.copy_(d)
        layer_saved = self._recompute if self._recomputes else lambda index, saved: [t[index] for t in saved[1:]]
        scratch = None if self._recomputes else self.like.new_empty(2, *gradients.residual.shape)
        found: List[Optional[Tensor]] = [None] * len(self.layers)
        for index in range(len(self.layers) - 1, first - 1, -1):
            weights, residual = self.layers[index], saved.residual[index]
            heads, joined, lse = layer_saved(index, saved)
            run.block_backward(index, weights, residual, joined)
            if wanted[index]:
                run.mlp_weights(weights)
            attend_backward(
                *(gradients.joined, joined, *self._split(heads), lse, self.bits, gradients.heads, self.layout),
                run.chained,
            )
            halves = self._recomputes or index == 0 or not self.plan.hopper
            run.heads_backward(index, weights, residual, halves, heads if self._recomputes else scratch)
            if wanted[index]:
                run.attention_weights(joined)
            found[index] = run.sum_up(index, wanted[index])
        return gradients.residual, gradients.modulation, found

    @property
    def _recomputes(self) -> bool:
        return self.call.recompute != "none"

    def _recompute(self, index: int, saved: Saved) -> Tuple[Tensor, Tensor, Tensor]:
        """heads, joined and lse of a layer, from its input and of the last two what is saved."""
        if self._again is None:
            shape = saved.residual.shape[1:]
            heads, joined = self.like.new_empty(3, *shape), self.like.new_empty(shape)
            lse = torch.empty(self.batch, self.call.heads, shape[1], device=joined.device)
            self._again = self._run(Buffers(joined, heads, joined, joined, joined), (joined, joined)), lse
        run, lse = self._again
        length, context_length, x_rows, _ = self.layout
        residual = saved.residual[index]
        parts = residual[:, :length], residual[:, x_rows : x_rows + context_length]
        run.project(index, self.layers[index], self.layers[index], parts)
        heads, joined = run.buffers.heads, run.buffers.joined
        if saved.joined is not None:
            return heads, saved.joined[index], saved.lse[index]
        self._attend(heads, joined, lse, run.chained)
        return heads, joined, lse

    def _run(self, buffers: Buffers, inputs: Tuple[Tensor, Tensor]) -> RowRun:
        call = self.call
        return RowRun(
            *(self.plan, buffers, self.modulation, inputs, self.layout, call.streams, call.heads, call.cos, call.sin),
            *(call.start_pos, self.seeds, call.p),
        )

    def _split(self, heads: Tensor) -> Tuple[Tensor, ...]:
        """query, key, value (B, H, R, Dh) of heads (3, B, R, D)."""
        return heads.unflatten(-1, (self.call.heads, -1)).transpose(2, 3).unbind()

    def _attend(self, heads: Tensor, joined: Tensor, lse: Optional[Tensor], chained: bool) -> None:
        attend(*self._split(heads), self.bits, joined, self.layout, 1.0, chained, lse=lse)
