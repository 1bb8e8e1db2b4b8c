"""The gradients of a stack's modulations, for what they are made of."""

from typing import Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdit.inference.weights import BlockWeights


def modulation_backward(
    d_modulation: Tensor,
    conditioned: bool,
    weights: Sequence[BlockWeights],
    y: Optional[Tensor],
    wants_y: bool,
    wants_weights: bool,
) -> Tuple[Optional[Tensor], Optional[Tensor], Optional[Tensor]]:
    """The gradients of y, of all weights of `condition` (layers, streams, 6 D, D), and of all its biases (layers,
    streams, 6 D); where nothing is conditioned of its vectors, second, (layers, 6, D). None for what is not wanted.

    Args:
        d_modulation: (B, layers, streams, 6, D) fp32, the layers being those of `weights`.
        y: (B, D) or (B, 1, D), where conditioned.
    """
    if not conditioned:
        vectors = d_modulation.sum(0)[:, 0].to(weights[0].condition[0].dtype) if wants_weights else None
        return None, vectors, None
    batch, layers, streams, _, dim = d_modulation.shape
    condition = y.view(batch, dim)
    d = d_modulation.view(batch, -1).to(y.dtype)  # (B, layers streams 6 D)
    d_y = None
    if wants_y:
        matrices = torch.cat([m for w in weights for m in w.condition[: 2 * streams : 2]])
        d_y = torch.ops.aten.silu_backward(d @ matrices, condition).view(y.shape)
    if not wants_weights:
        return d_y, None, None
    d_matrices = (d.mT @ F.silu(condition)).view(layers, streams, 6 * dim, dim)
    d_biases = d_modulation.sum(0).view(layers, streams, 6 * dim).to(y.dtype)
    return d_y, d_matrices, d_biases
