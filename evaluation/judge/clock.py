"""Whether what a worker tells of time can be: against the judge's clock, and against what the machine can do."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from evaluation.judge.speed_record import Turn

RESOLUTION = 1e-4  # seconds of a turn that clocks may differ by
MARGIN = 0.8  # of the least time: the rates were measured, and not under the best conditions


class Allowance(NamedTuple):
    """What turns may take beside their calls: by before's own, by a share of the turn, and in seconds each."""

    factor: float
    share: float
    seconds: float


# Wide on a CPU, which other processes share, and whose ratio decides nothing. On a GPU what may hide within it does not
# help either: a case is faster only where it is so by the judge's clock alone as well.
ALLOWANCES = {"cpu": Allowance(2.0, 0.25, 5e-3), "cuda": Allowance(1.25, 0.1, 5e-4)}


def clock_problem(turns: Sequence[Turn], reference: Sequence[Turn], device: str) -> str | None:
    """Calls that took longer than their turn, or turns that took longer than their calls explain.

    reference: before's turns of the same rounds, which did the same things beside their calls.
    """
    for turn in turns:
        if not all(0 < each < float("inf") for each in turn.seconds):
            return f"a call is told to have taken {min(turn.seconds):g} s"
        told = sum(turn.seconds)
        if told > turn.host_seconds + RESOLUTION:
            return f"calls told {told:.3g} s in a turn of {turn.host_seconds:.3g} s by the judge's clock"
    hosts = sum(turn.host_seconds for turn in turns)
    allowance = ALLOWANCES[device]
    explained = allowance.factor * _beside(reference) * len(turns) / len(reference)
    explained += allowance.share * hosts + allowance.seconds * len(turns)
    if _beside(turns) > explained:
        told = hosts - _beside(turns)
        return f"the judge's clock saw {hosts:.3g} s, of which calls tell {told:.3g} s; {explained:.3g} s are explained"
    return None


def _beside(turns: Sequence[Turn]) -> float:
    return sum(turn.host_seconds - sum(turn.seconds) for turn in turns)


def floor_problem(turns: Sequence[Turn], least_seconds: float | None) -> str | None:
    """Calls faster than their operations and bytes allow."""
    took = median(each for turn in turns for each in turn.seconds)
    if least_seconds is not None and took < MARGIN * least_seconds:
        return f"a call is told to take {took:.3g} s, where its work takes this machine at least {least_seconds:.3g} s"
    return None
