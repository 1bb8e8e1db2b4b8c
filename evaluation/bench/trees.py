"""Both trees in one process, for interleaved timing. Trusted trees only: the judge gives each its own process."""

import hashlib
import importlib
import sys
from pathlib import Path
from types import ModuleType


def load_tree(tree: Path) -> ModuleType:
    """Import the tree's mmdit afresh; one loaded before keeps working as long as it imports nothing more."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmdit"]:
        del sys.modules[name]
    sys.path.insert(0, str(tree.resolve()))
    try:
        return importlib.import_module("mmdit")
    finally:
        sys.path.pop(0)


def hash_tree(tree: Path) -> str:
    """SHA-256 over the names and contents of the tree's Python files."""
    digest = hashlib.sha256()
    for file in sorted(tree.rglob("*.py")):
        digest.update(f"{file.relative_to(tree)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()
