"""Uninitialised memory that shows: torch.empty and its like are filled with NaN, inside operators too."""

import torch


def poison_memory() -> None:
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms, without its import of Inductor
    torch.utils.deterministic.fill_uninitialized_memory = True
