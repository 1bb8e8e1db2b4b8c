"""Ratios of times, how sure they are, and what may be called faster."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from evaluation.judge.speed_record import CONFIDENCE, Comparison, Interval

RESAMPLES = 4999

Rounds = Sequence[Sequence[float]]


def ratio_of(over: Rounds, under: Rounds, seed: int, paired: bool = True) -> Interval:
    """The median over rounds of `over`'s medians, over that of `under`'s.

    Rounds are what is drawn again: the samples of one share what went on in the machine then. Paired: the rounds of
    both sides were taken in turns, and are drawn together. Raises ValueError where a round is empty, or where
    paired sides have different numbers of rounds.
    """
    sides = [np.array([np.median(each) for each in side if len(each)]) for side in (over, under)]
    if len(sides[0]) != len(over) or len(sides[1]) != len(under) or (paired and len(over) != len(under)):
        raise ValueError(f"expected rounds with samples, paired ones of one number, got {len(over)} and {len(under)}")
    found = bootstrap(
        sides,
        _ratio,
        paired=paired,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(ratio=float(_ratio(*sides)), low=float(found.low), high=float(found.high))


def _ratio(over: NDArray[np.float64], under: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.median(over, axis=axis) / np.median(under, axis=axis)


def noise_floor(same: Sequence[Interval]) -> float:
    """The largest ratio either way that the intervals of what is the same thing twice cannot exclude; at least 1."""
    return max([1.0, *(max(each.high, 1 / each.low) for each in same)])


def compare(found: Sequence[Interval], floor: float) -> Comparison:
    """Faster or slower only where every interval lies beyond the floor as a whole."""
    if all(each.low > floor for each in found):
        return "faster"
    return "slower" if all(each.high < 1 / floor for each in found) else "inconclusive"
