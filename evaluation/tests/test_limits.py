"""What a candidate may take: each limit, at a small scale, ends it at once, names itself, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from evaluation.suite.command import ROOT
from evaluation.suite.limits import Limits, descendants, size_of
from evaluation.suite.probe import describe_machine
from evaluation.suite.process import Finished, run_bounded
from evaluation.suite.result import FailureKind, GraderError
from evaluation.tests.conftest import Kata, wait_for

SMALL = Limits(memory_bytes=1 << 28, processes=20, output_bytes=1 << 24, folder_bytes=1 << 24)

# name: code, which limit, what is told
GREEDY = {
    "memory": ("kept = b'x' * (1 << 29)", {"memory_bytes": 1 << 28}, "took more than 0.25 GiB of memory"),
    "forks": (
        "import os\nfor _ in range(40):\n    if os.fork() == 0: os.setsid(); break",
        {"processes": 20},
        "started more than 20 processes at once",
    ),
    "fork bomb": (
        "import os, time\nwhile True: os.fork(), time.sleep(0.2)",
        {"processes": 20},
        "started more than 20 processes at once",
    ),
    "output": (
        "import os\nwhile True: os.write(1, b'x' * (1 << 16))",
        {"output_bytes": 1 << 24},
        "printed more than 0.0156 GiB",
    ),
    "files": (
        "import os\nfor n in range(100): open(f'{os.environ[\"TMPDIR\"]}/{n}', 'wb').write(b'x' * (1 << 20))",
        {"folder_bytes": 1 << 24},
        "wrote more than 0.0156 GiB of temporary files",
    ),
}


def run(tmp_path: Path, code: str, limits: Limits, timeout: float = 45) -> Finished:
    command = [sys.executable, "-c", f"{code}\nimport time; time.sleep(60)"]
    return run_bounded(command, cwd=tmp_path, env={"TMPDIR": str(tmp_path)}, timeout=timeout, limits=limits)


def test_memory_that_processes_share_counts_once(tmp_path: Path, others: set[int]):
    code = "kept = b'x' * (1 << 27)\nimport os\nfor _ in range(4):\n    if os.fork() == 0: break"
    assert run(tmp_path, code, Limits(memory_bytes=1 << 28), timeout=3).broken is None


@pytest.mark.parametrize(("code", "limit", "told"), GREEDY.values(), ids=GREEDY)
def test_a_limit_ends_a_greedy_process_and_says_so(
    tmp_path: Path, others: set[int], code: str, limit: dict[str, int], told: str
):
    done = run(tmp_path, code, Limits(**limit))
    assert (done.return_code, done.broken) == (None, told)
    assert done.seconds < 30
    assert alive() <= others


@pytest.mark.parametrize("which", ["memory", "forks", "output", "files"])
def test_without_its_limit_a_greedy_process_is_not_noticed(tmp_path: Path, which: str):
    code, limit, _ = GREEDY[which]
    generous = replace(Limits(), **dict.fromkeys(limit, 10_000 if which == "forks" else 1 << 40))
    done = run(tmp_path, code.replace("while True", "for _ in range(1000)"), generous, timeout=4)
    assert (done.return_code, done.broken) == (None, None)


def test_a_full_disk_is_not_the_candidates_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    full = Mock(return_value=Mock(free=1 << 20))
    monkeypatch.setattr("shutil.disk_usage", full)
    with pytest.raises(GraderError, match=r"has 0\.000977 GiB free, and 0\.0625 GiB are needed"):
        run(tmp_path, "", Limits())
    with pytest.raises(GraderError, match="and 1 GiB are needed"):
        describe_machine("cpu")


def test_a_file_beyond_its_limit_cannot_be_written(tmp_path: Path):
    code = "open('big', 'wb').write(b'x' * (1 << 21))"
    done = run_bounded(
        [sys.executable, "-c", code], cwd=tmp_path, env={}, timeout=30, limits=Limits(file_bytes=1 << 20)
    )
    assert "File too large" in done.tail
    assert size_of(tmp_path) <= 1 << 20


def test_the_kernel_is_told_whom_to_kill_first_when_memory_runs_out(tmp_path: Path):
    done = run_bounded(["cat", "/proc/self/oom_score_adj"], cwd=tmp_path, env=dict(os.environ), timeout=30)
    assert done.tail == "1000\n"


def test_a_suite_that_breaks_a_limit_fails_its_tree_by_that_name(kata: Kata, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("evaluation.suite.process.Limits", lambda: SMALL)
    kata.append("after/mmdit/__init__.py", "def area(_):\n    while True: print('x' * 65536)")
    kata.append("suite/pytest.ini", "addopts = -s")
    (failure,) = kata.run_after().failures
    assert (failure.kind, failure.tree) == (FailureKind.LIMIT_BROKEN, "after")
    assert failure.message == "the suite's run printed more than 0.0156 GiB"


GRADER = """
import sys
from pathlib import Path
from evaluation.suite.process import run_bounded
folder = Path(sys.argv[1])
run_bounded([sys.executable, "-c", sys.argv[2]], cwd=folder, env={}, timeout=60)
"""
CANDIDATE = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    os.fork()
open(f"pid{os.getpid()}", "w")
time.sleep(60)
"""


def test_nothing_outlives_a_grader_that_is_killed(tmp_path: Path):
    grader = subprocess.Popen([sys.executable, "-c", GRADER, str(tmp_path), CANDIDATE], cwd=ROOT)
    wait_for(lambda: len(list(tmp_path.glob("pid*"))) == 3)
    started = {int(file.name.removeprefix("pid")) for file in tmp_path.glob("pid*")}
    assert all(is_running(pid) for pid in started)
    grader.send_signal(signal.SIGKILL)
    grader.wait()
    wait_for(lambda: not any(is_running(pid) for pid in started), seconds=30)


@pytest.fixture
def others() -> set[int]:
    """What runs already: other tests leave multiprocessing's resource tracker."""
    return alive()


def alive() -> set[int]:
    return {pid for pid in descendants(os.getpid()) if is_running(pid)}


def is_running(pid: int) -> bool:
    """Whether it is there and no zombie, which only its new parent can reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_command_that_kills_its_supervisor_is_ended_all_the_same(tmp_path: Path, others: set[int]):
    code = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"
    started = time.monotonic()
    assert run(tmp_path, code, Limits()).return_code == -signal.SIGKILL
    assert time.monotonic() - started < 30
    assert alive() <= others
