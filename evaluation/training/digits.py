"""The data: scikit-learn's handwritten digits as tokens, noised on the way from noise to image (flow matching)."""

from typing import NamedTuple

import torch
from torch import Tensor

CLASSES = 10
SIDE, PATCH = 8, 2
TOKENS, VALUES = (SIDE // PATCH) ** 2, PATCH**2


class FlowBatch(NamedTuple):
    """Points of the straight lines from noise to images, where on them they are, and the lines' directions."""

    points: Tensor  # (B, TOKENS, VALUES)
    times: Tensor  # (B,) in [0, 1]
    labels: Tensor  # (B,) int64
    directions: Tensor  # (B, TOKENS, VALUES)


class Digits:
    """Batches from one seed: the same sequence on every machine and device, whatever else draws random numbers."""

    def __init__(self, batch: int, seed: int) -> None:
        from sklearn.datasets import load_digits  # slow to import

        found = load_digits()
        images = torch.tensor(found.images, dtype=torch.float32) / 8 - 1
        patches = images.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
        self.tokens = patches.reshape(len(images), TOKENS, VALUES)
        self.labels = torch.tensor(found.target)
        self.batch, self.generator = batch, torch.Generator().manual_seed(seed)

    def draw(self, device: torch.device) -> FlowBatch:
        chosen = torch.randint(len(self.tokens), (self.batch,), generator=self.generator)
        noise = torch.randn(self.batch, TOKENS, VALUES, generator=self.generator)
        times = torch.rand(self.batch, generator=self.generator)
        images, share = self.tokens[chosen], times[:, None, None]
        batch = FlowBatch(noise + share * (images - noise), times, self.labels[chosen], images - noise)
        return FlowBatch(*(t.to(device, non_blocking=True) for t in batch))
