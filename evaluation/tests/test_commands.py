"""The two commands from outside: exit codes, files, signals. They run on the fake kata."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.evaluate import main as evaluate
from evaluation.report.models import Report
from evaluation.suite import __main__ as suite_command
from evaluation.suite.command import ROOT
from evaluation.tests.conftest import Kata, right_numbers, wait_for

INIT = "after/mmdit/__init__.py"


def grade(kata: Kata, *more: str) -> int:
    trees = ("--before", str(kata.before), "--after", str(kata.after))
    return evaluate([*trees, *more], suite=kata.suite, reports=kata.folder / "reports", judge=right_numbers)


def reports_of(kata: Kata) -> list[Path]:
    folder = kata.folder / "reports"
    return sorted(file for file in folder.rglob("*.json") if "runs" not in file.relative_to(folder).parts)


@pytest.mark.usefixtures("known_machine")
class TestEvaluate:
    def test_success_is_0_and_the_report_is_in_a_dated_folder_and_latest(self, kata: Kata):
        assert grade(kata) == 0
        dated, latest = reports_of(kata)
        assert latest.name == "latest.json"
        assert dated.read_bytes() == latest.read_bytes()
        report = Report.model_validate_json(dated.read_bytes())
        day, second = dated.parts[-3:-1]
        assert report.started_at.strftime("%Y-%m-%d/%H-%M-%S") == f"{day}/{second}"
        assert report.success

    def test_a_failing_candidate_is_1_and_the_report_says_why(self, kata: Kata):
        kata.append(INIT, "del perimeter")
        assert grade(kata) == 1
        assert "upgrade_failed_on_after" in json.loads(reports_of(kata)[0].read_text())["error"]

    def test_an_empty_folder_is_1(self, kata: Kata, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        empty = tmp_path / "empty"
        empty.mkdir()
        assert grade(kata, "--after", str(empty)) == 1
        assert "FAILED after: no_package:" in capsys.readouterr().out

    def test_a_before_tree_that_breaks_the_run_is_3(self, kata: Kata, capsys: pytest.CaptureFixture[str]):
        kata.append("before/mmdit/__init__.py", "import os\ndef area(_): os._exit(0)")
        assert grade(kata) == 3
        assert "NO VERDICT before: no_report:" in capsys.readouterr().out

    def test_a_before_tree_that_does_not_do_what_is_declared_is_1(self, kata: Kata):
        assert grade(kata, "--before", str(kata.after)) == 1
        assert "before: upgrade_passed_on_before" in json.loads(reports_of(kata)[0].read_text())["error"]

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--after", "/no/such/folder"),
            ("--before", __file__),
            ("--timeout", "0"),
            ("--timeout", "nan"),
            ("--seed", "-1"),
            ("--device", "tpu"),
            ("--require", "elegance"),
            ("--require", "speed", "--regrade", str(ROOT)),
            ("--isolation", "none"),
            ("--no-such-option",),
        ],
        ids=" ".join,
    )
    def test_wrong_usage_is_2(self, kata: Kata, arguments: tuple[str, ...]):
        with pytest.raises(SystemExit) as caught:
            grade(kata, *arguments)
        assert caught.value.code == 2
        assert reports_of(kata) == []

    @pytest.mark.parametrize(
        ("output", "file"), [("here.json", "here.json"), ("there/x", "there/x/report.json")], ids=["file", "folder"]
    )
    def test_output_is_a_json_file_or_a_folder(self, kata: Kata, tmp_path: Path, output: str, file: str):
        assert grade(kata, "--output", str(tmp_path / output)) == 0
        assert [each.name for each in reports_of(kata)] == ["latest.json"]
        assert (tmp_path / file).read_bytes() == reports_of(kata)[0].read_bytes()

    @pytest.mark.parametrize("option", ["--output", "--junit"])
    def test_a_place_that_cannot_be_written_is_3_before_anything_runs(
        self, kata: Kata, capsys: pytest.CaptureFixture[str], option: str
    ):
        (kata.folder / "file").write_text("")
        assert grade(kata, option, str(kata.folder / "file" / "x.json")) == 3
        captured = capsys.readouterr()
        assert "cannot write reports to" in captured.err
        assert "before:" not in captured.out

    def test_a_reports_folder_that_cannot_be_made_is_3(self, kata: Kata, capsys: pytest.CaptureFixture[str]):
        (kata.folder / "reports").write_text("a file is in the way")
        assert grade(kata) == 3
        assert "cannot write reports to" in capsys.readouterr().err

    def test_a_missing_suite_is_3(self, kata: Kata):
        kata.suite.rename(kata.folder / "elsewhere")
        assert grade(kata) == 3

    def test_speed_that_is_required_and_was_not_measured_is_1(self, kata: Kata, capsys: pytest.CaptureFixture[str]):
        assert grade(kata, "--require", "speed") == 1
        assert "FAILED speed_not_measured: --require speed: the judge was not asked" in capsys.readouterr().out
        report = json.loads(reports_of(kata)[0].read_text())
        assert {name: axis["status"] for name, axis in report["verdict"].items()} == {
            "correctness": "pass",
            "deployability": "pass",
            "speed": "not_measured",
            "integrity": "pass",
        }

    def test_junit_is_written_on_demand(self, kata: Kata, tmp_path: Path):
        assert grade(kata, "--junit", str(tmp_path / "junit.xml")) == 0
        assert '<testsuite name="after" tests="5" failures="0"' in (tmp_path / "junit.xml").read_text()

    def test_the_seed_is_that_of_the_command_line_or_a_fresh_one(self, kata: Kata):
        seeds = []
        for arguments in (("--seed", "5"), (), ()):
            grade(kata, *arguments)
            seeds.append(json.loads((kata.folder / "reports" / "latest.json").read_text())["settings"]["seed"])
        assert seeds[0] == 5
        assert seeds[1] != seeds[2]

    def test_an_error_of_the_grader_is_3_and_in_the_report(self, kata: Kata, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("evaluation.suite.pair.run_suite", lambda *_: 1 / 0)
        assert grade(kata) == 3
        report = json.loads(reports_of(kata)[0].read_text())
        assert report["error"] == "grader_error: ZeroDivisionError: division by zero"
        assert report["verdict"]["correctness"]["status"] == "inconclusive"


class TestSuite:
    @pytest.mark.parametrize(
        ("tree", "role", "code"),
        [("before", "before", 0), ("after", "after", 0), ("after", "before", 1), ("before", "after", 1)],
    )
    def test_the_exit_code_says_whether_the_tree_did_what_is_declared(
        self, kata: Kata, tree: str, role: str, code: int
    ):
        assert suite_command.main(["--tree", str(kata.folder / tree), "--role", role], suite=kata.suite) == code

    def test_pytest_is_shown_with_its_closing_line(self, kata: Kata, capfdbinary: pytest.CaptureFixture[bytes]):
        suite_command.main(["--tree", str(kata.before), "--role", "before"], suite=kata.suite)
        out = capfdbinary.readouterr().out
        assert b"6 failed, 4 passed, 1 deselected, 2 errors" in out  # 4, 2 and 2 of them canaries
        assert b"is the grader's own, and must fail)" in out
        assert out.strip().endswith(b"OK: on before the contract tests pass and the upgrade tests fail")

    def test_a_broken_tree_is_1_and_named(self, kata: Kata, capsys: pytest.CaptureFixture[str]):
        kata.append(INIT, "1 / 0")
        assert suite_command.main(["--tree", str(kata.after), "--role", "after"], suite=kata.suite) == 1
        assert "after: import_error" in capsys.readouterr().out

    def test_a_missing_tree_is_2(self):
        with pytest.raises(SystemExit) as caught:
            suite_command.main(["--tree", "/no/such/folder", "--role", "after"])
        assert caught.value.code == 2


@pytest.mark.parametrize("command", [["evaluation/evaluate.py"], ["-m", "evaluation.evaluate"]], ids=" ".join)
def test_both_spellings_of_the_command_run(command: list[str]):
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "exit code:" in done.stdout


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_signal_leaves_no_process_and_no_report(kata: Kata, signum: int, code: int):
    pid_file = kata.folder / "pids"
    kata.append(INIT, HANGING_AREA.format(pid_file=str(pid_file)))
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(kata.folder)], cwd=ROOT, text=True, stderr=subprocess.PIPE
    )
    wait_for(lambda: pid_file.exists() and len(pid_file.read_text().split()) == 2)
    process.send_signal(signum)
    _, error = process.communicate(timeout=45)
    assert process.returncode == code
    assert "stopped by" in error
    assert not any(Path(f"/proc/{pid}").exists() for pid in pid_file.read_text().split())
    assert reports_of(kata) == []


COMMAND = """
import sys
from pathlib import Path
from evaluation.evaluate import main
folder = Path(sys.argv[1])
trees = ["--before", str(folder / "before"), "--after", str(folder / "after")]
sys.exit(main(trees, suite=folder / "suite", reports=folder / "reports"))
"""

HANGING_AREA = """
import os, signal, time
def area(_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    detached = os.fork() == 0
    if detached:
        os.setsid()
    with open({pid_file!r}, "a") as file:
        file.write(str(os.getpid()) + " ")
    time.sleep(60)
"""
