"""The gradients of a stack's modulations, for what they are made of."""

from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from mmdit.inference.weights import BlockWeights


def modulation_backward(
    d_modulation: Tensor,
    conditioned: bool,
    weights: Sequence[BlockWeights],
    y: Optional[Tensor],
    wants_y: bool,
    wants_weights: bool,
) -> Tuple[Optional[Tensor], List[Tuple[Optional[Tensor], ...]]]:
    """d_y, and the gradients of each block's `condition`, by one product each; None for what is not wanted.

    Args:
        d_modulation: (B, layers, streams, 6, D) fp32, the layers being those of `weights`.
        y: (B, D) or (B, 1, D), where conditioned.
    """
    nothing = [(None,) * len(w.condition) for w in weights]
    if not conditioned:
        if not wants_weights:
            return None, nothing
        d = d_modulation.sum(0)[:, 0].to(weights[0].condition[0].dtype)  # (layers, 6, D)
        return None, [(t[0], t[1], t[3], t[4]) for t in d]
    batch, layers, streams, _, dim = d_modulation.shape
    condition = y.view(batch, dim)
    gate = torch.sigmoid(condition.float())
    d = d_modulation.view(batch, -1).to(y.dtype)  # (B, layers streams 6 D)
    d_y = None
    if wants_y:
        matrices = torch.cat([m for w in weights for m in w.condition[: 2 * streams : 2]])
        slope = gate * (1 + condition.float() * (1 - gate))
        d_y = ((d @ matrices).float() * slope).to(y.dtype).view(y.shape)
    if not wants_weights:
        return d_y, nothing
    d_matrices = (d.mT @ (condition.float() * gate).to(y.dtype)).view(layers, streams, 6 * dim, dim)
    d_biases = d_modulation.sum(0).view(layers, streams, 6 * dim).to(y.dtype)
    return d_y, [tuple(t for s in range(streams) for t in (d_matrices[i, s], d_biases[i, s])) for i in range(layers)]
