"""A verdict as a run of the store."""

import argparse
import json
from pathlib import Path

from evaluation.judge.speed_record import Speed
from evaluation.report.models import Report, TreeResults, TreeSection
from evaluation.store.models import Run, Scalar
from evaluation.store.store import Store
from evaluation.suite.result import exit_code

_SAYS_NOTHING_OF_THE_RUN = {"config", "output", "sarif", "junit", "bundle", "regrade", "store", "no_store", "tag"}
_STATUS = {0: "success", 1: "failed", 3: "no_verdict"}


def resolved(options: argparse.Namespace, seed: int) -> dict[str, Scalar | list[str]]:
    """The options that decide a verdict, defaults and the seed drawn included, by the names of a config file."""
    given = vars(options) | {"seed": seed}
    return {
        name.replace("_", "-"): str(value) if isinstance(value, Path) else value
        for name, value in sorted(given.items())
        if name not in _SAYS_NOTHING_OF_THE_RUN and value is not None
    }


def keep_verdict(
    store: Store, report: Report, config: dict[str, Scalar | list[str]], tags: tuple[str, ...] = ()
) -> Run:
    """Store a report with its numbers as metrics, and a config file that repeats the run."""
    run = store.create(
        "evaluate",
        report.environment,
        id=report.run_id,
        tags=tags,
        config={name: ",".join(value) if isinstance(value, list) else value for name, value in config.items()},
        flags={"quick": report.settings.quick, "device": report.settings.device},
    )
    run.log(0, verdict_metrics(report))
    run.add_artifact(json.dumps(report.model_dump(mode="json"), indent=2, allow_nan=False), "report", "report.json")
    toml = "".join(f"{name} = {json.dumps(value)}\n" for name, value in config.items())  # JSON's forms are TOML's too
    run.add_artifact(toml, "config", "config.toml")
    return run.finish(_STATUS[exit_code(report.failures)])


def verdict_metrics(report: Report) -> dict[str, float]:
    """What of a report is a number: counts of tests, seconds, errors as shares of their bounds, times and ratios."""
    found = {"seconds": report.duration_seconds, "success": float(report.success)}
    found |= {f"axis/{name}/passed": float(axis.status == "pass") for name, axis in report.verdict}
    for role in ("before", "after"):
        found |= _tests(role, getattr(report, role), getattr(report.results, role))
        numbers = getattr(report.numerics, role)
        shares = {
            case.name: float("nan") if case.worst.error is None else case.worst.error / case.worst.bound
            for case in numbers.cases
            if case.worst
        }
        found |= {f"{role}/numerics/share/{name}"[:200]: share for name, share in shares.items()}
        found[f"{role}/numerics/seconds"] = numbers.duration_seconds
        if shares:
            found[f"{role}/numerics/worst_share"] = max(shares.values())
    return found | speed_metrics(report.speed)


def speed_metrics(speed: Speed) -> dict[str, float]:
    """Ratios with their ends, and medians, by what was timed: a fallback's go by another name than the fused path's."""
    found = {}
    for case in speed.cases:
        if case.ratio is not None:
            found |= {f"{speed.what}/{end}/{case.name}": value for end, value in case.ratio}
        for each in case.contenders:
            if each.median_seconds is not None:
                found[f"{each.worker}/{speed.what}/{each.contender}/{case.name}"] = each.median_seconds
    return {name[:200]: value for name, value in found.items()}


def _tests(role: str, section: TreeSection, results: TreeResults) -> dict[str, float]:
    counts = {f"{role}/tests/{name}": float(count) for name, count in results.summary}
    return counts | {f"{role}/seconds": section.tests.duration_seconds}
