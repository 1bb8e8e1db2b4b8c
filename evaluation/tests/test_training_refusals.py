"""What ends a training run, or keeps it from beginning, and what is said of it."""

import shutil
from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import nn

from evaluation.store.errors import CheckpointMismatch
from evaluation.tests.training_run import Start, assert_same_bits, bits, starting  # noqa: F401  a fixture
from evaluation.training.config import TrainingConfig
from evaluation.training.errors import Diverged, ResumeError, StepFailed, TrainingError
from evaluation.training.network import FlowNetwork
from evaluation.training.tasks import FlowBatch


def spoilt(mmdit: ModuleType, config: TrainingConfig, how: Callable[[FlowNetwork], object]) -> nn.Module:
    network = FlowNetwork(mmdit, config)
    how(network)
    return network


def scale_output(network: FlowNetwork, by: float) -> None:
    network.tokens_out.register_forward_hook(lambda *a: a[-1] * by)


def scale_gradient(network: FlowNetwork, by: float) -> None:
    network.time.weight.register_hook(lambda g: g * by)


def test_a_loss_that_is_not_finite_ends_the_run_and_says_where(start: Start) -> None:
    trainer = start(make=partial(spoilt, how=partial(scale_output, by=float("nan"))))
    with pytest.raises(
        Diverged, match=r"step 0: the loss is nan, .* it is the first step; .* no checkpoint was written"
    ):
        trainer.run()


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_reaches_the_weights(start: Start) -> None:
    trainer = start()
    trainer.run(until=2)
    before = bits(trainer)
    scale_gradient(trainer.network, float("inf"))
    with pytest.raises(Diverged) as stop:
        trainer.run()
    for part in (
        "step 2: the loss is",
        f"before was {trainer.losses[1]}",
        "not finite: 1 of",
        "the first of time.weight",
    ):
        assert part in str(stop.value)
    assert "the checkpoint is of step 2" in str(stop.value)
    same = {name: t for name, t in bits(trainer).items() if not name.startswith("random.")}
    assert_same_bits(same, {name: before[name] for name in same})


def test_a_step_that_raises_tells_how_its_batch_lay(start: Start) -> None:
    def narrow(network: FlowNetwork) -> None:
        network.tokens_out.register_forward_hook(lambda *a: a[-1][..., :1])

    trainer = start(make=partial(spoilt, how=narrow))
    with pytest.raises(StepFailed) as stop:
        trainer.run()
    assert "step 0: ValueError: the network's output: expected (8, 16, 4), got (8, 16, 1)" in str(stop.value)
    assert "the batch: float32 (8, 16, 4), strides (64, 4, 1); float32 (8,), strides (1,)" in str(stop.value)
    assert len(FlowBatch._fields) == str(stop.value).count("strides")


def test_weights_in_the_memory_of_others_are_refused(start: Start) -> None:
    def tie(network: FlowNetwork) -> None:
        network.letter.weight = nn.Parameter(network.label.weight.detach()[2:7])
        network.norm.bias = nn.Parameter(torch.zeros(1).expand(16))

    with pytest.raises(TrainingError) as stop:
        start(make=partial(spoilt, how=tie))
    assert "letter.weight lies in the memory of label.weight" in str(stop.value)
    assert "norm.bias: elements share memory: float32 (16,), strides (0,)" in str(stop.value)


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(start: Start) -> None:
    trainer = start()
    trainer.run(until=1)
    with pytest.raises(ResumeError, match=r"learning_rate: 0.003 there, 0.1 asked for; seed: 0 there, 1 asked for"):
        start(seed=1, learning_rate=0.1).resume()
    with pytest.raises(CheckpointMismatch, match=r"network.tokens_in.weight: expected shape \(8, 4\), got \(16, 4\)"):
        start(dim=8).resume()
    shutil.copytree(trainer.how.folder, trainer.how.folder.with_name("other"))
    with pytest.raises(ResumeError, match="began with other weights"):
        start("other", make=lambda *a: spoilt(*a, how=lambda n: nn.init.zeros_(n.place))).resume()
    trainer.metrics.write_text("")
    with pytest.raises(ResumeError, match="expected a line for each of 1 steps, got 0"):
        start().resume()
