"""What a candidate's processes may take of the machine, and how that is watched. Linux only."""

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from evaluation.suite.result import GraderError

GIB = 1 << 30
_PAGE = os.sysconf("SC_PAGE_SIZE")
THREADS = 64  # of a process, which RLIMIT_NPROC counts as well
_LOOK_SECONDS = 0.2
_WALK_SECONDS = 2.0
_LEAST_FREE = 1 << 26  # of a disk


@dataclass(frozen=True)
class Limits:
    """Of a command and all that descends from it. Memory is what is resident, what several processes share once."""

    memory_bytes: int = 0  # 0: three quarters of what the machine or the container has
    processes: int = 256
    output_bytes: int = GIB
    folder_bytes: int = 0  # in the scratch folder; 0: three quarters of what its disk has free, at most 4 GiB
    file_bytes: int = 4 * GIB  # one file, anywhere

    def resource_limits(self) -> dict[str, int]:
        """By the kernel's hand. Processes count with all threads of this user, and for root not at all."""
        running = sum(1 for _ in Path("/proc").glob("[0-9]*/task/*"))
        return {"RLIMIT_FSIZE": self.file_bytes, "RLIMIT_NPROC": running + THREADS * self.processes}


class Watch:
    """Looks at a command's processes now and then; `broken` says which limit they broke."""

    def __init__(self, root: int, folder: Path, limits: Limits) -> None:
        self.root, self.folder, self.limits = root, folder, limits
        self.memory = limits.memory_bytes or most_memory()
        self.space = limits.folder_bytes or min(4 * GIB, shutil.disk_usage(folder).free * 3 // 4)
        self.output = 0
        self.broken: str | None = None
        self._look = self._walk = time.monotonic()

    def __call__(self, written: int) -> str | None:
        """Count `written` more bytes of output and look; the name of a broken limit, once there is one.

        Raises GraderError when the disk is full while the scratch folder is within its limit.
        """
        self.output += written
        now = time.monotonic()
        if self.output > self.limits.output_bytes:
            self.broken = f"printed more than {_told(self.limits.output_bytes)}"
        elif now >= self._look:
            self._look = now + _LOOK_SECONDS
            self.broken = self._processes()
            if self.broken is None and now >= self._walk:
                self.broken = self._files()
                self._walk = time.monotonic() + _WALK_SECONDS
        return self.broken

    def _processes(self) -> str | None:
        found = descendants(self.root)
        if len(found) > self.limits.processes:
            return f"started more than {self.limits.processes} processes at once"
        if sum(found.values()) > self.memory and sum(map(_proportional, found, found.values())) > self.memory:
            return f"took more than {_told(self.memory)} of memory"
        return None

    def _files(self) -> str | None:
        if size_of(self.folder) > self.space:
            return f"wrote more than {_told(self.space)} of temporary files"
        check_space(self.folder, _LEAST_FREE)
        return None


def check_space(folder: Path, least: int) -> None:
    """Raises GraderError when the disk of `folder` has less than `least` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < least:
        raise GraderError(f"the disk of {folder} has {_told(free)} free, and {_told(least)} are needed")


def descendants(root: int) -> dict[int, int]:
    """Resident bytes of every process that descends from `root`, itself left out."""
    parents, sizes = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, IndexError):  # the process ended meanwhile
                fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
                parents[int(name)], sizes[int(name)] = int(fields[1]), int(fields[21]) * _PAGE
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: sizes[pid] for pid in found - {root}}


def _proportional(pid: int, resident: int) -> int:
    """Resident bytes of a process by its share of each page, as a compiler's workers have most in common; all of them
    where the kernel does not tell.
    """
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return resident if Path(f"/proc/{pid}").exists() else 0


def size_of(folder: Path) -> int:
    """Bytes that the files below `folder` take on the disk."""
    total, folders = 0, [str(folder)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


def most_memory() -> int:
    """Three quarters of what the machine or the container has, in bytes."""
    total = os.sysconf("SC_PHYS_PAGES") * _PAGE
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max": no limit
            total = min(total, int(Path(file).read_text(encoding="ascii")))
    return total * 3 // 4


def _told(size: int) -> str:
    return f"{size / GIB:.3g} GiB"
