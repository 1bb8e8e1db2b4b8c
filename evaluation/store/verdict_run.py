"""A verdict as a run of the store."""

import argparse
import json
from contextlib import suppress
from pathlib import Path
from statistics import median

from evaluation.judge.speed_record import Speed, SpeedCase
from evaluation.report.models import Report, TreeResults, TreeSection
from evaluation.store.catalogue import Catalogue
from evaluation.store.errors import StoreError
from evaluation.store.forms import History
from evaluation.store.history import history
from evaluation.store.models import Run, Scalar, likeness
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


def earlier(store: Store, report: Report) -> list[History]:
    """What the store knows of runs like the report's: the histories worth a look, of two runs or more."""
    if not store.root.is_dir():
        return []
    try:
        index = store.index()
    except StoreError:  # it can always be made anew
        index = store.reindex()
    like = likeness("evaluate", report.environment, _flags(report))
    ratios = [f"{_named(case, report.speed)}/ratio" for case in report.speed.cases]
    metrics = [*ratios, "after/numerics/worst_share", "seconds"]
    found = []
    try:
        for metric in metrics:
            with suppress(StoreError):  # no such run
                found.append(history(Catalogue(index), metric, like=like))
    finally:
        index.close()
    return [each for each in found if len(each.points) > 1]


def keep_verdict(
    store: Store, report: Report, page: str, config: dict[str, Scalar | list[str]], tags: tuple[str, ...] = ()
) -> Run:
    """Store a report with its page, its numbers as metrics, and a config file that repeats the run."""
    run = store.create(
        "evaluate",
        report.environment,
        id=report.run_id,
        tags=tags,
        config={name: ",".join(value) if isinstance(value, list) else value for name, value in config.items()},
        flags=_flags(report),
    )
    run.log(0, verdict_metrics(report))
    run.log_many(list(enumerate(round_medians(report))))
    run.add_artifact(page, "page", "report.html")
    run.add_artifact(json.dumps(report.model_dump(mode="json"), indent=2, allow_nan=False), "report", "report.json")
    toml = "".join(f"{name} = {json.dumps(value)}\n" for name, value in config.items())  # JSON's forms are TOML's too
    run.add_artifact(toml, "config", "config.toml")
    return run.finish(_STATUS[exit_code(report.failures)])


def verdict_metrics(report: Report) -> dict[str, float]:
    """What of a report is a number: counts of tests, seconds, and each numeric case's error as a share of its bound."""
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
    for case in report.speed.cases:
        found |= {f"{_named(case, report.speed)}/{name}": value for name, value in _speed(case).items()}
    return found


def round_medians(report: Report) -> list[dict[str, float]]:
    """Of each round, each timed contender's median seconds: a metric measured as often has a noise."""
    rounds: list[dict[str, float]] = []
    for case in report.speed.cases:
        for timed in case.contenders:
            name = f"{_named(case, report.speed)}/{timed.worker}/{timed.contender}/seconds"
            for number, seconds in enumerate(timed.rounds):
                rounds += [{}] if number == len(rounds) else []
                rounds[number][name] = median(seconds)
    return rounds


def _named(case: SpeedCase, speed: Speed) -> str:
    """What a case's metrics begin with: one name for the fused path, another for what after does without it."""
    fell_back = speed.what == "fallback" or case.path == "fallback"
    return f"{'fallback' if fell_back else 'speed'}/{case.name}"


def _speed(case: SpeedCase) -> dict[str, float]:
    found: dict[str, float | None] = {"noise_floor": case.noise_floor, "least_seconds": case.least_seconds}
    found["ratio"] = case.ratio and case.ratio.ratio
    for timed in case.contenders:
        found[f"{timed.worker}/{timed.contender}/peak_bytes"] = timed.peak_bytes
    return {name: value for name, value in found.items() if value is not None}


def _flags(report: Report) -> dict[str, Scalar]:
    return {"quick": report.settings.quick, "device": report.settings.device}


def _tests(role: str, section: TreeSection, results: TreeResults) -> dict[str, float]:
    counts = {f"{role}/tests/{name}": float(count) for name, count in results.summary}
    return counts | {f"{role}/seconds": section.tests.duration_seconds}
