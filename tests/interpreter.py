"""A process in which Triton interprets kernels on the CPU, as that is settled when triton is imported."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

import torch

from tests.poison import poison_memory


def prepare(tree: Path) -> None:
    sys.path.insert(0, str(tree))
    poison_memory()
    torch.set_num_threads(1)
    from tests.fast_interpreter import hurry  # imports triton, which only this process may do under TRITON_INTERPRET

    hurry()


class Interpreter:
    """One worker process, started at the first check, and anew after a check that killed it."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Interpreter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def start(self) -> ProcessPoolExecutor:
        """A pool whose worker was born with TRITON_INTERPRET=1; this process's environment is left as it was."""
        with patch.dict(os.environ, TRITON_INTERPRET="1"):
            pool = ProcessPoolExecutor(1, get_context("spawn"), prepare, (self.tree,))
            pool.submit(os.getpid).result()
        return pool

    def run(self, check: Callable[..., None], *args: Any) -> None:
        """Run check(*args) there; what it raises is raised here, with the worker's traceback as its cause."""
        self.pool = self.pool or self.start()
        try:
            self.pool.submit(check, *args).result()
        except BrokenProcessPool:
            self.pool = None
            raise
