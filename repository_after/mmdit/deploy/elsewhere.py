"""A process that has never imported mmdit, for artifacts that must run without it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, List, Optional, Sequence, Type

import torch
from torch import Tensor

RUNNER = Path(__file__).with_name("runner.py")


class Elsewhere:
    """One such process, started at the first call. folder: of the files that go there and back."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self._process: Optional[subprocess.Popen[str]] = None

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait(timeout=60)
            self._process.stdout.close()
        self._folder.cleanup()

    def run(self, kind: str, path: Path, calls: Sequence[Dict[str, Tensor]]) -> List[List[Tensor]]:
        """The outputs of the artifact for each of some calls.

        Args:
            kind: "torchscript", "export" or "aoti".

        Raises RuntimeError with what was raised there.
        """
        if self._process is None:
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            command = [sys.executable, "-P", str(RUNNER)]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, text=True, cwd=self.folder, env=environment
            )
        inputs, outputs = self.folder / "inputs.pt", self.folder / "outputs.pt"
        torch.save(list(calls), inputs)
        job: Dict[str, Any] = {"kind": kind, "path": str(path), "inputs": str(inputs), "outputs": str(outputs)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        error = json.loads(line) if line else "the process ended"
        if error:
            raise RuntimeError(f"{kind} without mmdit: {error}")
        return torch.load(outputs)
