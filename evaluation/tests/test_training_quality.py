"""Digits as tokens and back, drawing them, and how good drawn ones are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import Tensor, nn

from evaluation.training.config import TrainingConfig
from evaluation.training.digits import CLASSES, HELD_OUT, Digits, load, to_images, to_tokens
from evaluation.training.network import NAMES, FlowNetwork
from evaluation.training.quality import frechet_distance, judge_samples, save_grid
from evaluation.training.sizes import SIDE, TOKENS, VALUES
from evaluation.training.tasks import Flow
from evaluation.training.trainer import How, Trainer

TREE = Path(__file__).resolve().parents[2] / "repository_before"


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_tokens_are_squares_of_the_image_and_images_come_back() -> None:
    images = torch.arange(2.0 * SIDE * SIDE).view(2, SIDE, SIDE)
    tokens = to_tokens(images)
    assert tokens[0, 0].tolist() == [0, 1, 8, 9]
    assert tokens[0, 5].tolist() == [18, 19, 26, 27]
    assert torch.equal(to_images(tokens), images)


def test_a_third_of_the_digits_is_held_out_and_all_are_there_once() -> None:
    train, held_out = load()
    assert (len(train.labels), len(held_out.labels)) == (1797 - HELD_OUT, HELD_OUT)
    from sklearn.datasets import load_digits

    found = torch.cat([t.tokens.flatten(1) for t in (train, held_out)])
    wanted = to_tokens(torch.tensor(load_digits().images, dtype=torch.float32) / 8 - 1).flatten(1)
    assert sorted(found.tolist()) == sorted(wanted.tolist())


def test_a_batch_comes_from_its_generator_and_lies_on_the_lines_to_digits() -> None:
    task = Flow()
    first, again = (task.draw(8, generator()) for _ in range(2))
    other = task.draw(8, torch.Generator().manual_seed(4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.points, other.points)
    assert first.points.shape == (8, TOKENS, VALUES)
    images = first.points + (1 - first.times)[:, None, None] * first.directions
    distances = torch.cdist(images.flatten(1), task.train.tokens.flatten(1))
    assert distances.min(1).values.max() < 1e-4
    assert torch.equal(task.train.labels[distances.argmin(1)], first.labels)


class Faster(nn.Module):
    """A direction that grows with time, and with the class."""

    def __init__(self) -> None:
        super().__init__()
        self.least = nn.Parameter(torch.tensor(0.1))

    def forward(self, points: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        return (self.least + times * labels / CLASSES)[:, None, None].expand_as(points)


def test_a_sampler_goes_from_noise_along_the_directions_of_each_class() -> None:
    labels = torch.tensor([3, 1, 9])
    with torch.no_grad():
        found = Flow().sample(Faster(), labels, generator())
    way = 0.1 + labels / CLASSES / 2  # which steps that look at their beginning alone would fall short of
    noise = torch.randn(3, TOKENS, VALUES, generator=generator())
    assert torch.allclose(found, (noise + way[:, None, None]).clamp(-1, 1), atol=1e-6)


def test_the_context_spells_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TREE))
    import mmdit

    sizes = {"batch": 1, "dim": 8, "heads": 1, "feed_forward": 8, "layers": 1, "dropout": 0.0, "seed": 0}
    config = TrainingConfig(**sizes, steps=1, learning_rate=1.0, dtype="float32")
    spelt = FlowNetwork(mmdit, config).spelt
    assert [int((row > 0).sum()) for row in spelt] == [len(name) for name in NAMES]
    assert spelt[3, 0] == spelt[2, 0]  # three and two begin alike
    assert len({tuple(row.tolist()) for row in spelt}) == CLASSES


def test_real_digits_are_recognised_and_near_and_noise_or_wrong_labels_are_not() -> None:
    train, held_out = load()
    some = Digits(*(t[:500] for t in train))
    real = judge_samples(some, train, held_out)
    assert real["sample_accuracy"] > 0.95
    assert real["sample_distance"] == real["real_distance"]
    noise = judge_samples(
        some._replace(tokens=torch.randn(500, TOKENS, VALUES, generator=generator())), train, held_out
    )
    assert noise["sample_accuracy"] < 0.2
    assert noise["sample_distance"] > 20 * real["sample_distance"]
    assert judge_samples(some._replace(labels=(some.labels + 1) % CLASSES), train, held_out)["sample_accuracy"] < 0.05


def test_the_distance_is_that_of_the_normal_distributions() -> None:
    draw = np.random.default_rng(0).standard_normal((4000, 3))
    assert frechet_distance(draw, draw) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(draw, draw + np.array([3, 0, 4])) == pytest.approx(25)
    wide = (3 - 1) ** 2 * np.cov(draw, rowvar=False).trace() + np.sum((2 * draw.mean(0)) ** 2)
    assert frechet_distance(draw, 3 * draw) == pytest.approx(wide)


def test_the_picture_has_a_row_of_framed_samples_for_each_class(tmp_path: Path) -> None:
    labels = torch.arange(2 * CLASSES) % CLASSES
    shade = (labels / 4.5 - 1)[:, None, None].expand(-1, TOKENS, VALUES)
    save_grid(Digits(shade, labels), tmp_path / "samples.png")
    picture = imread(tmp_path / "samples.png")
    assert picture.shape[:2] == (4 * CLASSES * (SIDE + 2), 4 * 2 * (SIDE + 2))
    middles = picture[20::40, 20::40, 0]  # (CLASSES, 2)
    assert middles[:, 0] == pytest.approx(np.arange(CLASSES) / 9, abs=0.01)
    assert np.array_equal(middles[:, 0], middles[:, 1])


def test_a_small_model_learns_to_draw_digits_that_are_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of a minute's training; `python -m evaluation.training --tree before` is the larger one."""
    monkeypatch.syspath_prepend(str(TREE))
    sizes = {"batch": 64, "dim": 32, "heads": 2, "feed_forward": 64, "layers": 2, "dropout": 0.0, "seed": 0}
    config = TrainingConfig(**sizes, steps=350, learning_rate=5e-3, ema=0.97, dtype="float32")
    trainer = Trainer(config, How(tmp_path, samples=200))
    trainer.run()
    found = trainer.finish().measures
    assert found["sample_accuracy"] >= 0.85
    assert found["sample_distance"] < 3
