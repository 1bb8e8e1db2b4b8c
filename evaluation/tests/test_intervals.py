"""What may be called faster, on simulated noise: never what is the same, always what is a tenth faster."""

from collections import Counter

import numpy as np
import pytest

from evaluation.judge.clock import floor_problem
from evaluation.judge.intervals import compare, noise_floor, ratio_of
from evaluation.judge.speed_cases import known_plans, plans, work_of
from evaluation.judge.speed_record import CONFIDENCE, Interval, Rates, Turn

ROUNDS, CALLS, NOISE, DRIFT = 20, 2, 0.03, 0.03
RUNS = 20


def rounds(rng: np.random.Generator, drift: np.ndarray, scale: float = 1.0) -> list[list[float]]:
    """Seconds of some rounds, each call with noise of its own over what the machine does to all of the round."""
    return [list(scale * each * np.exp(rng.normal(0, NOISE, CALLS))) for each in drift]


def simulated(seed: int, faster_by: float) -> str:
    """A run as the judge does it: before twice, then before beside after."""
    rng = np.random.default_rng(seed)
    drifts = [np.exp(rng.normal(0, DRIFT, ROUNDS)) for _ in range(2)]
    alone, again, before = rounds(rng, drifts[0]), rounds(rng, drifts[0]), rounds(rng, drifts[1])
    after = rounds(rng, drifts[1], 1 / faster_by)
    same = ratio_of(alone, again, seed), ratio_of(alone, before, seed, paired=False)
    return compare([ratio_of(before, after, seed)], noise_floor(same))


@pytest.mark.parametrize(
    ("faster_by", "outcome"),
    [(1.0, "inconclusive"), (1.1, "faster"), (1 / 1.1, "slower")],
    ids=["the same", "a tenth faster", "a tenth slower"],
)
def test_a_simulated_run_is_told_for_what_it_is_at_least_as_often_as_the_confidence_says(
    faster_by: float, outcome: str
):
    outcomes = Counter(simulated(seed, faster_by) for seed in range(RUNS))
    assert outcomes[outcome] >= CONFIDENCE * RUNS, outcomes


def test_without_the_noise_floor_the_same_is_called_different_more_often_than_the_confidence_allows():
    """What shifts a whole run, and not its rounds one by one, is in no interval but in that of the same thing twice."""
    wrong = 0
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        drift, shift = np.ones(ROUNDS), np.exp(rng.normal(0, 0.05))
        found = ratio_of(rounds(rng, drift), rounds(rng, drift, shift), seed)
        same = ratio_of(rounds(rng, drift), rounds(rng, drift, np.exp(rng.normal(0, 0.05))), seed)
        wrong += compare([found], 1.0) != "inconclusive"
        assert noise_floor([found]) >= 1.0
        assert noise_floor([found, same]) >= noise_floor([found])
    assert wrong > (1 - CONFIDENCE) * RUNS


def test_a_ratio_is_that_of_medians_and_lies_in_its_interval():
    found = ratio_of([[2, 2, 9], [2, 4, 2]], [[1], [1]], seed=1)
    assert (found.ratio, found.low, found.high) == (2.0, 2.0, 2.0)
    rng = np.random.default_rng(1)
    found = ratio_of(rounds(rng, np.ones(9), 3.0), rounds(rng, np.ones(9)), seed=1)
    assert 2.8 < found.low <= found.ratio <= found.high < 3.2


def test_an_interval_follows_from_its_samples_and_seed():
    rng = np.random.default_rng(1)
    sides = rounds(rng, np.ones(9)), rounds(rng, np.ones(9))
    assert ratio_of(*sides, seed=1) == ratio_of(*sides, seed=1)


@pytest.mark.parametrize(
    "sides", [([[1.0], []], [[1.0], [1.0]]), ([[1.0]] * 3, [[1.0]] * 2)], ids=["empty", "unpaired"]
)
def test_rounds_that_do_not_fit_are_refused(sides: tuple[list[list[float]], list[list[float]]]):
    with pytest.raises(ValueError, match="expected rounds with samples"):
        ratio_of(*sides, seed=1)


def test_every_interval_has_to_beat_the_floor():
    sure, unsure = Interval(ratio=2, low=1.5, high=3), Interval(ratio=2, low=1.05, high=3)
    assert compare([sure, sure], 1.2) == "faster"
    assert compare([sure, unsure], 1.2) == "inconclusive"
    assert compare([Interval(ratio=0.5, low=0.4, high=0.6)], 1.2) == "slower"
    assert noise_floor([Interval(ratio=1, low=0.5, high=1.1)]) == 2.0


def test_what_a_machine_cannot_do_is_noticed():
    (plan,) = plans("cpu", quick=True)
    least = work_of(plan.case, Rates(operations_per_s=1e9, bytes_per_s=None)).least_seconds
    assert 0.1 < least < 0.5  # 0.25 GFLOP
    assert work_of(plan.case, Rates(operations_per_s=1e9, bytes_per_s=1e6)).least_seconds > least
    told = {"phase": "beside", "round": 0, "worker": "after", "contender": "eager", "host_seconds": 1, "sums": ()}
    turn = Turn(**told, forms=(), seconds=(least / 2, least / 2))
    assert "takes this machine at least" in floor_problem([turn], least)
    assert floor_problem([turn.model_copy(update={"seconds": (least,)})], least) is None
    assert floor_problem([turn], None) is None


def test_plans_are_known_by_their_cases_and_the_gpu_has_every_baseline():
    assert set(known_plans()) == {
        plan.case.name for device in ("cpu", "cuda") for plan in plans(device, quick=False)
    } | {plans("cpu", quick=True)[0].case.name}
