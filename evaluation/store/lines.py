"""A file of lines that is only ever appended to: by any number of processes, in whole lines, until it is sealed.

Each append is one write under a lock, so lines of two writers never mix. A writer that was killed while it wrote leaves
a last line without its end; the next append cuts it off. A sealed file is read-only, and every append looks.
"""

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from evaluation.store.errors import StoreError

_BLOCK = 1 << 20
_SEALED, _OPEN = 0o444, 0o644


class Lines:
    """Raises StoreError where it cannot be opened or written, or is sealed."""

    def __init__(self, file: Path) -> None:
        self.file, self._mutex = file, threading.Lock()
        try:
            self._descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _OPEN)
        except OSError as error:
            raise StoreError(f"{file} cannot be opened: {error.strerror}") from error

    def append(self, data: bytes) -> None:
        """`data`: whole lines, each with its end."""
        with self._mutex:
            size = self._lock()
            try:
                written = os.write(self._descriptor, data)
                if written != len(data):
                    os.ftruncate(self._descriptor, size)
                    raise StoreError(f"{self.file}: the disk took {written} of {len(data)} bytes; nothing was kept")
            except OSError as error:
                raise StoreError(f"{self.file} cannot be written: {error.strerror}") from error
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def seal(self) -> None:
        """To disk, and no more lines."""
        with self._mutex:
            self._lock()
            os.fsync(self._descriptor)
            os.fchmod(self._descriptor, _SEALED)
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._descriptor)

    def _lock(self) -> int:
        """Keep every other appender out; gives the file's size. Nothing is locked where this raises."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        info = os.fstat(self._descriptor)
        if info.st_mode & 0o200:
            return self._cut_torn_line(info.st_size)
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        raise StoreError(f"{self.file} is sealed: its run has ended")

    def _cut_torn_line(self, size: int) -> int:
        if size == 0 or os.pread(self._descriptor, 1, size - 1) == b"\n":
            return size
        whole = 0
        for start in range((size - 1) // _BLOCK * _BLOCK, -1, -_BLOCK):
            found = os.pread(self._descriptor, min(_BLOCK, size - start), start).rfind(b"\n")
            if found >= 0:
                whole = start + found + 1
                break
        os.ftruncate(self._descriptor, whole)
        return whole


def unseal(file: Path) -> None:
    """Let a file of a run that is taken up again be written, if it is there."""
    if file.exists():
        file.chmod(_OPEN)


def whole_lines(file: Path) -> Iterator[bytes]:
    """Blocks of whole lines without the last one's end. A torn last line is left out; no file is no lines."""
    if not file.exists():
        return
    rest = b""
    with file.open("rb") as handle:
        while block := handle.read(_BLOCK):
            head, end, tail = (rest + block).rpartition(b"\n")
            if end:
                yield head
            rest = tail
