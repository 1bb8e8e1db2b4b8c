"""How far from the oracle a tree may be: a multiple of the vanilla tree's own error on the same case.

`python -m evaluation.judge.calibrate --seeds 8`, torch 2.13.0 on an x86-64 CPU, all cases; the last column is the
largest error of repository_after as a multiple of vanilla's (or of `floor`, where that is more). MULTIPLE leaves 2.6
times of it: trees that sum in another order than these two are honest as well.

    rounding  measure   values   median   99 %     largest  after / vanilla
    float32   output      1600   2.2e-07  3.8e-07  4.8e-07  0.49
    float32   row         1600   3.2e-07  7.3e-07  1.1e-06  1.05
    float32   gradient   19920   3.6e-07  9.0e-07  3.4e-06  0.91
    bfloat16  output       176   4.3e-03  1.0e-02  1.1e-02  1.01
    bfloat16  row          176   6.2e-03  1.2e-02  1.3e-02  1.09
    bfloat16  gradient    4072   9.6e-03  2.0e-02  3.4e-02  1.54
    float16   output       104   5.9e-04  1.2e-03  1.2e-03  1.04
    float16   row          104   8.9e-04  1.6e-03  1.8e-03  1.07
    float16   gradient     984   8.9e-04  2.4e-03  3.6e-03  1.41
"""

from typing import NamedTuple

MULTIPLE = 4.0


class Bound(NamedTuple):
    """Relative L2 errors. Vanilla's own counts as at least `floor`; the vanilla tree itself must be below `ceiling`."""

    floor: float
    ceiling: float


# By the dtype that the arithmetic rounds to, and what is compared: a whole output, its worst row, a gradient.
BOUNDS: dict[tuple[str, str], Bound] = {
    ("float32", "output"): Bound(1e-6, 1e-5),
    ("float32", "row"): Bound(1e-6, 3e-5),
    ("float32", "gradient"): Bound(2e-6, 5e-5),
    ("bfloat16", "output"): Bound(4e-3, 0.05),
    ("bfloat16", "row"): Bound(6e-3, 0.1),
    ("bfloat16", "gradient"): Bound(8e-3, 0.15),
    ("float16", "output"): Bound(5e-4, 6e-3),
    ("float16", "row"): Bound(1e-3, 0.02),
    ("float16", "gradient"): Bound(1e-3, 0.02),
}
# A gradient below this share of all gradients' root mean square is held to that share: what cancels out to next to
# nothing has no relative accuracy.
NEGLIGIBLE = 0.1


def kind_of(measure: str) -> str:
    """What a measure named by compare.errors is: "0.x_out", "0.x_out row" or "0.d.x"."""
    return "gradient" if ".d." in measure else "row" if measure.endswith(" row") else "output"


def allowed(measure: str, rounding: str, vanilla: float | None) -> float:
    """The bound of one measure; without vanilla's error the ceiling, which vanilla itself is held to."""
    bound = BOUNDS[rounding, kind_of(measure)]
    if vanilla is None or not vanilla <= bound.ceiling:  # NaN too
        return bound.ceiling
    return MULTIPLE * max(vanilla, bound.floor)
