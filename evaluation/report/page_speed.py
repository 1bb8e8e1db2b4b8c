"""What the page shows of the timed cases: numbers as text, and where marks lie in its pictures."""

import math
from collections import Counter
from typing import Any

_WIDTH = 330.0  # of the longest bar
_PLOT_LEFT, _PLOT_WIDTH, _PLOT_HEIGHT, _PLOT_BASE = 8.0, 624.0, 64.0, 100.0
_BINS = 52
Json = dict[str, Any]


def speed_rows(speed: Json) -> list[Json]:
    """A row for each timed case, as the template wants them; the target, which is timed first, first."""
    return [_row(case) for case in speed["cases"]]


def _row(case: Json) -> Json:
    before, after = (_timed(case, role, case[name]) for role, name in (("before", "baseline"), ("after", "contender")))
    least, took = case["least_seconds"], after and after["median_seconds"]
    timed = [each for each in case["contenders"] if each["median_seconds"] and each["worker"] != "again"]
    medians = [each["median_seconds"] for each in timed]
    shortest, longest = least or min(medians, default=1.0) / 2, max(medians, default=1.0)
    sides = {"before": _samples(before), "after": _samples(after)}
    return {
        "case": case,
        "before_ms": _milliseconds(before),
        "after_ms": _milliseconds(after),
        "ratio": _interval(case["ratio"]),
        "host_ratio": _interval(case["host_ratio"]),
        "noise": "" if case["noise_floor"] is None else f"{case['noise_floor']:.3g}",
        "of_floor": f"{100 * least / took:.0f}%" if least and took else "not known",
        "calls": _calls(case),
        "bars": [_bar(each, shortest, longest) for each in sorted(timed, key=lambda each: -each["median_seconds"])],
        "begin": f"the floor, {_time(least)}" if least else _time(shortest),
        "kernels": [{"name": k["name"], "text": _time(k["seconds"])} for k in (after and after["kernels"]) or ()],
        **_overlaid(sides),
    }


def _timed(case: Json, worker: str, contender: str | None) -> Json | None:
    found = (x for x in case["contenders"] if (x["worker"], x["contender"]) == (worker, contender))
    return next(found, None)


def _samples(timed: Json | None) -> list[float]:
    return [second for each in (timed["rounds"] if timed else ()) for second in each]


def _overlaid(sides: dict[str, list[float]]) -> Json:
    """Histograms of both sides on one logarithmic axis: the height is the share of a side's calls, the fullest bin of
    both as high as there is room, and one with a single call still seen.
    """
    if not all(sides.values()):
        return {"histograms": None}
    low, high = (of(of(side) for side in sides.values()) for of in (min, max))
    span, width = math.log(high / low) or 1.0, _PLOT_WIDTH / _BINS
    shares = {}
    for role, side in sides.items():
        bins = Counter(min(_BINS - 1, int(_BINS * math.log(second / low) / span)) for second in side)
        shares[role] = {number: count / len(side) for number, count in sorted(bins.items())}
    fullest = max(share for found in shares.values() for share in found.values())
    histograms = {}
    for role, found in shares.items():
        bars = [
            f"M{_PLOT_LEFT + number * width:.1f} {_PLOT_BASE:g}v{-max(2.0, _PLOT_HEIGHT * share / fullest):.1f}"
            f"h{width:.1f}V{_PLOT_BASE:g}"
            for number, share in found.items()
        ]
        peak = max(found, key=found.__getitem__)
        at = min(max(_PLOT_LEFT + (peak + 0.5) * width, _PLOT_LEFT + 20), _PLOT_LEFT + _PLOT_WIDTH - 20)
        histograms[role] = {"path": "".join(bars), "peak": round(at, 1)}
    return {"histograms": histograms, "base": _PLOT_BASE, "low": _time(low), "high": _time(high)}


def _bar(timed: Json, shortest: float, longest: float) -> Json:
    """On a logarithmic axis that begins at the shortest; what is told to be below it has no length."""
    seconds = timed["median_seconds"]
    label = f"{timed['worker']}: {timed['contender']}"
    return {
        "label": label,
        "role": timed["worker"],
        "text": _time(seconds),
        "width": round(_WIDTH * max(0.0, math.log(seconds / shortest)) / (math.log(longest / shortest) or 1.0), 1),
    }


def _interval(interval: Json | None) -> str:
    return "" if interval is None else f"{interval['ratio']:.3g} [{interval['low']:.3g}, {interval['high']:.3g}]"


def _milliseconds(timed: Json | None) -> str:
    return f"{1e3 * timed['median_seconds']:.4g}" if timed and timed["median_seconds"] else ""


def _calls(case: Json) -> list[Json]:
    """Each way to call either tree: the memory of a call, how long the first one took, or why there is none."""
    ways = [each for each in case["contenders"] if each["worker"] != "again"]
    most = max((each["peak_bytes"] or 0 for each in ways), default=0)
    return [
        {
            "label": f"{each['worker']}: {each['contender']}",
            "role": each["worker"],
            "memory": "not known" if each["peak_bytes"] is None else f"{each['peak_bytes'] / 1e6:.4g} MB",
            "width": round(100 * (each["peak_bytes"] or 0) / most, 1) if most else 0.0,
            "first": "" if each["first_call_seconds"] is None else f"{each['first_call_seconds']:.3g} s",
            "unmeasured": each["unmeasured"] or "",
        }
        for each in ways
    ]


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.4g} ms" if seconds >= 1e-4 else f"{1e6 * seconds:.4g} us"
