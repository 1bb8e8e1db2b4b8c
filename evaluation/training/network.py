"""The models that are trained: a tree's MMDiT between linear layers."""

from types import ModuleType

import torch
from torch import Tensor, nn

from evaluation.training.config import TrainingConfig
from evaluation.training.digits import CLASSES
from evaluation.training.sizes import VALUES

FREQUENCIES = 8
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = sorted(set("".join(NAMES)))
LONGEST = max(map(len, NAMES))


def make_stack(mmdit: ModuleType, config: TrainingConfig, conditioned: bool) -> nn.Module:
    return mmdit.MMDiT(
        mmdit.MMDiTConfig(
            dim_base=config.dim,
            num_layers=config.layers,
            num_attn_head=config.heads,
            dim_feedforward=config.feed_forward,
            dropout=config.dropout,
            conditioning=conditioned,
            use_cross_attn=conditioned,
        )
    )


class TokenNetwork(nn.Module):
    """(B, L, VALUES) -> (B, L, outputs), or pooled over the tokens (B, outputs), by an unconditioned stack."""

    def __init__(self, mmdit: ModuleType, config: TrainingConfig, outputs: int, pooled: bool) -> None:
        super().__init__()
        self.tokens_in, self.tokens_out = nn.Linear(VALUES, config.dim), nn.Linear(config.dim, outputs)
        self.norm = nn.LayerNorm(config.dim)
        self.stack = make_stack(mmdit, config, conditioned=False)
        self.pooled = pooled

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.stack(self.tokens_in(tokens.to(self.norm.weight.dtype))).x_out)  # (B, L, D)
        return self.tokens_out(x.mean(1) if self.pooled else x)


class ContextNetwork(nn.Module):
    """x (B, L, VALUES), context (B, C, VALUES), y (B, VALUES) -> (B, L, VALUES), by a stack with both streams."""

    def __init__(self, mmdit: ModuleType, config: TrainingConfig) -> None:
        super().__init__()
        self.tokens_in, self.context_in, self.condition = (nn.Linear(VALUES, config.dim) for _ in range(3))
        self.norm, self.tokens_out = nn.LayerNorm(config.dim), nn.Linear(config.dim, VALUES)
        self.stack = make_stack(mmdit, config, conditioned=True)

    def forward(self, tokens: Tensor, context: Tensor, y: Tensor) -> Tensor:
        tokens, context, y = (t.to(self.norm.weight.dtype) for t in (tokens, context, y))
        x, _ = self.stack(self.tokens_in(tokens), self.condition(y), self.context_in(context))
        return self.tokens_out(self.norm(x))


class FlowNetwork(nn.Module):
    """The direction of each token: the tokens are x, time and class y, the letters of the class's name the context."""

    def __init__(self, mmdit: ModuleType, config: TrainingConfig) -> None:
        super().__init__()
        dim = config.dim
        self.tokens_in, self.tokens_out = nn.Linear(VALUES, dim), nn.Linear(dim, VALUES)
        self.time, self.label = nn.Linear(2 * FREQUENCIES, dim), nn.Embedding(CLASSES, dim)
        self.letter, self.place = nn.Embedding(1 + len(LETTERS), dim), nn.Parameter(torch.randn(LONGEST, dim))
        self.norm = nn.LayerNorm(dim)
        self.stack = make_stack(mmdit, config, conditioned=True)
        spelt = [[1 + LETTERS.index(letter) for letter in name] + [0] * (LONGEST - len(name)) for name in NAMES]
        self.register_buffer("spelt", torch.tensor(spelt), persistent=False)  # (CLASSES, LONGEST), 0: no letter

    def forward(self, points: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """points (B, TOKENS, VALUES), times (B,) in [0, 1], labels (B,) -> (B, TOKENS, VALUES)"""
        dtype = self.time.weight.dtype
        angles = times[:, None] * torch.pi * 2.0 ** torch.arange(FREQUENCIES, device=times.device)
        y = self.time(torch.cat((angles.sin(), angles.cos()), dim=1).to(dtype)) + self.label(labels)
        context = self.letter(self.spelt[labels]) + self.place  # (B, LONGEST, D)
        x, _ = self.stack(self.tokens_in(points.to(dtype)), y, context)
        return self.tokens_out(self.norm(x))
