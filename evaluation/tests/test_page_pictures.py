"""Where the pictures of the verdict page have their marks and labels."""

import re
from itertools import combinations

import pytest

from evaluation.judge.speed_record import Rates, Speed, SpeedCase, Work
from evaluation.report.models import Report
from evaluation.report.page import render_page
from evaluation.report.page_roofline import roofline
from evaluation.report.page_speed import speed_rows
from evaluation.tests.h200_report import h200_speed


def drawn(*cases: SpeedCase) -> dict:
    return roofline(Speed(what="fused", why=None, confidence=0.95, cases=cases).model_dump(mode="json"))


def with_work(case: SpeedCase, operations: int, moved_bytes: int, bytes_per_s: float | None) -> SpeedCase:
    work = Work(
        operations=operations, moved_bytes=moved_bytes, rates=Rates(operations_per_s=1e12, bytes_per_s=bytes_per_s)
    )
    return case.model_copy(update={"work": work, "least_seconds": work.least_seconds})


def best_of(found: dict) -> dict:
    return next(point for point in found["points"] if point["worker"] == "after" and point["best"])


def test_what_takes_its_least_time_lies_on_the_roof_and_slower_below_it():
    (case, _) = h200_speed().cases
    took = min(each.median_seconds for each in case.contenders if each.worker == "after")
    by_operations = drawn(with_work(case, round(1e12 * took), 1, 1e12))
    assert best_of(by_operations)["y"] == by_operations["roofs"][0]["level"]
    assert best_of(by_operations)["share_text"] == "100%"
    by_bytes = best_of(drawn(with_work(case, 1_000_000, round(1e9 * took), 1e9)))
    assert (by_bytes["share_text"], by_bytes["ceiling_text"][-8:]) == ("100%", "by bytes")
    assert all(
        point["y"] > by_operations["roofs"][0]["level"] for point in by_operations["points"] if not point["best"]
    )


def test_the_roof_rises_with_the_bytes_and_is_level_where_they_are_not_known():
    case = h200_speed().cases[0]
    sloped = drawn(with_work(case, 10**9, 10**8, 1e10))["roofs"][0]
    start, left, ridge, level = map(float, re.fullmatch(r"M(\S+) (\S+)L(\S+) (\S+)H\S+", sloped["line"]).groups())
    assert (start < ridge, left > level, level) == (True, True, sloped["level"])
    level = drawn(with_work(case, 10**9, 10**8, None))["roofs"][0]
    assert ("L" in level["line"], level["slope"]) == (False, None)


def test_cases_of_one_machine_share_a_roof_and_those_of_another_do_not():
    first, second = h200_speed().cases
    assert len(drawn(first, second)["roofs"]) == 1
    assert len(drawn(first, with_work(second, 10**9, 10**8, None))["roofs"]) == 2


def test_no_label_lies_on_another():
    points = drawn(*h200_speed().cases)["points"]
    assert len(points) == 10
    for one, other in combinations(points, 2):
        assert abs(one["label_x"] - other["label_x"]) > 160 or abs(one["label_y"] - other["label_y"]) >= 14


def test_what_has_no_known_work_has_no_roofline(passing: Report):
    speed = h200_speed()
    cases = tuple(case.model_copy(update={"work": None}) for case in speed.cases)
    page = render_page(passing.model_copy(update={"speed": speed.model_copy(update={"cases": cases})}))
    assert "Roofline" not in page
    assert "Memory and first calls" in page


def test_times_of_both_lie_over_one_axis_and_a_single_call_is_seen():
    case = h200_speed().cases[0]
    sides = {("before", case.baseline): (2.0,) * 300, ("after", case.contender): (1.0,) * 299 + (2.0,)}
    timed = tuple(
        each.model_copy(update={"rounds": (sides[key],)}) if (key := (each.worker, each.contender)) in sides else each
        for each in case.contenders
    )
    speed = Speed(what="fused", why=None, confidence=0.95, cases=(case.model_copy(update={"contenders": timed}),))
    (row,) = speed_rows(speed.model_dump(mode="json"))
    bars = {role: re.findall(r"M(\S+) 100v-(\S+)h", row["histograms"][role]["path"]) for role in ("before", "after")}
    (left, first), (right, single) = bars["after"]
    assert bars["before"] == [(right, "64.0")]
    assert float(left) < float(right)
    assert (float(first), float(single)) == (pytest.approx(64 * 299 / 300, abs=0.1), 2.0)
    assert (row["low"], row["high"]) == ("1000 ms", "2000 ms")
