"""A private copy of a tree, and the environment and scratch space of the processes that run on it."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.suite.process import Finished, OutputHandler, run_bounded
from evaluation.suite.result import FailureKind, Role, TreeProblem

if TYPE_CHECKING:
    from evaluation.suite.container import Access, Engine

_SYSTEM = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LANGUAGE", "TZ", "VIRTUAL_ENV")
_TOOLS = ("CC", "CXX", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_KEPT_PREFIXES = ("LC_", "CUDA", "NVIDIA_")
_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Staged:
    """`tree` is the copy, `source` what the user named; `env` names folders in `scratch` only."""

    role: Role
    source: Path
    tree: Path
    scratch: Path
    env: Mapping[str, str]
    engine: "Engine | None" = None

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        on_output: OutputHandler | None = None,
        folders: "Mapping[Path, Access] | None" = None,
    ) -> Finished:
        """Run a command on the tree, in a container where there is an engine: it sees tree, scratch and `folders`."""
        cwd, env = cwd or self.scratch, self.env if env is None else env
        if self.engine is None:
            return run_bounded(command, cwd=cwd, env=env, timeout=timeout, stdin=stdin, on_output=on_output)
        with scratch_folder() as folder:
            (folder / "stdin").write_bytes(stdin)
            seen = {self.tree: "ro", self.scratch: "rw", folder: "ro"} | dict(folders or {})
            how = {"cwd": cwd, "env": env, "timeout": timeout, "on_output": on_output}
            return self.engine.run(command, **how, folders=seen, stdin=folder / "stdin")


def child_environment(scratch: Path) -> dict[str, str]:
    """The machine's settings without those of Python, pytest, Triton and the kata, and with private caches."""
    kept = {
        name: value for name, value in os.environ.items() if name in _SYSTEM + _TOOLS or name.startswith(_KEPT_PREFIXES)
    }
    return kept | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(scratch),
        "TRITON_CACHE_DIR": str(scratch / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
    }


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is gone afterwards, whatever a candidate left in it."""
    with tempfile.TemporaryDirectory(prefix="mmdit-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def staged(source: Path, role: Role, engine: "Engine | None" = None) -> Iterator[Staged]:
    """Copy `source`, so that a run cannot change it and sees one state of it.

    The copy is for reading only, as far as its owner can be told so; that nothing in it changed is checked apart.

    Raises TreeProblem when a file in it cannot be copied.
    """
    with scratch_folder() as folder:
        tree, scratch = folder / "tree" / source.resolve().name, folder / "scratch"
        scratch.mkdir()
        try:
            shutil.copytree(source, tree, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".git", "*.pyc"))
        except (OSError, shutil.Error) as error:
            raise TreeProblem(FailureKind.UNREADABLE_TREE, f"cannot be copied: {error}") from error
        for path in (tree, *tree.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~_WRITABLE)
        yield Staged(role, source, tree, scratch, child_environment(scratch), engine)
