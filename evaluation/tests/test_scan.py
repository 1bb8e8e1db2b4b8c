"""The static scan: what each rule finds, what it leaves alone, and that a finding decides nothing."""

import json
from pathlib import Path

import pytest

from evaluation.evaluate import main as evaluate
from evaluation.judge.scan import RULES, Finding, scan
from evaluation.report.sarif import to_sarif
from evaluation.suite.command import ROOT
from evaluation.tests.conftest import Kata, right_numbers
from evaluation.tests.gallery import cheats, honest
from evaluation.tests.gallery.entry import Entry
from evaluation.tests.gallery.forgeries import FORGERIES

FOUND = {
    "test-framework": ("import _pytest.runner", "from pytest_jsonreport import plugin"),
    "foreign-attribute": (
        "import torch\ntorch.allclose = print",
        "import torch as t\nt.nn.functional.relu, x = 1, 2",
        "import time\nsetattr(time, 'time', print)",
        "from torch import Tensor\nTensor.norm = print",
    ),
    "clock": ("import time\ntime.perf_counter()", "from time import monotonic"),
    "frames": ("import sys\nsys._getframe()", "import gc", "from inspect import stack"),
    "process": ("import subprocess", "import os\nos.kill(1, 9)"),
    "exit": (
        "import os as o\no._exit(0)",
        "from atexit import register",
        "import sys\nif __name__ == '__main__':\n    pass\nelse:\n    sys.exit()",
    ),
    "command-line": ("import sys\nprint(sys.argv[0])",),
    "harness": (
        "import os\nos.environ.get('PYTEST_CURRENT_TEST')",
        "x = 'run_cases' in y",
        "import sys\nx = 'pytest' in sys.modules",
    ),
    "thread": ("import threading\nthreading.Thread()",),
    "dynamic-code": ("exec('x = 1')", "__import__('os')"),
    "network": ("import urllib.request",),
    "unreadable": ("def f(:",),
}
LEFT_ALONE = (
    '"""No pytest, os._exit, sys._getframe, PYTEST_CURRENT_TEST or run_cases here."""\n# import subprocess',
    "import torch\nx = torch.zeros(3)\nx.grad = None\nself = x\nself.forward = print",
    "import sys\nsys.modules.get('triton')",
    "from inspect import signature",
    "import os\nos.environ.get('MMDIT_FUSED')",
    "import mmdit.config\nmmdit.config.size = 1",
    "import re\nre.compile('x')",
    "import sys\nif __name__ == '__main__':\n    sys.exit(len(sys.argv))",
)


def scan_text(folder: Path, text: str) -> tuple[Finding, ...]:
    (folder / "module.py").write_text(text, encoding="utf-8")
    return scan(folder)


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in FOUND.items() for text in texts])
def test_a_rule_finds_its_line(tmp_path: Path, rule: str, text: str):
    found = [each for each in scan_text(tmp_path, text) if each.rule == rule]
    assert found
    assert all((each.file, each.line) == ("module.py", len(text.splitlines())) for each in found)


def test_each_rule_has_an_example():
    assert FOUND.keys() == RULES.keys()


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_prose_and_honest_code_are_left_alone(tmp_path: Path, text: str):
    assert scan_text(tmp_path, text) == ()


def test_the_vanilla_tree_has_no_finding():
    assert scan(ROOT / "repository_before") == ()


def test_of_the_fused_tree_only_tools_start_processes_read_clocks_and_look_at_frames():
    found = {(finding.file.removeprefix("mmdit/"), finding.rule) for finding in scan(ROOT / "repository_after")}
    assert found == {
        *((f"deploy/{name}.py", "process") for name in ("build", "coldstart", "elsewhere")),
        *((name, "clock") for name in ("deploy/coldstart.py", "graph/measure.py")),
        *((name, "frames") for name in ("graph/trace.py", "runtime/layout.py")),  # where an error lies; whose input
    }


@pytest.mark.parametrize("code", [code for code, *_ in FORGERIES.values()], ids=list(FORGERIES))
def test_every_forgery_of_the_suite_is_pointed_at_unless_it_only_writes_files(tmp_path: Path, code: str):
    assert scan_text(tmp_path, code) or "open(" in code


@pytest.mark.parametrize(
    "entry", [each for each in honest.ENTRIES if "prose" in each.name or "-inf" in each.name], ids=str
)
def test_honest_entries_are_not_pointed_at(tmp_path: Path, entry: Entry):
    assert scan(entry.tree(tmp_path / "after")) == scan(ROOT / "repository_after")


def test_cheats_that_look_around_are_pointed_at(tmp_path: Path):
    silent = [entry.name for entry in cheats.ENTRIES if not scan_text(tmp_path, entry.edits[0].new)]
    assert not [name for name in silent if name.startswith(("harness", "exit", "killing", "clocks", "comparisons"))]


def test_sarif_names_rule_file_and_line():
    log = json.loads(to_sarif((Finding(rule="clock", message="uses time.time", file="mmdit/a.py", line=7),)))
    (run,) = log["runs"]
    (result,) = run["results"]
    place = result["locations"][0]["physicalLocation"]
    assert (log["version"], result["ruleId"], result["level"]) == ("2.1.0", "clock", "note")
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("mmdit/a.py", 7)
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == set(RULES)


@pytest.mark.usefixtures("known_machine")
def test_a_finding_is_shown_and_fails_nobody(kata: Kata, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    kata.append("after/mmdit/__init__.py", "import atexit")
    trees = ("--before", str(kata.before), "--after", str(kata.after), "--sarif", str(tmp_path / "scan.sarif"))
    assert evaluate([*trees], suite=kata.suite, reports=kata.folder / "reports", judge=right_numbers) == 0
    assert "to read: mmdit/__init__.py:11: imports atexit: ends the process" in capsys.readouterr().out
    assert "imports atexit" in (tmp_path / "scan.sarif").read_text()
    report = json.loads((kata.folder / "reports" / "latest.json").read_text())
    assert [each["rule"] for each in report["findings"]] == ["exit"]
