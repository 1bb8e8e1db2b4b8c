"""Run lessons top to bottom, as scripts or as notebooks, each in a process of its own."""

import argparse
import os
import subprocess
import sys
import time

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from lessons.lesson import ROOT, Lesson, find_lessons

EPILOG = """examples:
  python -m lessons.run            all lessons, in order
  python -m lessons.run 03         lesson 03, with all that it prints
  python -m lessons.run --notebook as notebooks, through nbclient
"""
TIMEOUT_S = 600  # for a cell
TAIL = 4000


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def run_script(lesson: Lesson, show: bool) -> str | None:
    """Run the lesson's file; what it said last where it failed, else None."""
    output = None if show else subprocess.PIPE
    command = [sys.executable, str(lesson.path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT, text=True)
    return None if done.returncode == 0 else (done.stdout or f"exit status {done.returncode}")[-TAIL:]


def run_notebook(lesson: Lesson) -> str | None:
    """Run the lesson's notebook in a kernel; what its failing cell said, else None. Its outputs stay in it."""
    by_files = Config({"KernelManager": {"transport": "ipc"}})  # no port is opened
    client = NotebookClient(lesson.notebook, timeout=TIMEOUT_S, kernel_name="python3", config=by_files)
    try:
        client.execute(cwd=str(ROOT), env=environment())
    except CellExecutionError as error:
        return str(error)[-TAIL:]
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m lessons.run", None, __doc__, EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lesson", nargs="*", help="number or name of a lesson; none: all of them")
    parser.add_argument("--notebook", action="store_true", help="as notebooks, through nbclient")
    options = parser.parse_args(arguments)
    try:
        lessons = find_lessons(options.lesson)
    except ValueError as error:
        parser.error(str(error))
    failed = 0
    began = time.perf_counter()
    for lesson in lessons:
        start = time.perf_counter()
        print(f"{lesson.name:20}", end="", flush=True)
        show = len(lessons) == 1 and not options.notebook
        if show:
            print(flush=True)
        problem = run_notebook(lesson) if options.notebook else run_script(lesson, show)
        print(f"{'failed' if problem else 'ok':8}{time.perf_counter() - start:6.1f} s", flush=True)
        if problem:
            failed += 1
            print(problem)
    print(f"{len(lessons) - failed} of {len(lessons)} lessons ran to the end, in {time.perf_counter() - began:.1f} s")
    return 1 if failed or not lessons else 0


if __name__ == "__main__":
    sys.exit(main())
