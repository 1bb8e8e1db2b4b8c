"""Whether a run's writer lives. Each holds a lock on the run that ends with its process, however that ends.

The locks are Linux's of open file descriptions: they can be asked for without being taken, so that no reader is seen as
a writer.
"""

import fcntl
import os
import struct
from pathlib import Path

from evaluation.store.files import WRITERS

_FLOCK = struct.Struct("hhqqi")  # struct flock: type, whence, start, length, pid; of the whole file below


def hold(folder: Path) -> int:
    """The descriptor that holds the lock, shared with other writers, until it is closed."""
    descriptor = os.open(folder / WRITERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
    return descriptor


def is_held(folder: Path) -> bool:
    """Whether a writer of the run lives; one without a lock file has none."""
    try:
        descriptor = os.open(folder / WRITERS, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted))[0] != fcntl.F_UNLCK
    finally:
        os.close(descriptor)
