"""Streaming quantiles against exact ones."""

import tracemalloc

import numpy as np
import pytest

from evaluation.store.quantiles import EXACT, Quantiles

RANKS = (0.01, 0.25, 0.5, 0.75, 0.95, 0.99)
DISTRIBUTIONS = {
    "normal": lambda draw, n: draw.normal(3, 2, n),
    "heavy tail": lambda draw, n: draw.pareto(1.1, n),
    "two modes": lambda draw, n: np.where(draw.random(n) < 0.3, draw.normal(-50, 1, n), draw.normal(50, 1, n)),
    "ascending": lambda _draw, n: np.arange(n, dtype=float),
    "few values": lambda draw, n: draw.integers(0, 4, n).astype(float),
    "constant": lambda _draw, n: np.full(n, 7.0),
}


def rank_errors(values: np.ndarray, found: list[float]) -> list[float]:
    """How far each found value's ranks (from, to: a value may repeat) are from the rank that was asked for."""
    ordered = np.sort(values)
    low = np.searchsorted(ordered, found, "left") / len(values)
    high = np.searchsorted(ordered, found, "right") / len(values)
    return [max(a - rank, rank - b, 0.0) for rank, a, b in zip(RANKS, low, high, strict=True)]


def check(size: int, error: float, distribution: str, parts: int = 1) -> None:
    values = DISTRIBUTIONS[distribution](np.random.default_rng(1), size)
    sketches = []
    for part in np.array_split(values, parts):
        sketches.append(Quantiles(error))
        for block in np.array_split(part, max(1, len(part) // 4096)):
            sketches[-1].add(block)
    whole = sketches[0]
    for other in sketches[1:]:
        whole.merge(other)
    assert len(whole) == size
    # the error holds with 99% confidence for one rank: twice it, hardly ever broken
    assert max(rank_errors(values, whole.at(*RANKS))) <= 2 * error
    assert len(whole.to_bytes()) < 60 / error + 8 * EXACT


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("error", [0.01, 0.05])
@pytest.mark.parametrize("parts", [1, 7])
def test_quantiles_are_within_their_error(distribution: str, error: float, parts: int):
    check(100_000, error, distribution, parts)


@pytest.mark.slow
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_quantiles_of_ten_million_values_are_within_their_error(distribution: str):
    check(10_000_000, 0.01, distribution, parts=3)


def test_a_finer_sketch_is_nearer():
    values = DISTRIBUTIONS["normal"](np.random.default_rng(2), 200_000)
    errors = []
    for error in (0.05, 0.001):
        sketch = Quantiles(error)
        sketch.add(values)
        errors.append(max(rank_errors(values, sketch.at(*RANKS))))
    assert errors[1] < errors[0] / 5


def test_memory_is_bounded_however_many_values_come():
    sketch, block = Quantiles(), np.random.default_rng(0).normal(size=4096)
    for _ in range(20):
        sketch.add(block)
    tracemalloc.start()
    size = len(sketch.to_bytes())
    for _ in range(400):
        sketch.add(block)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert len(sketch.to_bytes()) < 1.5 * size


def test_few_values_are_exact_and_empty_is_an_error():
    sketch = Quantiles()
    with pytest.raises(ValueError, match="no value was added"):
        sketch.at(0.5)
    values = np.random.default_rng(0).normal(size=EXACT)
    sketch.add(values[:-1])
    sketch.add(float(values[-1]))
    assert sketch.at(*RANKS) == np.quantile(values, RANKS).tolist()


@pytest.mark.parametrize("size", [0, 5, 50_000])
def test_what_is_kept_as_bytes_reads_back(size: int):
    sketch = Quantiles(0.02)
    sketch.add(np.arange(size, dtype=float))
    again = Quantiles.from_bytes(sketch.to_bytes())
    assert (again.error, len(again)) == (0.02, size)
    if size:
        assert again.at(*RANKS) == sketch.at(*RANKS)
    again.add(1.0)
    assert len(again) == size + 1


def test_bad_input_is_named():
    for error in (0.0, 0.5, -1, float("nan")):
        with pytest.raises(ValueError, match="error: expected a share"):
            Quantiles(error)
    for values in ([float("nan")], float("inf")):
        with pytest.raises(ValueError, match="values: expected finite numbers"):
            Quantiles().add(values)
    with pytest.raises(ValueError, match="other: expected one of error"):
        Quantiles(0.01).merge(Quantiles(0.02))
    with pytest.raises(ValueError, match="data: expected quantiles"):
        Quantiles.from_bytes(b"nothing of this kind")
