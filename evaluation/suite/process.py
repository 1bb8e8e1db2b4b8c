"""Runs one command with a time limit, a bounded log, and no process left behind. Linux only."""

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

from evaluation.suite.limits import Limits, Watch
from evaluation.suite.result import GraderError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TAIL_BYTES = 32 * 1024
_POLL_SECONDS = 0.1
_KILL_SECONDS = 30.0
_SUPERVISOR_SECONDS = 5.0
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_SUPERVISOR = Path(__file__).resolve().parents[1] / "worker" / "supervise.py"

OutputHandler = Callable[[bytes], None]


class Interrupted(BaseException):
    """A stop signal arrived. Not an Exception, so that no handler of errors takes it for one."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


@dataclass(frozen=True)
class Finished:
    """How a command ended: `return_code` is negative for a signal, and None when a limit ended it.

    `broken` says which limit, of those that are not of time.
    """

    return_code: int | None
    seconds: float
    tail: str
    broken: str | None = None


@contextmanager
def stop_signals_raise() -> Iterator[None]:
    """Let the first stop signal raise Interrupted; later ones are ignored, so that clean-up ends undisturbed."""

    def stop(signum: int, _frame: FrameType | None) -> NoReturn:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(signum)

    previous = {each: signal.signal(each, stop) for each in STOP_SIGNALS}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def run_bounded(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout: float,
    stdin: bytes = b"",
    on_output: OutputHandler | None = None,
    limits: Limits | None = None,
) -> Finished:
    """Run `command` in a session of its own and leave no process of it alive, however this call, or we, end.

    `limits.folder_bytes` is for what is in `env["TMPDIR"]`, or in `cwd` where there is none.
    stdin holds at most a pipe's worth of bytes and then ends. Of stdout and stderr together the last
    TAIL_BYTES are kept; `on_output` sees every chunk, and an empty one now and then while there is none.
    """
    started, limits = time.monotonic(), limits or Limits()
    with (
        _pipe_holding(stdin) as source,
        supervised(command, cwd=cwd, env=env, stdin=source, limits=limits) as (process, watch),
    ):
        tail = _follow(process, started + timeout, on_output or _ignore, watch)
        return_code = process.poll()
    assert process.stdout is not None
    with process.stdout as pipe:
        rest = _drain(pipe.fileno())
    if on_output and rest:
        on_output(rest)
    tail = (tail + rest)[-TAIL_BYTES:]
    return Finished(return_code, time.monotonic() - started, tail.decode(errors="replace"), watch.broken)


@contextmanager
def supervised(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: BinaryIO | int,
    limits: Limits,
    pass_fds: Sequence[int] = (),
) -> Iterator[tuple[subprocess.Popen[bytes], Watch]]:
    """The supervisor of a running command, whose output it pipes, and the watch over its limits; nothing of the command
    is alive afterwards. One may be started within another.
    """
    _adopt_orphans()
    bystanders = _children()
    process = None
    supervisor = [sys.executable, "-I", "-S", str(_SUPERVISOR), str(os.getpid())]
    try:
        with _urgent():
            process = subprocess.Popen(
                [*supervisor, json.dumps(limits.resource_limits()), "--", *command],
                cwd=cwd,
                env=dict(env),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=pass_fds,
            )
            yield process, Watch(process.pid, Path(env.get("TMPDIR", cwd)), limits)
    finally:
        with _stop_signals_deferred():
            if process is not None and process.poll() is None:
                _end(process)
            _kill_children_except(bystanders)


@contextmanager
def _urgent() -> Iterator[None]:
    """Come before a candidate's thousands of processes, where the machine lets us."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let the supervisor end its descendants; whatever it does not end is ours to end."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_SUPERVISOR_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _follow(process: subprocess.Popen[bytes], deadline: float, on_output: OutputHandler, watch: Watch) -> bytes:
    """Read the output until the process, its time or what it may take ends; return the end of it."""
    assert process.stdout is not None
    tail = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while process.poll() is None and time.monotonic() < deadline:
            if not selector.get_map():  # the output was closed; only the process is left to wait for
                time.sleep(_POLL_SECONDS)
                chunk = b""
            elif not selector.select(_POLL_SECONDS):
                chunk = b""
            elif not (chunk := os.read(process.stdout.fileno(), 1 << 16)):
                selector.unregister(process.stdout)
            tail = (tail + chunk)[-TAIL_BYTES:]
            on_output(chunk)
            if watch(len(chunk)):
                break
    return tail


def _drain(descriptor: int) -> bytes:
    """What is left in a pipe that nobody writes to any more."""
    os.set_blocking(descriptor, False)
    chunks = []
    with suppress(BlockingIOError):
        while chunk := os.read(descriptor, 1 << 16):
            chunks.append(chunk)
    return b"".join(chunks)


def _pipe_holding(data: bytes) -> BinaryIO:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as writer:
        writer.write(data)
    return os.fdopen(read_end, "rb")


@contextmanager
def _stop_signals_deferred() -> Iterator[None]:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, also of those that left the session."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise GraderError(f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}")


def _children() -> set[int]:
    own = os.getpid()
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process ended meanwhile
            fields = stat.read_bytes().rpartition(b")")[2].split()
            if int(fields[1]) == own:
                found.add(int(stat.parent.name))
    return found


def _kill_children_except(bystanders: set[int]) -> None:
    """Kill and reap children, then the orphans that this hands to us, until none is left."""
    deadline = time.monotonic() + _KILL_SECONDS
    while strangers := _children() - bystanders:
        if time.monotonic() > deadline:
            raise GraderError(f"processes {sorted(strangers)} do not end")
        for pid in strangers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in strangers:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _ignore(_chunk: bytes) -> None:
    pass
