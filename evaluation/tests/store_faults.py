"""Kill writers of a store at random moments, and corrupt random bytes of its files, and say whether it bore it.

A run whose writer was told that it is finished must be there, every value of it; any other run may be whole only if it
has every value too. A changed byte must be noticed, unless it is one between the words of run.json. Afterwards an index
made anew from the files equals the one that was kept all along.

Writers are processes, two at a time: every second pair writes one run together.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.progress import track

from evaluation.store.errors import StoreError
from evaluation.store.files import ARTIFACTS, INDEX, METRICS, QUARANTINE, RUN, SUMMARY
from evaluation.store.metrics import read_metrics
from evaluation.store.store import Store
from evaluation.store.verify import examine
from evaluation.tests.stored_runs import HERE

STEPS = 40
ARTIFACT = "what was found " * 20


def write_run(store: Store, id: str, told: int) -> None:
    """A run, from its creation to its end; a byte to `told` once it is finished."""
    run = store.create("bench", HERE, id=id)
    for step in range(STEPS):
        run.log(step, {"loss": step / 7, "rate": step})
    run.add_artifact(ARTIFACT, "other", "found.txt")
    run.finish("success")
    os.write(told, b"f")


def write_together(store: Store, id: str, _told: int) -> None:
    """Join the run when it is there, and write beside its first writer for as long as that one does."""
    try:
        run = store.join(id)
        for step in range(STEPS):
            run.log(step, {"beside": step})
    except StoreError:
        pass  # it had not begun, or has ended


def kill_writers(store: Store, kills: int, chance: random.Random) -> list[str]:
    """Kill each writer somewhere between its start and a little after its end. Gives what went wrong."""
    finished: set[str] = set()
    usual = _seconds(store)
    for number in track(range(0, kills, 2), description="killing writers", disable=not sys.stderr.isatty()):
        first, second = f"run-{number}", f"run-{number + 1}"
        jobs = [(first, write_run), (second, write_run) if number % 4 else (first, write_together)]
        start = time.monotonic()
        writers = [(chance.uniform(0, 1.6 * usual), id, *forked(partial(do, store, id))) for id, do in jobs]
        for moment, id, process, heard in sorted(writers):
            time.sleep(max(0.0, start + moment - time.monotonic()))
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            if os.read(heard, 1):
                finished.add(id)
            os.close(heard)
        if number % 64 == 0:
            store.index().close()  # which moves what is partial out of the way while others write
    return _wrong_after_kills(store, finished)


def _wrong_after_kills(store: Store, finished: set[str]) -> list[str]:
    index = store.index()
    states = dict(index.rows("SELECT id, state FROM runs"))
    problems = [f"{id} was finished, and is {states.get(id)}" for id in finished if states.get(id) != "whole"]
    expected = [(step, step / 7, step) for step in range(STEPS)]
    for id, state in states.items():
        lines = list(read_metrics(store.folder(id) / METRICS))
        own = [(x.step, x.values["loss"], x.values["rate"]) for x in lines if "loss" in x.values]
        beside = [x.values["beside"] for x in lines if "beside" in x.values]
        if own != expected[: len(own)] or beside != list(range(len(beside))):
            problems.append(f"{id} lost lines that were written")
        if state == "whole" and len(own) != STEPS:
            problems.append(f"{id} is shown as whole with {len(own)} of {STEPS} steps")
        if state not in ("whole", "partial") or (state == "partial") != (store.folder(id).parent.name == QUARANTINE):
            problems.append(f"{id} is {state} in {store.folder(id).parent.name}")
    killed = {state for id, state in states.items() if id.startswith("run-")}
    if not {"whole", "partial"} <= killed:
        problems.append(f"no writer was killed early, or none late: {killed}")
    kept = index.dump()
    index.close()
    if store.reindex().dump() != kept:
        problems.append("the index made anew is not the one that was kept")
    return problems


def corrupt_bytes(store: Store, count: int, chance: random.Random) -> list[str]:
    """Change random bytes of whole runs, one at a time, and put each back. Gives what went unnoticed."""
    index = store.index()
    kept = index.dump()
    ids = [id for (id,) in index.rows("SELECT id FROM runs WHERE state = 'whole' ORDER BY id")]
    index.close()
    problems = []
    for number in track(range(count), description="corrupting bytes", disable=not sys.stderr.isatty()):
        folder = store.folder(chance.choice(ids))
        before = examine(folder)
        sealed = (RUN, METRICS, SUMMARY, f"{ARTIFACTS}/found.txt")
        file = store.root / INDEX if number % 10 == 0 else folder / chance.choice(sealed)
        whole = file.read_bytes()
        place, bits = chance.randrange(len(whole)), chance.randrange(1, 256)
        mode = file.stat().st_mode
        file.chmod(0o644)
        file.write_bytes(whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :])
        if file.name == INDEX:
            if store.reindex().dump() != kept:
                problems.append(f"the index made anew after byte {place} of it changed is another")
            continue
        after = examine(folder)
        if after.state != "damaged" and (file.name != RUN or after != before):
            problems.append(f"byte {place} of {file} changed what the run says, and it is {after.state}")
        if after.state == "damaged" and not after.reason:
            problems.append(f"byte {place} of {file} changed, and nothing says what is wrong")
        file.write_bytes(whole)
        file.chmod(mode)
    if store.reindex().dump() != kept:
        problems.append("the index made anew is not the one that was kept")
    return problems


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """The process that does the work, and where to hear what it tells."""
    heard, told = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            work(told)
        except BaseException as error:
            os.write(2, f"a writer failed: {error!r}\n".encode())
        finally:
            os._exit(0)
    os.close(told)
    return process, heard


def _seconds(store: Store) -> float:
    """How long a process that writes a run takes, once this one has imported all that it needs."""
    heard, told = os.pipe()
    write_run(store, "first", told)
    os.close(heard)
    os.close(told)
    start = time.monotonic()
    process, heard = forked(partial(write_run, store, "usual"))
    os.waitpid(process, 0)
    os.close(heard)
    return time.monotonic() - start


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.tests.store_faults", description=__doc__)
    for name in ("kills", "bytes"):
        parser.add_argument(f"--{name}", type=int, default=1000, metavar="N", help="how many (default: %(default)d)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments and places")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        store, chance = Store(Path(folder, "runs")), random.Random(options.seed)
        problems = kill_writers(store, options.kills, chance)
        states = store.index().rows("SELECT state, count(*) FROM runs GROUP BY state")
        problems += corrupt_bytes(store, options.bytes, chance)
    print(f"{options.kills} kills left {dict(states)}; {options.bytes} bytes changed; {len(problems)} problems")
    print("".join(f"  {problem}\n" for problem in problems), end="")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
