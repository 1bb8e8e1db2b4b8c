"""repository_before under a name of its own, as a user's vanilla model beside the tree under test."""

import sys
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

BEFORE = Path(__file__).resolve().parent.parent / "repository_before" / "mmdit"
NAME = "vanilla_mmdit"


@cache
def vanilla() -> ModuleType:
    """The package, imported from a copy whose imports say its new name; both trees call themselves mmdit."""
    folder = tempfile.TemporaryDirectory(prefix="vanilla-")
    package = Path(folder.name) / NAME
    package.mkdir()
    for file in BEFORE.glob("*.py"):
        (package / file.name).write_text(file.read_text().replace("from mmdit", f"from {NAME}"))
    sys.path.append(folder.name)
    module = import_module(NAME)
    module.folder = folder  # removed with it
    return module
