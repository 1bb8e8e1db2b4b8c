"""A worker that is kept alive and asked one thing at a time, by lines over a socket, or frozen. Linux only."""

import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.suite.limits import Limits, Watch, descendants
from evaluation.suite.probe import signal_name
from evaluation.suite.process import supervised
from evaluation.suite.result import Failure, FailureKind, Role, short_line

_POLL_SECONDS = 0.1
_LINE_BYTES = 1 << 20
_TAIL_BYTES = 4096
_FREEZE_SECONDS = 10.0
_FREEZE_POLL_SECONDS = 1e-3


class Answer(NamedTuple):
    """What a worker told, and the seconds by our own clock from the question to it."""

    told: dict[str, Any]
    seconds: float


class Stopped(Exception):
    """A worker died, hung, broke a limit, or said what it must not: `failure` names it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Companion:
    """One worker, of the tree `role`. Every question may raise Stopped."""

    def __init__(
        self, process: subprocess.Popen[bytes], watch: Watch, channel: socket.socket, role: Role, seconds: float
    ) -> None:
        self.process, self.watch, self.channel, self.role, self.left = process, watch, channel, role, seconds
        self.unread, self.tail = b"", b""
        self.selector = selectors.DefaultSelector()
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self.selector.register(process.stdout, selectors.EVENT_READ)
        self.selector.register(channel, selectors.EVENT_READ)

    def ask(self, do: str, **values: object) -> Answer:
        """Ask, and wait for the answer. Raises Stopped with SPEED_FORGED where a line is there that answers nothing."""
        self.check_silence()
        token = secrets.token_hex(8)
        question = json.dumps({"do": do, "token": token} | values).encode() + b"\n"
        self.channel.settimeout(max(0.1, self.left))
        start = time.perf_counter()
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: reading tells
            self.channel.sendall(question)
        self.channel.setblocking(False)
        while b"\n" not in self.unread:
            self._look(do, start + self.left)
        seconds = time.perf_counter() - start
        self.left -= seconds
        line, _, self.unread = self.unread.partition(b"\n")
        if self.watch(0):
            raise self.stopped(FailureKind.WORKER_LIMIT_BROKEN, f"the timed worker {self.watch.broken}")
        try:
            told = json.loads(line)
        except ValueError:
            told = None
        if not isinstance(told, dict) or told.pop("token", None) != token:
            raise self.stopped(
                FailureKind.SPEED_FORGED,
                f"an answer came to {do} that is none: {short_line(line.decode(errors='replace'))}",
            )
        return Answer(told, seconds)

    def check_silence(self) -> None:
        """Raises Stopped with SPEED_FORGED where the worker has said more than it was asked."""
        self.channel.setblocking(False)
        with suppress(BlockingIOError, ConnectionResetError):
            self.unread += self.channel.recv(_LINE_BYTES)
        if self.unread:
            raise self.stopped(FailureKind.SPEED_FORGED, "an answer came that the timed worker was not asked for")

    def freeze(self) -> None:
        """Stop every process of it, so that it takes nothing from whoever is timed meanwhile."""
        deadline = time.monotonic() + _FREEZE_SECONDS
        while running := {pid for pid in self.processes() if not _stands_still(pid)}:
            if time.monotonic() > deadline:
                raise self.stopped(FailureKind.WORKER_LIMIT_BROKEN, "the timed worker's processes do not stop")
            self._signal(running, signal.SIGSTOP)
            time.sleep(_FREEZE_POLL_SECONDS)

    def thaw(self) -> None:
        self._signal(self.processes(), signal.SIGCONT)

    def processes(self) -> set[int]:
        """The worker, and all that it started and that is left."""
        return set(descendants(self.process.pid))

    def stopped(self, kind: FailureKind, message: str) -> Stopped:
        return Stopped(Failure(kind=kind, tree=self.role, message=message))

    def _signal(self, pids: set[int], signum: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

    def _look(self, do: str, deadline: float) -> None:
        """Read what there is, and see that the worker is still allowed to be silent."""
        ready = self.selector.select(_POLL_SECONDS)
        written = 0
        for key, _ in ready:
            if key.fileobj is self.channel:
                chunk = b""
                with suppress(ConnectionResetError):
                    chunk = self.channel.recv(_LINE_BYTES)
                if not chunk:
                    self._gone(do)
                self.unread += chunk
            else:
                chunk = os.read(key.fd, 1 << 16)
                written += len(chunk)
                self.tail = (self.tail + chunk)[-_TAIL_BYTES:]
                if not chunk:
                    self.selector.unregister(key.fileobj)
        if len(self.unread) > _LINE_BYTES:
            raise self.stopped(FailureKind.SPEED_FORGED, f"the timed worker's answer to {do} is longer than any is")
        if (written or not ready) and self.watch(written):
            raise self.stopped(FailureKind.WORKER_LIMIT_BROKEN, f"the timed worker {self.watch.broken}")
        if not ready and self.process.poll() is not None:
            self._gone(do)
        if time.perf_counter() > deadline:
            raise self.stopped(FailureKind.WORKER_TIMEOUT, f"the timed worker did not answer to {do} in time")

    def _gone(self, do: str) -> None:
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            raise self.stopped(FailureKind.WORKER_NO_RESULT, f"the timed worker hung up at {do}") from None
        if code < 0:
            why = f"the timed worker was ended by {signal_name(code)} at {do}"
            raise self.stopped(FailureKind.WORKER_CRASHED, why)
        with suppress(OSError):
            self.tail += os.read(self.process.stdout.fileno(), 1 << 16)
        said = (self.tail.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
        why = f"the timed worker ended with exit code {code} at {do}; it said last: {said}"
        raise self.stopped(FailureKind.WORKER_NO_RESULT, why)


def _stands_still(pid: int) -> bool:
    """Stopped, or gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"T", b"Z", b"X")
    except OSError:
        return True


@contextmanager
def companion(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], role: Role, timeout: float
) -> Iterator[Companion]:
    """Start `command` with the number of its end of the socket as its last argument. It has `timeout` seconds to answer
    all questions together.
    """
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        supervised(
            [*command, str(theirs.fileno())],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            limits=Limits(),
            pass_fds=(theirs.fileno(),),
        ) as (process, watch),
    ):
        theirs.close()
        assert process.stdout is not None
        with process.stdout:
            yield Companion(process, watch, ours, role, timeout)
