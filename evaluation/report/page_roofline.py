"""The roofline of the timed cases (Williams et al., 2009): operations per byte against operations per second.

Bytes are those that no call can do without, so every way to compute a case lies on one upright line.
"""

import math
from collections.abc import Iterator
from typing import Any

LEFT, RIGHT, TOP, BOTTOM = 92.0, 632.0, 12.0, 316.0  # of the plot, in a picture of 640 by 360
_ROOM, _LINE = 165.0, 14.0  # of a label
_SAME_ROOF = 0.1
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
Json = dict[str, Any]


def roofline(speed: Json) -> Json | None:
    """What the template draws and tells of the cases whose work is known; None where there is none."""
    cases = [case for case in speed["cases"] if case["work"] and any(_timed(case))]
    if not cases:
        return None
    points = [_point(case, each) | {"number": n} for n, case in enumerate(cases, 1) for each in _timed(case)]
    corners = [corner for case in cases for corner in _corners(case["work"])]
    across = _Axis.around([*(p["intensity"] for p in points), *(x for x, _ in corners)], 10, LEFT, RIGHT)
    up = _Axis.around([*(p["rate"] for p in points), *(y for _, y in corners)], 3, BOTTOM, TOP)
    for point in points:
        point |= {"x": across.at(point["intensity"]), "y": up.at(point["rate"])}
    return {
        "points": _labelled(points),
        "cases": _columns(points),
        "roofs": [_roof(case["work"], across, up) for case in _different(cases)],
        "across": [{"at": across.at(10.0**n), "text": f"{10.0**n:g}"} for n in across.decades()],
        "up": [{"at": up.at(10.0**n), "text": _rate(10.0**n)} for n in up.decades()],
        "frame": {"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    }


def _columns(points: list[Json]) -> list[Json]:
    """Each case, the fastest of its contenders first."""
    found: dict[int, list[Json]] = {}
    for point in sorted(points, key=lambda each: -each["rate"]):
        found.setdefault(point["number"], []).append(point)
    return [
        {"number": n, "name": rows[0]["case"], "x": rows[0]["x"], "rows": rows} for n, rows in sorted(found.items())
    ]


class _Axis:
    """Logarithmic, from `low` at the pixel `begin` to `high` at `end`."""

    def __init__(self, low: float, high: float, begin: float, end: float) -> None:
        self.low, self.high, self.begin, self.end = low, high, begin, end

    @classmethod
    def around(cls, values: list[float], room: float, begin: float, end: float) -> "_Axis":
        """From the least of these to the largest, and further by the factor `room` on either side."""
        return cls(min(values) / room, max(values) * room, begin, end)

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.begin + (self.end - self.begin) * share, 1)

    def decades(self) -> range:
        return range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)


def _timed(case: Json) -> Iterator[Json]:
    return (each for each in case["contenders"] if each["median_seconds"] and each["worker"] != "again")


def _point(case: Json, timed: Json) -> Json:
    """A contender at a case; `best` are the two that are compared."""
    work, seconds = case["work"], timed["median_seconds"]
    rates, intensity = work["rates"], work["operations"] / work["moved_bytes"]
    by_bytes = rates["bytes_per_s"] is not None and intensity * rates["bytes_per_s"] < rates["operations_per_s"]
    ceiling = intensity * rates["bytes_per_s"] if by_bytes else rates["operations_per_s"]
    rate = work["operations"] / seconds
    best = {"before": case["baseline"], "after": case["contender"]}[timed["worker"]]
    return {
        "case": case["name"],
        "worker": timed["worker"],
        "contender": timed["contender"],
        "best": timed["contender"] == best,
        "intensity": intensity,
        "rate": rate,
        "intensity_text": f"{intensity:.4g}",
        "rate_text": _rate(rate),
        "ceiling_text": f"{_rate(ceiling)}, by {'bytes' if by_bytes else 'operations'}",
        "share_text": f"{100 * rate / ceiling:.3g}%",
    }


def _corners(work: Json) -> list[tuple[float, float]]:
    """What of a roof has to be in the picture: where its two sides meet."""
    peak, bandwidth = work["rates"]["operations_per_s"], work["rates"]["bytes_per_s"]
    return [(peak / bandwidth if bandwidth else work["operations"] / work["moved_bytes"], peak)]


def _roof(work: Json, across: _Axis, up: _Axis) -> Json:
    ((ridge, peak),) = _corners(work)
    bandwidth = work["rates"]["bytes_per_s"]
    level, edge = up.at(peak), across.at(across.high)
    if not bandwidth:
        return {"line": f"M{across.at(across.low)} {level}H{edge}", "level": level, "peak": _rate(peak), "slope": None}
    start = max(across.low, up.low / bandwidth)
    line = f"M{across.at(start)} {up.at(start * bandwidth)}L{across.at(ridge)} {level}H{edge}"
    middle = math.sqrt(start * ridge)
    slope = {"x": across.at(middle), "y": up.at(middle * bandwidth), "text": f"{_prefixed(bandwidth)}B/s"}
    return {"line": line, "level": level, "peak": _rate(peak), "slope": slope}


def _different(cases: list[Json]) -> list[Json]:
    """A case for each roof that can be told from the others: rates are measured anew for each case."""
    found: list[Json] = []
    for case in cases:
        if not any(_alike(case["work"]["rates"], other["work"]["rates"]) for other in found):
            found.append(case)
    return found


def _alike(a: Json, b: Json) -> bool:
    pairs = [(a[name] or 0.0, b[name] or 0.0) for name in a]
    return all(math.isclose(*pair, rel_tol=_SAME_ROOF) for pair in pairs)


def _labelled(points: list[Json]) -> list[Json]:
    """The points with places for their labels, none over another: each beside its point, or below the one above it."""
    placed: list[Json] = []
    for point in sorted(points, key=lambda each: each["y"]):
        near = [each["label_y"] for each in placed if abs(each["label_x"] - _label_x(point)) < _ROOM]
        below = max(near, default=-math.inf) + _LINE
        placed.append(point | {"label_x": _label_x(point), "label_y": round(max(point["y"], below), 1)})
    return placed


def _label_x(point: Json) -> float:
    """On the side where there is room."""
    return round(point["x"] + 22 if point["x"] + _ROOM < RIGHT else point["x"] - 22, 1)


def _prefixed(value: float) -> str:
    scale, letter = next(((scale, letter) for scale, letter in _PREFIXES if value >= 0.9995 * scale), (1.0, ""))
    return f"{value / scale:.3g} {letter}"


def _rate(value: float) -> str:
    return f"{_prefixed(value)}FLOP/s"
