"""One training run: what it learns, and that stopping, splitting or repeating it changes no bit."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from evaluation.tests.training_run import CONFIG, TREE, Start, assert_same_bits, bits, starting  # noqa: F401  a fixture
from evaluation.training.config import TrainingConfig
from evaluation.training.equalities import check
from evaluation.training.process import deterministic, train_tree
from evaluation.training.state import State
from evaluation.training.trainer import METRICS, How, Trainer, share


@pytest.mark.parametrize(
    ("task", "changes", "measure", "least"),
    [
        ("flow", {}, "sample_accuracy", 0),
        ("flow", {"dtype": "bfloat16"}, "sample_accuracy", 0),
        ("classification", {"dtype": "autocast"}, "held_out_accuracy", 0.25),
        ("regression", {}, "held_out_variance_explained", 0.1),
        ("regression", {"length": 9, "context": 5}, "held_out_variance_explained", 0.2),
    ],
)
def test_a_run_learns_and_leaves_its_numbers(
    start: Start, task: str, changes: dict[str, object], measure: str, least: float
) -> None:
    trainer = start(task=task, steps=80, batch=16, learning_rate=1e-2, **changes)
    trainer.run()
    found = trainer.finish()
    lines = [json.loads(line) for line in trainer.metrics.read_text().splitlines()]
    assert [line["loss"] for line in lines] == found.losses
    assert [line["step"] for line in lines] == list(range(80))
    assert {"gradient_norm", "learning_rate", "seconds"} < lines[0].keys()
    assert sum(found.losses[-20:]) < 0.9 * sum(found.losses[:20])
    assert found.measures[measure] >= least
    assert (trainer.how.folder / "samples.png").exists() == (task == "flow")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "autocast"])
def test_a_run_that_goes_on_from_its_checkpoint_ends_with_the_bits_of_one_that_never_stopped(
    start: Start, dtype: str
) -> None:
    whole = start("whole", dtype=dtype)
    whole.run()
    stopped = start("stopped", dtype=dtype)
    stopped.run(until=3)
    kept = stopped.checkpoint.read_bytes()
    stopped.run(until=5)  # what a run did after its last checkpoint, before it was killed
    stopped.checkpoint.write_bytes(kept)
    torch.manual_seed(99)
    resumed = start("stopped", dtype=dtype)
    resumed.resume()
    assert resumed.done == 3
    resumed.run()
    assert_same_bits(bits(resumed), bits(whole))
    assert resumed.losses == whole.losses
    told = [[json.loads(line)["loss"] for line in t.metrics.read_text().splitlines()] for t in (resumed, whole)]
    assert told == [whole.losses] * 2


def train_and_die(config: TrainingConfig, how: How, at: int) -> None:
    """As train_tree, killed before step `at`; for a process of its own."""
    step = Trainer.step
    Trainer.step = lambda self: os.kill(os.getpid(), signal.SIGKILL) if self.done == at else step(self)
    train_tree(TREE, config, how)


def test_a_run_that_was_killed_goes_on_to_the_same_bits(start: Start, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 25})
    how = How(tmp_path / "killed", threads=1, checkpoint_every=10, samples=0)
    child = multiprocessing.get_context("spawn").Process(target=train_and_die, args=(config, how, 17))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert len((how.folder / METRICS).read_text().splitlines()) == 17
    resumed = train_tree(TREE, config, how)
    whole = start("whole", steps=25)
    whole.run()
    found = whole.finish()
    assert (resumed.losses, resumed.last_weights_sha256) == (found.losses, found.last_weights_sha256)


def test_a_run_may_begin_with_the_weights_of_a_checkpoint(start: Start) -> None:
    first = start()
    first.run()
    found = start("second", seed=5, start=str(first.checkpoint))
    assert found.first_weights_sha256 == first.finish().last_weights_sha256


def test_parts_of_a_batch_make_the_step_of_the_whole(start: Start) -> None:
    """Bit for bit in fp32, when computed in fp64: there sums in another order differ by less than fp32 shows."""

    def trained(**changes: object) -> Trainer:
        trainer = start(f"{changes}", dropout=0.0, batch=10, **changes)
        trainer.run()
        return trainer

    whole = trained(dtype="float64")
    for parts in (2, 4):  # 4 parts of 10 are not of one size
        split = trained(dtype="float64", accumulate=parts)
        assert torch.tensor(split.losses).equal(torch.tensor(whole.losses))
        narrow = [
            {name: t.float() for name, t in bits(t).items() if name.startswith("network.")} for t in (split, whole)
        ]
        assert_same_bits(*narrow)
    assert trained(dtype="bfloat16", accumulate=4).losses == pytest.approx(trained(dtype="bfloat16").losses, rel=0.02)


def test_a_deterministic_run_gives_the_same_bits_again(start: Start) -> None:
    found = []
    for folder in ("one", "again"):
        with deterministic(True):
            trainer = start(folder, deterministic=True)
            trainer.run()
        found.append((bits(trainer), trainer.losses, trainer.finish().measures))
    assert_same_bits(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.usefixtures("start")
def test_the_equalities_hold_and_a_difference_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [("float32", "resumed"), ("float32", "repeated"), ("float64", "in parts")]
    assert check(TREE, [CONFIG], "cpu") == [(*c, True) for c in checks]
    monkeypatch.setattr(State, "restore", lambda *_: None)
    assert check(TREE, [CONFIG], "cpu") == [(*c, c[1] != "resumed") for c in checks]


def test_a_gradient_is_clipped_to_its_largest_norm(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = start(clip=0.01)
    norms = []

    def watched(*_: object) -> None:
        norms.append(nn.utils.get_total_norm([m.grad for m in trainer.state.masters if m.grad is not None]).item())

    monkeypatch.setattr(trainer.state, "update", watched)
    assert trainer.step()["gradient_norm"] > 0.1
    assert norms == pytest.approx([0.01], rel=1e-3)


def test_averages_follow_the_weights_and_are_what_is_measured(start: Start) -> None:
    trainer = start(ema=0.2)
    name, weight = trainer.state.names[0], trainer.state.weights[0]
    wanted = weight.detach().clone()
    for step in range(3):
        trainer.step()
        trainer.done += 1
        wanted = wanted.lerp(weight.detach(), 1 - min(0.2, (1 + step) / (10 + step)))
    assert torch.equal(bits(trainer)[f"average.{name}"], wanted)
    trainer.finish()
    assert torch.equal(weight, wanted)


def test_the_learning_rate_rises_and_then_falls_along_a_cosine_or_stays() -> None:
    config = CONFIG.model_copy(update={"steps": 100})
    shares = [share(step, config) for step in range(101)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[5] == 1.0
    assert shares[52] == pytest.approx(0.5, abs=0.02)
    assert shares[100] == pytest.approx(0)
    assert {share(step, config.model_copy(update={"schedule": "constant"})) for step in range(5, 101)} == {1.0}


def test_autocast_takes_products_in_bfloat16_of_weights_in_fp32(start: Start) -> None:
    trainer = start(dtype="autocast")
    seen = []
    trainer.network.tokens_in.register_forward_hook(lambda *a: seen.append(a[-1].dtype))
    trainer.step()
    assert seen == [torch.bfloat16]
    assert {w.dtype for w in trainer.state.weights} == {torch.float32}
