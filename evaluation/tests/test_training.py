"""Whether two trees learn the same: the bound on loss curves, and small runs of the real thing."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from evaluation.report.schema import validate
from evaluation.training import trainer
from evaluation.training.__main__ import main
from evaluation.training.config import TrainingConfig
from evaluation.training.digits import TOKENS, VALUES, Digits
from evaluation.training.parity import ParityRecord, ParityRun, compare, in_windows

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"batch": 16, "dim": 16, "heads": 2, "feed_forward": 32, "layers": 1}
CONFIG = TrainingConfig(**SIZES, steps=30, dropout=0.0, learning_rate=3e-3, dtype="float32", seed=0)
TINY = "--steps 12 --batch 8 --dim 16 --heads 2 --feed-forward 16 --layers 1 --seeds 2"


def run(role: str, seed: int, windows: list[float], sha256: str = "w") -> ParityRun:
    config = CONFIG.model_copy(update={"seed": seed})
    return ParityRun(
        role=role, config=config, first_weights_sha256=f"{sha256}{seed}", windows=windows, seconds=1.0, path=None
    )


def runs(after: float, **changes: str) -> list[ParityRun]:
    """Three seeds, whose curves are 0.1 apart; after's are before's plus `after`."""
    curves = [[2.0 + 0.1 * seed, 1.0 + 0.1 * seed] for seed in range(3)]
    found = [run("before", seed, curve) for seed, curve in enumerate(curves)]
    return found + [run("after", seed, [v + after for v in curve], **changes) for seed, curve in enumerate(curves)]


@pytest.mark.parametrize(("distance", "same"), [(0.0, True), (0.3, True), (-0.3, True), (0.34, False), (-0.34, False)])
def test_curves_may_differ_by_four_standard_deviations_of_their_means(distance: float, same: bool) -> None:
    (result,) = compare(runs(distance))
    assert [w.allowed for w in result.windows] == pytest.approx([4 * 0.1 * (2 / 3) ** 0.5] * 2)
    assert result.same is same


def test_other_first_weights_or_seeds_cannot_be_compared() -> None:
    (unlike,) = compare(runs(0.0, sha256="other"))
    assert not unlike.same
    assert "other weights at seeds [0, 1, 2]" in unlike.problem
    (missing,) = compare(runs(0.0)[:-1])
    assert not missing.same
    assert "[0, 1, 2] and [0, 1]" in missing.problem


def test_a_curve_is_cut_into_windows_that_hold_every_step_once() -> None:
    assert in_windows([float(i) for i in range(40)]) == [2 * i + 0.5 for i in range(20)]
    assert in_windows([3.0, 5.0]) == [3.0, 5.0]


def test_digits_come_in_the_same_order_and_lie_on_the_lines_to_them() -> None:
    first, again, other = (Digits(8, seed).draw(torch.device("cpu")) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.points, other.points)
    assert first.points.shape == (8, TOKENS, VALUES)
    images = first.points + (1 - first.times)[:, None, None] * first.directions
    assert images.min() >= -1 - 1e-5
    assert images.max() <= 1 + 1e-5


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The vanilla tree, to be imported; one thread, as more only wait for each other on so small a model."""
    monkeypatch.syspath_prepend(str(ROOT / "repository_before"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_learns_and_leaves_its_losses(tmp_path: Path, dtype: str) -> None:
    config = CONFIG.model_copy(update={"dtype": dtype, "steps": 80})
    file = tmp_path / "metrics.jsonl"
    found = trainer.train(trainer.FlowNetwork, config, "cpu", file)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["loss"] for line in lines] == found.losses
    assert [line["step"] for line in lines] == list(range(80))
    assert sum(found.losses[-20:]) < 0.9 * sum(found.losses[:20])
    again = trainer.train(trainer.FlowNetwork, config, "cpu", file)
    assert (again.losses, again.first_weights_sha256) == (found.losses, found.first_weights_sha256)


def broken(mmdit: ModuleType, config: TrainingConfig, factor: float) -> nn.Module:
    network = trainer.FlowNetwork(mmdit, config)
    network.tokens_out.register_forward_hook(lambda *a: a[-1] * factor)
    return network


@pytest.mark.usefixtures("tree")
def test_a_loss_that_is_not_finite_ends_the_run_and_says_where(tmp_path: Path) -> None:
    with pytest.raises(trainer.Diverged, match="the loss of step 0 is nan"):
        trainer.train(partial(broken, factor=float("nan")), CONFIG, "cpu", tmp_path / "metrics.jsonl")


@pytest.mark.usefixtures("tree")
def test_a_tree_whose_gradients_are_wrong_does_not_learn_the_same(tmp_path: Path) -> None:
    """Its stack passes no gradient on, its outputs being right."""

    def cut(mmdit: ModuleType, config: TrainingConfig) -> nn.Module:
        network = trainer.FlowNetwork(mmdit, config)
        network.stack.register_forward_hook(lambda *a: type(a[-1])(*(t.detach() for t in a[-1])))
        for weight in network.stack.parameters():
            weight.grad = torch.zeros_like(weight)
        for part in (network.tokens_in, network.time, network.label, network.context):
            for weight in part.parameters():
                weight.requires_grad_(False)
        return network

    def curves(make: object, role: str) -> list[ParityRun]:
        found = []
        for seed in range(3):
            config = CONFIG.model_copy(update={"seed": seed, "steps": 100})
            one = trainer.train(make, config, "cpu", tmp_path / "metrics.jsonl")
            found.append(run(role, seed, in_windows(one.losses), sha256=one.first_weights_sha256))
        return found

    right = curves(trainer.FlowNetwork, "before")
    copies = [r.model_copy(update={"role": "after"}) for r in right]
    assert compare(right + copies)[0].same
    assert not compare(right + curves(cut, "after"))[0].same


def test_both_trees_learn_the_same_and_the_record_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "parity.json"
    assert main([*TINY.split(), "--dropout", "0.1", "--output", str(file)]) == 0
    record = ParityRecord.model_validate_json(file.read_text())
    validate(ParityRecord, json.loads(file.read_text()))
    runs = [(role, seed, 0.1) for seed in (0, 1) for role in ("before", "after")]
    assert [(r.role, r.config.seed, r.config.dropout) for r in record.runs] == runs
    assert all(result.same for result in record.results)
    assert file.with_suffix(".png").stat().st_size > 10_000


def test_a_tree_that_cannot_be_trained_ends_the_command_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mmdit.py").write_text("raise RuntimeError('no such luck')\n")
    assert main([*TINY.split(), "--after", str(tmp_path)]) == 1
    assert "a run failed: RuntimeError: no such luck" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("--seeds 1", "at least 2"), ("--dropout 1", "numbers from 0 to 0.99, got '1'"), ("--after nowhere", "not there")],
)
def test_a_wrong_option_is_a_usage_error(arguments: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err
