"""What the launcher of processes that share a suite makes of how they end."""

import json
import signal
import subprocess
import sys

import pytest

from evaluation.suite.command import ROOT

# As the first process of a container, it gets what its children leave behind.
AS_FIRST = "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1); os.execv(sys.executable, sys.argv[1:])"
ORPHAN = "import os, time\nif os.fork() == 0:\n    if os.fork() == 0: time.sleep(0.1)\n    os._exit(0)\n"


def launched(*codes: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "evaluation" / "worker" / "side_by_side.py"
    command = [sys.executable, "-c", AS_FIRST, sys.executable, "-E", "-s", "-S", script]
    each = json.dumps([["-S", "-c", code] for code in codes])
    return subprocess.run([*command, each], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(("ends", "code"), [((1, 1), 1), ((1, 0), 0), ((5, 0), 5), ((1, 3), 3)], ids=str)
def test_it_ends_as_the_first_that_does_not_end_as_usual(ends: tuple[int, int], code: int):
    done = launched(*(f"print('line'); raise SystemExit({each})" for each in ends))
    assert (done.returncode, done.stdout, done.stderr) == (code, "line\n" * 2, "")


def test_an_end_while_others_start_is_not_lost():
    assert launched("raise SystemExit(5)", *["raise SystemExit(1)"] * 60).returncode == 5


def test_a_signal_ends_all():
    killed = "import os; os.kill(os.getpid(), 9)"
    assert launched("import time; time.sleep(60)", killed).returncode == -signal.SIGKILL


def test_an_orphan_is_nobodys_end():
    done = launched(ORPHAN + "import time; time.sleep(0.5); raise SystemExit(1)")
    assert (done.returncode, done.stderr) == (1, "")
