"""Runs Python several times at once: `side_by_side.py ARGUMENTS`, as JSON a list of arguments for each.

What they print comes by whole lines. As soon as a signal ends one of them, this ends by the same; else it ends when all
have ended, with the first exit status, in their order, that is not the usual 1: pytest's, where canaries fail.
"""

import json
import os
import subprocess
import sys
import threading
from typing import BinaryIO, NoReturn

from supervise import end_by

USUAL = 1
LINE_BYTES = 1 << 16  # a longer line comes in pieces
LAST_SECONDS = 5.0  # for what is still in a pipe, which a process left behind may hold open


def main() -> NoReturn:
    runs, readers, statuses = [], {}, {}
    for arguments in json.loads(sys.argv[1]):
        run = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        runs.append(run)  # a Popen that is let go reaps its process, and so its status
        readers[run.pid] = threading.Thread(target=pass_on, args=(run.stdout,), daemon=True)
        readers[run.pid].start()
    while len(statuses) < len(readers):
        pid, status = os.wait()
        if pid not in readers:
            continue  # left behind by one of them, where this is the first process of a container
        readers[pid].join(LAST_SECONDS)
        if os.WIFSIGNALED(status):
            end_by(os.WTERMSIG(status))
        statuses[pid] = os.WEXITSTATUS(status)
    os._exit(next((statuses[pid] for pid in readers if statuses[pid] != USUAL), USUAL))


def pass_on(source: BinaryIO) -> None:
    for line in iter(lambda: source.readline(LINE_BYTES), b""):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
