"""A run in a process that has no other tree."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from evaluation.training.config import TrainingConfig
from evaluation.training.trainer import How, Trained, Trainer, check_same

RESULT = "result.json"


def train_tree(tree: Path, config: TrainingConfig, how: How) -> Trained:
    """Train with the tree's mmdit, from the folder's checkpoint if it has one."""
    isolate(tree, how.threads)
    if how.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with deterministic(config.deterministic):
        trainer = Trainer(config, how)
        if trainer.checkpoint.exists():
            trainer.resume()
        trainer.run()
        found = trainer.finish()
    partial = how.folder / f".{RESULT}"
    partial.write_text(found.model_dump_json(), encoding="utf-8")
    os.replace(partial, how.folder / RESULT)
    return found


def isolate(tree: Path, threads: int | None) -> None:
    """Make this process the tree's."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without
    if threads:
        torch.set_num_threads(threads)
    sys.path.insert(0, str(tree))


def ended(config: TrainingConfig, folder: Path) -> Trained | None:
    """What a run in this folder gave; None where it has yet to end. Raises ResumeError for another's."""
    result = folder / RESULT
    if not result.exists():
        return None
    found = Trained.model_validate_json(result.read_text(encoding="utf-8"))
    check_same(found.config, config, result)
    return found


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within, torch refuses what does not give the same bits again."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
