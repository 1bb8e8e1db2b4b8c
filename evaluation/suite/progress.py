"""Says that a run is alive. What it shows is read off pytest's output and is never used for the verdict."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from evaluation.suite.process import OutputHandler

_PERCENT = re.compile(rb"\[ *(\d+)%\]")
_PLAIN_SECONDS = 15.0


@contextmanager
def progress(console: Console, label: str) -> Iterator[OutputHandler]:
    """A line that keeps itself up to date on a terminal; elsewhere a new line now and then."""
    started = shown = time.monotonic()
    percent = 0
    console.print(f"{label} ...", highlight=False)
    with console.status(label) as status:

        def on_output(chunk: bytes) -> None:
            nonlocal percent, shown
            if found := _PERCENT.findall(chunk):
                percent = int(found[-1])
            now = time.monotonic()
            text = f"{label}: {percent}% after {now - started:.0f} s"
            status.update(text)
            if not console.is_terminal and now - shown >= _PLAIN_SECONDS:
                shown = now
                console.print(text, highlight=False)

        yield on_output
