"""scikit-learn's handwritten digits as tokens; a third is held out of all training."""

from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.training.sizes import PATCH, SIDE, TOKENS, VALUES

CLASSES = 10
HELD_OUT = 599  # of 1797


class Digits(NamedTuple):
    """Images and what they show; values from -1 to 1."""

    tokens: Tensor  # (N, TOKENS, VALUES)
    labels: Tensor  # (N,) int64


def load() -> tuple[Digits, Digits]:
    """The digits to train on, and those held out: the same split always."""
    from sklearn.datasets import load_digits  # slow to import

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32) / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    both = Digits(to_tokens(images), torch.tensor(found.target))
    return tuple(Digits(*(t[chosen] for t in both)) for chosen in (order[HELD_OUT:], order[:HELD_OUT]))


def to_tokens(images: Tensor) -> Tensor:
    """(N, SIDE, SIDE) -> (N, TOKENS, VALUES), a token for each square of PATCH x PATCH"""
    return images.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).reshape(len(images), TOKENS, VALUES)


def to_images(tokens: Tensor) -> Tensor:
    """(N, TOKENS, VALUES) -> (N, SIDE, SIDE)"""
    squares = tokens.unflatten(1, (SIDE // PATCH, SIDE // PATCH)).unflatten(3, (PATCH, PATCH))
    return squares.transpose(2, 3).reshape(len(tokens), SIDE, SIDE)
