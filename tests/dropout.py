"""The training tier's dropout in PyTorch: Philox 4x32-10 (Salmon et al., 2011) by integers."""

import torch
from torch import Tensor

from tests.tiles_tier import Case

PADDING = 64
PHILOX = ((0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85))  # factors and key increments (Salmon et al., 2011)
WORD = 0xFFFFFFFF


def philox(seed: int, counter: Tensor) -> list[Tensor]:
    """The four words of Philox 4x32-10 at counter, with seed as its key."""
    words, key = [counter & WORD, *[torch.zeros_like(counter)] * 3], [seed & WORD, seed >> 32]
    for _ in range(10):
        products = [(_product(words[0], PHILOX[0][0])), (_product(words[2], PHILOX[0][1]))]
        (low_0, high_0), (low_2, high_2) = products
        words = [high_2 ^ words[1] ^ key[0], low_2, high_0 ^ words[3] ^ key[1], low_0]
        key = [(k + step) & WORD for k, step in zip(key, PHILOX[1], strict=True)]
    return words


def _product(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Lower and upper word of word * factor, in int64 without overflow."""
    low = (word & 0xFFFF) * factor
    high = (word >> 16) * factor + (low >> 16)
    return ((high & 0xFFFF) << 16) | (low & 0xFFFF), high >> 16


def dropout_masks(case: Case, seeds: Tensor, p: float) -> list[tuple[Tensor, ...]]:
    """By layer and stream, what each element of the MLP's output is multiplied by."""
    shape, masks = case.shape, []
    x_rows = -(-shape.length // PADDING) * PADDING
    rows = x_rows + (-(-shape.context // PADDING) * PADDING if case.streams == 2 else 0)
    counter = torch.arange(shape.batch * rows * shape.dim // 4, device=seeds.device)
    for seed in seeds[:, 0].tolist():
        words = torch.stack(philox(seed, counter), dim=-1).view(shape.batch, rows, shape.dim)
        factor = (words >= int(p * 2**32)).double() / (1 - p)
        streams = [factor[:, : shape.length]]
        if case.streams == 2:
            streams.append(factor[:, x_rows : x_rows + shape.context])
        masks.append(tuple(streams))
    return masks
