"""One run: a tree's model, trained on the digits in this process."""

import hashlib
import json
import math
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from time import perf_counter

import torch
from pydantic import Field
from torch import nn

from evaluation.suite.result import Record
from evaluation.training.config import TrainingConfig
from evaluation.training.digits import Digits
from evaluation.training.network import FlowNetwork

CLIP = 1.0
WARM_UP = 0.05  # of all steps


class Trained(Record):
    """What a run gave. The loss of every step is in its metrics file, a line of JSON each."""

    first_weights_sha256: str
    losses: list[float]
    seconds: float
    path: str | None = Field(description="of a step, as mmdit.explain tells; null: the tree has no explain")


class Diverged(RuntimeError):
    """A loss that is not finite."""


def train_tree(tree: Path, config: TrainingConfig, device: str, metrics: Path) -> Trained:
    """As train, with the tree's mmdit; for a process of its own."""
    sys.path.insert(0, str(tree))
    return train(FlowNetwork, config, device, metrics)


def train(make: Callable[..., nn.Module], config: TrainingConfig, device: str, metrics: Path) -> Trained:
    """Train make(mmdit, config), writing {"step", "loss"} to `metrics` as it goes.

    Raises Diverged at the first loss that is not finite.
    """
    module = import_module("mmdit")
    torch.manual_seed(config.seed)
    network = make(module, config)
    first = hash_weights(network)
    network.to(device, getattr(torch, config.dtype)).train()
    weights = list(network.parameters())
    own = config.dtype != "float32"
    masters = [w.detach().float().clone().requires_grad_() for w in weights] if own else weights
    optimizer = torch.optim.AdamW(masters, config.learning_rate, fused=torch.device(device).type == "cuda")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, config.steps))
    digits, losses, path = Digits(config.batch, config.seed), [], None
    start = perf_counter()
    with metrics.open("w", encoding="utf-8", buffering=1) as lines:
        for step in range(config.steps):
            batch = digits.draw(torch.device(device))
            loss = (network(batch).float() - batch.directions).square().mean()
            loss.backward()
            if own:
                for master, weight in zip(masters, weights, strict=True):
                    master.grad = None if weight.grad is None else weight.grad.float()
                    weight.grad = None
            nn.utils.clip_grad_norm_(masters, CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if own:
                with torch.no_grad():
                    torch._foreach_copy_(weights, masters)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise Diverged(f"the loss of step {step} is {losses[-1]}; the one before was {losses[-2:-1]}")
            lines.write(json.dumps({"step": step, "loss": losses[-1]}) + "\n")
            if step == 0 and hasattr(module, "explain"):
                path = module.explain(network, batch).path
    return Trained(first_weights_sha256=first, losses=losses, seconds=perf_counter() - start, path=path)


def rate(step: int, steps: int) -> float:
    """The share of the learning rate: a linear warm-up, then half a cosine down to 0."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def hash_weights(network: nn.Module) -> str:
    """SHA-256 over the parameters' names and bytes."""
    digest = hashlib.sha256()
    for name, weight in sorted(network.named_parameters()):
        digest.update(name.encode() + weight.detach().numpy().tobytes())
    return digest.hexdigest()
