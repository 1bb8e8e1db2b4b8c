"""SPEC G5, G6: models without a fused form are never made wrong, and it is told what nearly had one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.graph_models import graph_package
from tests.look_alikes import JointBlock

pytestmark = pytest.mark.upgrade

PASSES = ["redundant_ops", "fuse_mmdit", "recompute"]


class BasicBlock(nn.Module):
    """A residual network's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.first_norm, self.second_norm = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first_norm(self.first(x)), inplace=True)
        return F.relu(x + self.second_norm(self.second(h)))


class CausalBlock(nn.Module):
    """nanoGPT's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.c_attn(self.ln_1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.c_proj(y)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, width), nn.Embedding(8, width)
        self.h = nn.ModuleList(CausalBlock(width, heads) for _ in range(layers))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, 11, bias=False)
        self.lm_head.weight = self.wte.weight  # tied

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class BySize(nn.Module):
    """How much it computes hangs on the values."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[x > 0] * 2).sum() + (x[x > 0] * 2).sum() + torch.nonzero(x).sum()


class Checkpointed(nn.Module):
    """Recomputes by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + checkpoint(self.body, x, use_reentrant=False)


class VisionTransformer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches, self.position = nn.Conv2d(2, width, 3, 3), nn.Parameter(torch.randn(1, 4, width))
        self.layer, self.head = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.patches(x).flatten(2).mT + self.position).mean(1))


def image() -> Tensor:
    return torch.randn(3, 2, 6, 6)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 6)), lambda: torch.randn(4, 6)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5)
        ),
        image,
    ),
    "residual-network": (lambda: nn.Sequential(BasicBlock(2), BasicBlock(2)), image),
    "gpt": (lambda: GPT(8, 2, 2), lambda: torch.randint(0, 11, (3, 5))),
    "encoder-layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), lambda: torch.randn(3, 5, 8)),
    "vision-transformer": (lambda: VisionTransformer(8), image),
    "joint-block": (
        lambda: JointBlock(16, 2, 7),
        lambda: (torch.randn(3, 7, 16), torch.randn(3, 5, 16), torch.randn(3, 16)),
    ),
    "data-dependent-size": (BySize, lambda: torch.randn(4, 6)),
    "checkpointed": (Checkpointed, lambda: torch.randn(6, 4)),
    "lstm": (lambda: nn.LSTM(6, 4, batch_first=True), lambda: torch.randn(3, 5, 6)),
}
QUICK = ("cnn", "gpt", "data-dependent-size", "checkpointed")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in MODELS])
def test_a_model_that_is_no_mmdit_stays_right_through_all_passes(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    build, draw = MODELS[name]
    opt = graph_package().GraphOptimizer(build(), draw(), repeats=0, batches=(2,))
    opt.optimize(PASSES, strict=True, budget=0.5)
    for told in opt.report().to_dict()["passes"]:
        assert told["rolled_back"] is None
        assert told["error"] < 2e-5
        assert all(o["refused"] is None or len(o["refused"]) > 10 for o in told["opportunities"]["train"])
    assert opt.report().to_dict()["fixed_batch"] is None
    assert PASSES[-1] in str(opt.report())
