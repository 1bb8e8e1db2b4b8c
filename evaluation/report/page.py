"""The verdict as one HTML file, without scripts or anything from a network: `python -m evaluation.report.page REPORT`.

It is made of the validated JSON of a report, of histories of earlier runs where some are given, and of nothing else.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation.report.explain import read_report
from evaluation.report.models import Report
from evaluation.report.page_roofline import roofline
from evaluation.report.page_speed import speed_rows
from evaluation.report.schema import validate
from evaluation.report.write import write_atomically
from evaluation.store.forms import History
from evaluation.suite.command import run_guarded
from evaluation.suite.result import exit_code

_WORDS = {0: ("Success", "good"), 1: ("Failed", "bad"), 3: ("No verdict", "unsure")}
_FEW = 10  # numeric cases that are shown without asking
_BOUND_AT = 80.0  # where a share of 1 ends, of the 100 that a bar has
Json = dict[str, Any]


def render_page(report: Report, histories: Sequence[History] = ()) -> str:
    """Raises jsonschema.ValidationError for a report, or a history, that is not of the published form."""
    document = report.model_dump(mode="json")
    validate(Report, document)
    numerics = _numerics(document["numerics"])
    for each in histories:
        validate(History, each.model_dump(mode="json"))
    word, tone = _WORDS[exit_code(report.failures)]
    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html.j2")
    results = document["results"]
    return template.render(
        report=document,
        word=word,
        tone=tone,
        reason=document["error"] or document["comparison"]["improvement_summary"],
        speed=speed_rows(document["speed"]),
        roofline=roofline(document["speed"]),
        numerics=numerics,
        shown=max(_FEW, sum(row["status"] == "fail" for row in numerics)),
        tests=_counts(results),
        wrong=_wrong(results),
        not_run=_grouped(results["after"]["not_run"], lambda test: test["reason"]),
        passed=_grouped(
            [test for test in results["after"]["tests"] if test["outcome"] == "passed"],
            lambda test: test["nodeid"].partition("::")[0],
        ),
        histories=[_history(each.model_dump(mode="json")) for each in histories],
        provenance=_provenance(document),
    )


def _numerics(numerics: Json) -> list[Json]:
    """Rows of after's cases, those that fail first, then by what share of the bound they take."""
    before = {case["name"]: case for case in numerics["before"]["cases"]}
    rows = []
    for case in numerics["after"]["cases"]:
        share, worst = _share(case), case["worst"] or {}
        rows.append(
            {
                "name": case["name"],
                "status": case["status"],
                "problems": "; ".join(case["problems"]),
                "measure": worst.get("name", ""),
                "error": _number(worst.get("error")),
                "bound": _number(worst.get("bound")),
                "before": _percent(_share(before.get(case["name"], {}))),
                "after": _percent(share),
                "width": round(min(100.0, _BOUND_AT * (share or 0.0)), 1),
                "order": (case["status"] == "pass", -(share or 0.0)),
            }
        )
    return sorted(rows, key=lambda row: row["order"])


def _share(case: Json) -> float | None:
    worst = case.get("worst") or {}
    return None if worst.get("error") is None else worst["error"] / worst["bound"]


def _counts(results: Json) -> Json:
    found: Json = {}
    for expectation in ("contract", "upgrade"):
        found[expectation] = {}
        for role in ("before", "after"):
            counts = Counter(t["outcome"] for t in results[role]["tests"] if t["expectation"] == expectation)
            counts["not run"] = sum(t["expectation"] == expectation for t in results[role]["not_run"])
            told = ", ".join(f"{number} {outcome}" for outcome, number in counts.items() if number)
            found[expectation][role] = told or "none"
    return found


def _wrong(results: Json) -> list[Json]:
    """Tests that did not do what was declared, after's first."""
    found = [test | {"role": "after"} for test in results["after"]["tests"] if test["outcome"] != "passed"]
    for test in results["before"]["tests"]:
        must_fail = test["expectation"] == "upgrade"
        if must_fail != (test["outcome"] in ("failed", "error")):
            found.append(test | {"role": "before"})
    return found


def _grouped(tests: list[Json], key: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for test in tests:
        found[key(test)].append(test["nodeid"].rpartition("::")[2])
    return dict(sorted(found.items()))


def _history(history: Json) -> Json:
    values = [point["value"] for point in history["points"]]
    low, high, steps = min(values), max(values), max(1, len(values) - 1)
    at = [round(4 + 632 * number / steps, 1) for number in range(len(values))]
    heights = [round(60 - 56 * (value - low) / ((high - low) or 1.0), 1) for value in values]
    return {
        "metric": f"{history['metric']}, {history['statistic']}",
        "count": len(values),
        "points": " ".join(f"{x},{y}" for x, y in zip(at, heights, strict=True)),
        "changes": [x for x, point in zip(at, history["points"], strict=True) if point["changed"]],
        "first": _number(values[0]),
        "last": _number(values[-1]),
        "low": _number(low),
        "high": _number(high),
    }


def _provenance(document: Json) -> Json:
    names = ("run_id", "schema_version", "started_at", "finished_at")
    found = {name: document[name] for name in names} | {"seconds": round(document["duration_seconds"], 1)}
    for name, value in {**document["environment"], **document["settings"]}.items():
        found[name] = ", ".join(map(str, value)) or "none" if isinstance(value, list) else value
    found["seed of the numeric cases"] = document["numerics"]["seed"]
    return {name: "not known" if value is None else str(value) for name, value in found.items()}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}%"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.report.page", description=__doc__)
    parser.add_argument("report", type=Path, metavar="REPORT", help="a report.json")
    parser.add_argument("--output", type=Path, metavar="FILE", help="(default: beside it, with .html)")
    options = parser.parse_args(argv)
    return run_guarded(lambda: _write(options.report, options.output or options.report.with_suffix(".html")))


def _write(report: Path, file: Path) -> int:
    write_atomically(file, render_page(read_report(report)))
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
