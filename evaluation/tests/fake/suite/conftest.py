"""What the grader relies on in a suite's conftest, and nothing else."""

import os
import sys

import pytest

NOT_RUN = []

sys.path.insert(0, os.environ["REPO_PATH"])


def expectation(item):
    return next((name for name in ("contract", "upgrade") if item.get_closest_marker(name)), None)


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true")


def pytest_collection_modifyitems(config, items):
    reasons = {"gpu": "no CUDA device"} | ({"slow": "quick run"} if config.getoption("quick") else {})
    for item in list(items):
        for reason in (reasons[name] for name in reasons if item.get_closest_marker(name)):
            items.remove(item)
            config.hook.pytest_deselected(items=[item])
            NOT_RUN.append({"nodeid": item.nodeid, "reason": reason, "expectation": expectation(item)})


@pytest.hookimpl(optionalhook=True)
def pytest_json_runtest_metadata(item):
    return {"expectation": expectation(item)}


@pytest.hookimpl(optionalhook=True)
def pytest_json_modifyreport(json_report):
    json_report["not_run"] = NOT_RUN
