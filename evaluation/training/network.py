"""The model that is trained: a tree's MMDiT between two linear layers."""

from types import ModuleType

import torch
from torch import Tensor, nn

from evaluation.training.config import TrainingConfig
from evaluation.training.digits import CLASSES, VALUES, FlowBatch

FREQUENCIES = 8
CONTEXT = 4  # tokens that tell the class


class FlowNetwork(nn.Module):
    """The direction of each token: the tokens are x, time and class y, what the class has to say the context."""

    def __init__(self, mmdit: ModuleType, config: TrainingConfig) -> None:
        super().__init__()
        dim = config.dim
        self.tokens_in, self.tokens_out = nn.Linear(VALUES, dim), nn.Linear(dim, VALUES)
        self.time, self.label = nn.Linear(2 * FREQUENCIES, dim), nn.Embedding(CLASSES, dim)
        self.context = nn.Embedding(CLASSES, CONTEXT * dim)
        self.norm = nn.LayerNorm(dim)
        sizes = {"dim_base": dim, "num_attn_head": config.heads, "dim_feedforward": config.feed_forward}
        self.stack = mmdit.MMDiT(mmdit.MMDiTConfig(num_layers=config.layers, dropout=config.dropout, **sizes))

    def forward(self, batch: FlowBatch) -> Tensor:
        """(B, TOKENS, VALUES)"""
        dtype = self.time.weight.dtype
        angles = batch.times[:, None] * torch.pi * 2.0 ** torch.arange(FREQUENCIES, device=batch.times.device)
        y = self.time(torch.cat((angles.sin(), angles.cos()), dim=1).to(dtype)) + self.label(batch.labels)
        context = self.context(batch.labels).unflatten(1, (CONTEXT, -1))
        x, _ = self.stack(self.tokens_in(batch.points.to(dtype)), y, context)
        return self.tokens_out(self.norm(x))
