"""run_bounded: time limit, bounded log, and nothing left alive."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

from evaluation.suite.process import TAIL_BYTES, Finished, run_bounded

DETACHED = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], "w").write(str(os.getpid()))
        time.sleep(60)
    os._exit(0)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
"""


def run_python(code: str, *arguments: str, timeout: float = 30, stdin: bytes = b"") -> Finished:
    command = [sys.executable, "-c", code, *arguments]
    return run_bounded(command, cwd=Path.cwd(), env={}, timeout=timeout, stdin=stdin)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_the_return_code_and_both_outputs_are_kept():
    done = run_python("import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(7)")
    assert (done.return_code, done.tail) == (7, "out\nerr\n")


def test_death_by_signal_is_a_negative_return_code():
    assert run_python("import os; os.kill(os.getpid(), 9)").return_code == -signal.SIGKILL


def test_the_time_limit_ends_a_process_that_ignores_signals_and_closed_its_output():
    code = "import os, signal, time; signal.signal(15, signal.SIG_IGN); os.close(1); os.close(2); time.sleep(60)"
    done = run_python(code, timeout=1)
    assert done.return_code is None
    assert 1 <= done.seconds < 30


@pytest.mark.parametrize("ending", ["", "time.sleep(60)"], ids=["at-exit", "at-time-limit"])
def test_a_grandchild_in_a_session_of_its_own_is_killed(tmp_path: Path, ending: str):
    pid_file = tmp_path / "pid"
    run_python(DETACHED + ending, str(pid_file), timeout=6)
    assert not is_alive(int(pid_file.read_text()))


def test_a_bystander_child_is_left_alone():
    bystander = os.spawnv(os.P_NOWAIT, "/bin/sleep", ["sleep", "60"])
    run_python("")
    assert is_alive(bystander)
    os.kill(bystander, signal.SIGKILL)
    os.waitpid(bystander, 0)


def test_stdin_ends_after_the_given_bytes():
    assert run_python("import sys; print(sys.stdin.read())", stdin=b"nonce").tail == "nonce\n"
    assert run_python("import sys; print(repr(sys.stdin.read()))").tail == "''\n"


def test_a_flood_of_output_keeps_only_its_end():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = run_python("import os\nfor _ in range(200): os.write(1, b'x' * (1 << 20))\nprint('the end')")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert done.tail.endswith("xthe end\n")
    assert len(done.tail) == TAIL_BYTES
    assert grown < 32 * 1024  # KiB


def test_output_that_is_not_text_is_kept_readable():
    assert run_python("import os; os.write(1, b'\\xff!')").tail == "�!"


def test_the_output_handler_is_called_while_the_process_is_silent():
    chunks: list[bytes] = []
    command = [sys.executable, "-c", "import time; time.sleep(1); print('x')"]
    started = time.monotonic()
    run_bounded(command, cwd=Path.cwd(), env={}, timeout=30, on_output=chunks.append)
    assert time.monotonic() - started < 25
    assert chunks.count(b"") > 3


def test_the_output_handler_sees_what_was_written_just_before_the_end(monkeypatch: pytest.MonkeyPatch):
    """As where the machine is too busy to read it before the process is gone."""
    monkeypatch.setattr("evaluation.suite.process._follow", lambda process, *_: bytes(process.wait()))
    chunks: list[bytes] = []
    command = [sys.executable, "-c", "print('the end')"]
    done = run_bounded(command, cwd=Path.cwd(), env={}, timeout=30, on_output=chunks.append)
    assert (b"".join(chunks), done.tail) == (b"the end\n", "the end\n")
