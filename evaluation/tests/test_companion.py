"""A worker that is kept alive: asked, answered, frozen, and every way in which it can misbehave."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evaluation.suite.command import ROOT
from evaluation.suite.companion import Companion, Stopped, companion
from evaluation.suite.limits import Limits
from evaluation.suite.result import FailureKind
from evaluation.tests.conftest import wait_for

WORKER = """
import json, os, signal, sys, time
channel = os.fdopen(int(sys.argv[-1]), "r+b", buffering=0)
def say(**told):
    channel.write(json.dumps(told).encode() + b"\\n")
while question := channel.readline():
    asked = json.loads(question)
    do, token = asked["do"], asked["token"]
    {code}
    say(token=token, do=do)
"""


@contextmanager
def working(folder: Path, code: str = "pass", timeout: float = 30) -> Iterator[Companion]:
    (folder / "worker.py").write_text(WORKER.replace("{code}", code))
    command = [sys.executable, "-S", str(folder / "worker.py")]
    with companion(command, cwd=folder, env={"TMPDIR": str(folder)}, role="after", timeout=timeout) as found:
        yield found


def test_a_question_is_answered_and_timed(tmp_path: Path):
    with working(tmp_path, "time.sleep(0.05)") as worker:
        answer = worker.ask("go", more=1)
        assert answer.told == {"do": "go"}
        assert 0.05 <= answer.seconds < 5
        worker.check_silence()
    assert worker.process.poll() is not None


MISBEHAVES = {
    "hangs": ("time.sleep(60)", FailureKind.WORKER_TIMEOUT, "did not answer to go in time"),
    "dies": ("os.kill(os.getpid(), 11)", FailureKind.WORKER_CRASHED, "ended by signal 11"),
    "exits": ("print('bye'); sys.exit(0)", FailureKind.WORKER_NO_RESULT, "exit code 0 at go; it said last: bye"),
    "hangs up": ("os.close(channel.fileno()); time.sleep(60)", FailureKind.WORKER_TIMEOUT, "did not answer"),
    "says no JSON": ("channel.write(b'hello\\n')", FailureKind.SPEED_FORGED, "that is none: hello"),
    "answers another": ("token = '0'", FailureKind.SPEED_FORGED, "that is none"),
    "says no object": ("channel.write(b'[]\\n')", FailureKind.SPEED_FORGED, "that is none"),
    "talks on and on": ("channel.write(b'x' * (1 << 21))", FailureKind.SPEED_FORGED, "longer than any is"),
    "floods": ("while True: print('x' * (1 << 20))", FailureKind.WORKER_LIMIT_BROKEN, "printed more than"),
}


@pytest.mark.parametrize(("code", "kind", "message"), MISBEHAVES.values(), ids=MISBEHAVES)
def test_misbehaviour_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, kind: FailureKind, message: str
):
    monkeypatch.setattr("evaluation.suite.companion.Limits", lambda: Limits(output_bytes=1 << 22))
    timeout = 1 if kind is FailureKind.WORKER_TIMEOUT else 30
    with working(tmp_path, code, timeout) as worker, pytest.raises(Stopped) as stopped:
        worker.ask("go")
    assert (stopped.value.failure.kind, stopped.value.failure.tree) == (kind, "after")
    assert message in stopped.value.failure.message


def test_an_answer_that_nobody_asked_for_is_a_forgery(tmp_path: Path):
    with working(tmp_path, "say(token=token, do='first')") as worker:
        worker.ask("go")
        with pytest.raises(Stopped, match="was not asked for"):
            wait_for(worker.check_silence)


GUESSED = "0" * 16
# It answers each question, and in the same breath the next one, which it has not seen.
AHEAD = f"say(token=token, do=do); token = {GUESSED!r}; do = 'go, as it were'"


class TestDefencesSwitchedOff:
    """What each is for gets through without it."""

    def test_without_a_token_an_answer_passes_of_one_who_has_not_read_the_question(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        blind = f"token = {GUESSED!r}"
        with working(tmp_path, blind) as worker, pytest.raises(Stopped, match="that is none"):
            worker.ask("go")
        monkeypatch.setattr("evaluation.suite.companion.secrets.token_hex", lambda _: GUESSED)
        with working(tmp_path, blind) as worker:
            assert worker.ask("go").told == {"do": "go"}

    def test_without_the_look_for_what_nobody_asked_a_line_too_many_passes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        with working(tmp_path, AHEAD) as worker:
            worker.ask("load")
            with pytest.raises(Stopped, match="was not asked for"):
                wait_for(worker.check_silence)
        monkeypatch.setattr(Companion, "check_silence", lambda _: None)
        with working(tmp_path, AHEAD) as worker:
            worker.ask("load")
            worker.check_silence()

    def test_without_both_an_answer_comes_before_its_question(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Companion, "check_silence", lambda _: None)
        with working(tmp_path, AHEAD) as worker:
            worker.ask("load")
            with pytest.raises(Stopped, match="that is none"):
                worker.ask("go")
        monkeypatch.setattr("evaluation.suite.companion.secrets.token_hex", lambda _: GUESSED)
        with working(tmp_path, AHEAD) as worker:
            worker.ask("load")
            assert worker.ask("go").told == {"do": "go, as it were"}

    def test_without_the_freeze_a_worker_that_has_no_turn_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(Companion, "freeze", lambda _: None)
        ticks = tmp_path / "ticks"
        with working(tmp_path, SPINS.strip()) as worker:
            worker.ask("go")
            wait_for(lambda: ticks.exists() and ticks.stat().st_size > 0)
            worker.freeze()
            size = ticks.stat().st_size
            wait_for(lambda: ticks.stat().st_size > size)


SPINS = """
    if os.fork() == 0:
        os.setsid()
        while True:
            with open("ticks", "a") as file:
                file.write(".")
"""


def test_a_frozen_worker_and_all_that_it_started_stand_still(tmp_path: Path):
    ticks = tmp_path / "ticks"
    with working(tmp_path, SPINS.strip()) as worker:
        worker.ask("go")
        wait_for(lambda: ticks.exists() and ticks.stat().st_size > 0)
        worker.freeze()
        size = ticks.stat().st_size
        for _ in range(5):
            states = {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in worker.processes()}
            assert states == {"T"}
        assert ticks.stat().st_size == size
        worker.thaw()
        wait_for(lambda: ticks.stat().st_size > size)


JUDGE = """
import os, signal, sys
from pathlib import Path
from evaluation.tests.test_companion import working
folder = Path(sys.argv[1])
with working(folder) as worker:
    worker.ask("go")
    worker.freeze()
    (folder / "pids").write_text(" ".join(map(str, worker.processes())))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_frozen_worker_dies_with_its_judge(tmp_path: Path):
    subprocess.run([sys.executable, "-c", JUDGE, str(tmp_path)], cwd=ROOT, check=False)
    pids = (tmp_path / "pids").read_text().split()
    assert pids
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
