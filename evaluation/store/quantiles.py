"""Quantiles of a stream in bounded memory: exact while it is short, then a mergeable KLL sketch.

Karnin, Lang, Liberty: Optimal Quantile Approximation in Streams, https://arxiv.org/abs/1603.05346.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from datasketches import kll_doubles_sketch

EXACT = 1024
_FORMAT = b"Q1"
_LARGEST_K = 65535


class Quantiles:
    """Values are added one by one or by arrays; NaN and infinities raise ValueError.

    `error`: of a rank, as a share of all values, with 99% confidence: 0.01 for p50 is somewhere within p49 and p51.
    Up to EXACT values are kept, and their quantiles are numpy's (linear); of more there is a sketch.
    """

    def __init__(self, error: float = 0.01) -> None:
        if not 1e-4 <= error <= 0.2:
            raise ValueError(f"error: expected a share in 0.0001 .. 0.2, got {error!r}")
        self.error = error
        self._values: list[float] = []
        self._sketch: kll_doubles_sketch | None = None

    def add(self, values: "float | Sequence[float] | np.ndarray") -> None:
        array = np.atleast_1d(np.asarray(values, dtype=np.float64)).ravel()
        if not np.isfinite(array).all():
            raise ValueError("values: expected finite numbers, got NaN or infinity")
        if self._sketch is None and len(self._values) + len(array) <= EXACT:
            self._values.extend(array.tolist())
            return
        self._sketched().update(array)

    def merge(self, other: Self) -> None:
        """As if the other's values had been added here. Raises ValueError for another error."""
        if other.error != self.error:
            raise ValueError(f"other: expected one of error {self.error}, got {other.error}")
        if other._sketch is None:
            self.add(other._values)
        else:
            self._sketched().merge(other._sketch)

    def __len__(self) -> int:
        """How many values were added."""
        return len(self._values) if self._sketch is None else self._sketch.n

    def at(self, *ranks: float) -> list[float]:
        """The value at each rank in 0 .. 1. Raises ValueError when no value was added."""
        if not len(self):
            raise ValueError("no value was added: there are no quantiles")
        if self._sketch is None:
            return [float(v) for v in np.quantile(self._values, ranks)]
        return [float(v) for v in self._sketch.get_quantiles(list(ranks))]

    def to_bytes(self) -> bytes:
        head = _FORMAT + np.float64(self.error).tobytes()
        if self._sketch is None:
            return head + b"E" + np.asarray(self._values, dtype=np.float64).tobytes()
        return head + b"S" + self._sketch.serialize()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises ValueError unless `data` is what to_bytes gave."""
        if data[:2] != _FORMAT or data[10:11] not in (b"E", b"S"):
            raise ValueError(f"data: expected quantiles of format {_FORMAT.decode()}, got {data[:11]!r}")
        found = cls(float(np.frombuffer(data[2:10])[0]))
        if data[10:11] == b"E":
            found._values = np.frombuffer(data[11:]).tolist()
        else:
            from datasketches import kll_doubles_sketch

            found._sketch = kll_doubles_sketch.deserialize(data[11:])
        return found

    def _sketched(self) -> "kll_doubles_sketch":
        if self._sketch is None:
            self._sketch = _sketch_of(self.error)
            if self._values:
                self._sketch.update(np.asarray(self._values))
            self._values = []
        return self._sketch


def _sketch_of(error: float) -> "kll_doubles_sketch":
    from datasketches import kll_doubles_sketch

    k = 8
    while kll_doubles_sketch(k).normalized_rank_error(False) > error:
        k = k + max(1, k // 16)
        if k > _LARGEST_K:
            raise ValueError(f"error: {error} is finer than a sketch can be")
    return kll_doubles_sketch(k)
