"""Stands between the grader and one command: `supervise.py PARENT LIMITS -- COMMAND...`, LIMITS as JSON by rlimit name.

The command gets the limits and a session of its own. When it ends, or the grader dies however suddenly, all that
descends from it is killed. The exit status is the command's own.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from typing import NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> NoReturn:
    parent, limits, separator, *command = sys.argv[1:]
    assert separator == "--", sys.argv
    signal.signal(signal.SIGTERM, lambda *_: kill_descendants_and_end())
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with contextlib.suppress(OSError):  # thousands of processes must not keep us from ending them
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    if os.getppid() != int(parent):  # it was gone before we asked to be told
        sys.exit(1)
    child = os.fork()
    if child == 0:
        become(command, json.loads(limits))
    status = wait_for(child)
    kill_descendants()
    if os.WIFSIGNALED(status):
        end_by(os.WTERMSIG(status))
    sys.exit(os.WEXITSTATUS(status))


def become(command: list[str], limits: dict[str, int]) -> NoReturn:
    """The command itself, in a session of its own, which the kernel kills first when memory runs out."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    for name, value in ({"RLIMIT_CORE": 0} | limits).items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    os.execvp(command[0], command)


def wait_for(child: int) -> int:
    """The status of `child`; orphans that end meanwhile are reaped."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return status


def kill_descendants() -> None:
    """Kill and reap until none is left; by groups first, which is one step for all of a group's members."""
    while found := descendants():
        for group in set(found.values()) - {os.getpgrp()}:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def descendants() -> dict[int, int]:
    """The process group of every process that descends from this one and is not a zombie."""
    parents, groups = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent, group = file.read().rpartition(b")")[2].split()[:3]
            except OSError:  # it ended meanwhile
                continue
            if state != b"Z":
                parents[int(name)], groups[int(name)] = int(parent), int(group)
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: groups[pid] for pid in found - {os.getpid()}}


def kill_descendants_and_end() -> NoReturn:
    kill_descendants()
    os._exit(128 + signal.SIGTERM)


def end_by(number: int) -> NoReturn:
    """End as the command did."""
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), number)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
