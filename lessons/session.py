"""Running a lesson's cells one after another in a process of their own, with side branches for other answers."""

import contextlib
import io
import linecache
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, NamedTuple

import lessons.kit  # noqa: F401  # before triton
from lessons.lesson import Cell

TIMEOUT_S = 120
END = b"\xff"


class Branch(NamedTuple):
    """Cells to run, in a copy of the process, in the place of those from a cell on."""

    name: str
    cells: Sequence[Cell]


class Outcome(NamedTuple):
    """What a cell did: message is what it raised, error that with the last of its traceback; None where it ran to its
    end.
    """

    branch: str | None
    cell: Cell
    message: str | None
    error: str | None
    output: str


def play(
    cells: Sequence[Cell], branches: Mapping[int, Sequence[Branch]] | None = None, timeout_s: int = TIMEOUT_S
) -> Iterator[Outcome]:
    """Run the code cells in order in a fresh process, each whatever those before it did, and tell what each did.

    Args:
        branches: for the place of a cell in `cells`, what to run instead of it and all after it; before it, each in a
            fork, so that what came before is not run again.
        timeout_s: for one cell; a process that takes longer, or dies, fails the cell that it was in, and ends.
    """
    folder = tempfile.TemporaryDirectory(prefix="lesson-")  # for what cells leave behind, also those that are killed
    context = get_context("forkserver")
    context.set_forkserver_preload(["lessons.session"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, folder.name, list(cells), dict(branches or {}), timeout_s))
    process.start()
    sender.close()
    try:
        with contextlib.suppress(EOFError):
            while True:
                yield receiver.recv()
    finally:
        process.join()
        receiver.close()
        folder.cleanup()


def work(
    sender: Connection, folder: str, cells: list[Cell], branches: dict[int, Sequence[Branch]], timeout_s: int
) -> None:
    """The process of `play`: one for the cells in order, and one after another a copy of it for each branch."""
    tempfile.tempdir = folder
    module = ModuleType("lesson_cells")
    sys.modules[module.__name__] = module
    guarded(sender, None, cells, module, timeout_s, branches)


def guarded(
    sender: Connection,
    name: str | None,
    cells: Sequence[Cell],
    module: ModuleType,
    timeout_s: int,
    branches: Mapping[int, Sequence[Branch]],
) -> None:
    """run_cells in a fork, so that one that dies is told from one that ends."""
    reading, writing = os.pipe()  # one byte for each cell that begins or ends: its place; and END
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        for place, outcome in run_cells(name, cells, module, timeout_s, branches, sender):
            os.write(writing, bytes([place]))
            if outcome:
                sender.send(outcome)
        os.write(writing, END)
        os._exit(0)
    os.close(writing)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(reading, "rb") as places:
        reached = places.read()
    if not reached.endswith(END):
        died = f"took more than {timeout_s} s" if status == -signal.SIGALRM else f"ended with status {status}"
        message = f"the process {died}"
        sender.send(Outcome(name, cells[reached[-1] if reached else 0], message, message, ""))


def run_cells(
    name: str | None,
    cells: Sequence[Cell],
    module: ModuleType,
    timeout_s: int,
    branches: Mapping[int, Sequence[Branch]],
    sender: Connection,
) -> Iterator[tuple[int, Outcome | None]]:
    """The place of each code cell when it begins, and again with its outcome. Names that a cell which is no solution
    gave are given back after each solution, whose answer may not replace what tests it.
    """
    given: dict[str, Any] = {}
    for place, cell in enumerate(cells):
        for branch in branches.get(place, ()):
            guarded(sender, branch.name, branch.cells, module, timeout_s, {})
        if cell.kind != "code":
            continue
        yield place, None
        before = dict(module.__dict__)
        signal.alarm(timeout_s)
        outcome = run_cell(name, cell, module)
        signal.alarm(0)
        if cell.is_solution:
            module.__dict__.update(given)
        else:
            given |= {key: value for key, value in module.__dict__.items() if before.get(key, module) is not value}
        yield place, outcome


def run_cell(name: str | None, cell: Cell, module: ModuleType) -> Outcome:
    file = f"lesson, cell at line {cell.line}{f' ({name})' if name else ''}"
    linecache.cache[file] = (len(cell.source), None, cell.source.splitlines(keepends=True), file)
    output = io.StringIO()
    message = error = None
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            exec(compile(cell.source, file, "exec"), module.__dict__)
        except (Exception, SystemExit) as raised:
            message, error = f"{type(raised).__name__}: {raised}", traceback.format_exc(limit=-3)
    return Outcome(name, cell, message, error, output.getvalue())
