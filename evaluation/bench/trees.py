"""Both trees in one process, for interleaved timing. Trusted trees only: the judge gives each its own process."""

import hashlib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


def load_tree(tree: Path) -> ModuleType:
    """Import the tree's mmdit afresh; one loaded before keeps working as long as it imports nothing more."""
    _take_modules()
    sys.path.insert(0, str(tree.resolve()))
    try:
        return importlib.import_module("mmdit")
    finally:
        sys.path.pop(0)


@dataclass(frozen=True)
class LoadedTree:
    """A tree's mmdit, and all of its modules by name."""

    mmdit: ModuleType
    modules: dict[str, ModuleType]

    @classmethod
    def load(cls, tree: Path) -> "LoadedTree":
        mmdit = load_tree(tree)
        modules = _take_modules()
        sys.modules.update(modules)
        return cls(mmdit, modules)

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Within, importing mmdit finds this tree, as code needs that imports when called, and torch.compile, which
        looks up by name the modules of the functions that it traces; afterwards the tree that it found before.
        """
        others = _take_modules()
        sys.modules.update(self.modules)
        try:
            yield
        finally:
            self.modules.update(_take_modules())
            sys.modules.update(others)


def _take_modules() -> dict[str, ModuleType]:
    """Take mmdit and its submodules out of sys.modules."""
    names = [name for name in sys.modules if name.partition(".")[0] == "mmdit"]
    return {name: sys.modules.pop(name) for name in names}


def hash_tree(tree: Path) -> str:
    """SHA-256 over the names and contents of the tree's Python files."""
    digest = hashlib.sha256()
    for file in sorted(tree.rglob("*.py")):
        digest.update(f"{file.relative_to(tree)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()
