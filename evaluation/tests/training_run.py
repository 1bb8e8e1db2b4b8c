"""A run on the vanilla tree, small enough for a test."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from evaluation.training.config import TrainingConfig
from evaluation.training.trainer import How, Trainer

TREE = Path(__file__).resolve().parents[2] / "repository_before"
CONFIG = TrainingConfig(
    steps=6,
    batch=8,
    dim=16,
    heads=2,
    feed_forward=16,
    layers=1,
    dropout=0.1,
    learning_rate=3e-3,
    dtype="float32",
    seed=0,
)

Start = Callable[..., Trainer]


@pytest.fixture(name="start")
def starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Begins a run on the vanilla tree in a named folder; one thread, as more only wait for each other."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmdit"]:
        monkeypatch.delitem(sys.modules, name)  # another tree's, of a test before
    monkeypatch.syspath_prepend(str(TREE))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def begin(folder: str = "run", make: Callable[..., nn.Module] | None = None, **changes: object) -> Trainer:
        how = {name: changes.pop(name) for name in ("trace", "checkpoint_every") if name in changes}
        config = TrainingConfig.model_validate(CONFIG.model_dump() | changes)
        return Trainer(config, How(tmp_path / folder, samples=20, **how), make)

    yield begin
    torch.set_num_threads(threads)


def bits(trainer: Trainer) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in trainer.state.tensors().items()}


def assert_same_bits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
