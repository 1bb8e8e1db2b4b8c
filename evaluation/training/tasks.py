"""What is learned: each task has its data, its network, its loss, and a measure on data that was held out."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from evaluation.training.config import TaskName, TrainingConfig
from evaluation.training.digits import CLASSES, Digits, load
from evaluation.training.network import ContextNetwork, FlowNetwork, TokenNetwork
from evaluation.training.quality import judge_samples, save_grid
from evaluation.training.sizes import TOKENS, VALUES

Batch = tuple[Tensor, ...]  # each of as many samples
MakeNetwork = Callable[[ModuleType, TrainingConfig], nn.Module]


class Task(Protocol):
    make: MakeNetwork

    def draw(self, count: int, generator: Generator) -> Batch:
        """The same samples from the same generator on every machine."""

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The mean over the samples, a scalar in fp32 or wider."""

    def measure(self, network: nn.Module, folder: Path, samples: int) -> dict[str, float]:
        """How good a trained network is, by name; pictures go into `folder`."""


class Regression:
    """Tokens that a fixed attention mixes: target = softmax(x W t^T / 2) t V, plus noise; t is x, with `context` more
    tokens where there are any, and the target then has y U added to each of its tokens. A synthetic task.
    """

    NOISE = 0.1

    def __init__(self, length: int = TOKENS, context: int = 0) -> None:
        self.length, self.context = length, context
        generator = torch.Generator().manual_seed(0)
        self.scores, self.values, self.shift = torch.randn(3, VALUES, VALUES, generator=generator).unbind()

    @staticmethod
    def make(mmdit: ModuleType, config: TrainingConfig) -> nn.Module:
        if config.context:
            return ContextNetwork(mmdit, config)
        return TokenNetwork(mmdit, config, outputs=VALUES, pooled=False)

    def draw(self, count: int, generator: Generator) -> Batch:
        """x, then, of a task with a context, context and y, and last the target."""
        tokens = torch.randn(count, self.length + self.context, VALUES, generator=generator)
        x, context = tokens.split([self.length, self.context], dim=1)
        target = torch.softmax(x @ self.scores @ tokens.mT / 2, dim=2) @ tokens @ self.values
        target += self.NOISE * torch.randn(target.shape, generator=generator)
        if not self.context:
            return x, target
        y = torch.randn(count, VALUES, generator=generator)
        return x, context, y, target + (y @ self.shift)[:, None]

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        *inputs, target = batch
        return squared_error(network(*inputs), target)

    def measure(self, network: nn.Module, folder: Path, samples: int) -> dict[str, float]:
        batch = self.draw(max(samples, 2), torch.Generator().manual_seed(1))
        *inputs, target = (t.to(next(network.parameters()).device) for t in batch)
        explained = 1 - squared_error(network(*inputs), target) / target.var()
        return {"held_out_variance_explained": explained.item()}


class Classification:
    """Which digit an image shows."""

    def __init__(self) -> None:
        self.train, self.held_out = load()

    @staticmethod
    def make(mmdit: ModuleType, config: TrainingConfig) -> nn.Module:
        return TokenNetwork(mmdit, config, outputs=CLASSES, pooled=True)

    def draw(self, count: int, generator: Generator) -> Batch:
        return choose(self.train, count, generator)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(widened(network(batch[0])), batch[1])

    def measure(self, network: nn.Module, folder: Path, samples: int) -> dict[str, float]:
        tokens, labels = (t.to(next(network.parameters()).device) for t in self.held_out)
        return {"held_out_accuracy": (network(tokens).argmax(1) == labels).double().mean().item()}


class FlowBatch(NamedTuple):
    """Points of the straight lines from noise to images, where on them they are, and the lines' directions."""

    points: Tensor  # (B, TOKENS, VALUES)
    times: Tensor  # (B,) in [0, 1]
    labels: Tensor  # (B,) int64
    directions: Tensor  # (B, TOKENS, VALUES)


class Flow:
    """Digits of a class out of noise, by class-conditional flow matching (Lipman et al., 2023)."""

    SAMPLER_STEPS = 20

    def __init__(self) -> None:
        self.train, self.held_out = load()

    @staticmethod
    def make(mmdit: ModuleType, config: TrainingConfig) -> nn.Module:
        return FlowNetwork(mmdit, config)

    def draw(self, count: int, generator: Generator) -> Batch:
        images, labels = choose(self.train, count, generator)
        noise = torch.randn(images.shape, generator=generator)
        times = torch.rand(count, generator=generator)
        return FlowBatch(noise + times[:, None, None] * (images - noise), times, labels, images - noise)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        *inputs, directions = batch
        return squared_error(network(*inputs), directions)

    def measure(self, network: nn.Module, folder: Path, samples: int) -> dict[str, float]:
        """samples.png, a row for each class; none where `samples` is below 2 for each."""
        if samples < 2 * CLASSES:
            return {}
        labels = torch.arange(samples) % CLASSES
        found = Digits(self.sample(network, labels, torch.Generator().manual_seed(2)).cpu(), labels)
        save_grid(found, folder / "samples.png")
        return judge_samples(found, self.train, self.held_out)

    def sample(self, network: nn.Module, labels: Tensor, generator: Generator) -> Tensor:
        """Tokens (N, TOKENS, VALUES) of these classes: from noise along the network's directions, by Heun's method."""
        device = next(network.parameters()).device
        x, labels = torch.randn(len(labels), TOKENS, VALUES, generator=generator).to(device), labels.to(device)
        times = torch.linspace(0, 1, self.SAMPLER_STEPS + 1).tolist()
        for now, then in pairwise(times):
            first = widened(network(x, torch.full(labels.shape, now, device=device), labels))
            second = widened(network(x + (then - now) * first, torch.full(labels.shape, then, device=device), labels))
            x = x + (then - now) * (first + second) / 2
        return x.clamp(-1, 1)


TASKS: dict[TaskName, Callable[[TrainingConfig], Task]] = {
    "regression": lambda config: Regression(config.length, config.context),
    "classification": lambda _: Classification(),
    "flow": lambda _: Flow(),
}


def choose(digits: Digits, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    chosen = torch.randint(len(digits.tokens), (count,), generator=generator)
    return digits.tokens[chosen], digits.labels[chosen]


def widened(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def squared_error(found: Tensor, target: Tensor) -> Tensor:
    """The mean. Raises ValueError where the shapes differ, which a difference of tensors would broadcast over."""
    if found.shape != target.shape:
        raise ValueError(f"the network's output: expected {tuple(target.shape)}, got {tuple(found.shape)}")
    return (widened(found) - target).square().mean()
