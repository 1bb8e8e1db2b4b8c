"""Uninitialised memory that shows: torch.empty and its like are filled with NaN, inside operators too."""

import torch


def poison_memory() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
