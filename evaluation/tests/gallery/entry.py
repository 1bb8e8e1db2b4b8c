"""An entry of the gallery: a small patch over repository_after, and what the grader must say of it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluation.judge.case import Case, Kind, Sizes
from evaluation.suite.command import ROOT

Class = Literal["wrong", "cheat", "honest"]

SMALL, WIDE = Sizes(2, 17, 5, 4, 16, layers=2), Sizes(2, 17, 5, 2, 64)
OTHER = Case("stack", SMALL, scenario="other-values-in-the-same-memory")
OTHER_INFERENCE = Case("stack", SMALL, mode="inference", scenario="other-values-in-the-same-memory")
NEEDLES = Case("cross", Sizes(1, 128, 6, 2, 16), mode="inference", values="needles")


def plain(*kinds: Kind) -> tuple[Case, ...]:
    """The kinds forward and backward in fp32, on normal values."""
    return tuple(Case(kind, WIDE if kind.endswith("linear") else SMALL) for kind in kinds)


FUNCTIONS = (
    *plain("layernorm_adaln", "rmsnorm_adaln"),
    *(Case(kind, SMALL, values="tiny") for kind in ("layernorm_adaln", "rmsnorm_adaln")),
)
STACK = (*plain("stack"), OTHER, OTHER_INFERENCE)
EVERYTHING = (
    *plain("self", "cross", "block", "block-cross", "stack", "self-linear", "cross-linear"),
    *FUNCTIONS,
    *(Case("stack", SMALL, dtype) for dtype in ("bfloat16", "float16")),
    *(Case("cross", SMALL, mask=mask, start="tensor") for mask in ("random", "empty-rows", "all-empty")),
    Case("stack", SMALL, mode="autocast"),
    Case("stack", SMALL, scenario="other-weights-in-the-same-memory"),
    NEEDLES,
    OTHER,
    OTHER_INFERENCE,
)


@dataclass(frozen=True)
class Edit:
    """One place of a file of the package, which holds `old` exactly once. An empty `old` appends."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Entry:
    """`cases` are enough to tell. `told`: what the first problem must say, for the right reason to be the reason."""

    name: str
    kind: Class
    edits: tuple[Edit, ...]
    cases: tuple[Case, ...]
    told: str = ""

    def __str__(self) -> str:
        return self.name

    def tree(self, folder: Path) -> Path:
        """A patched copy of repository_after."""
        source = ROOT / "repository_after"
        tree = Path(shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__")))
        for edit in self.edits:
            file = tree / "mmdit" / edit.file
            text = file.read_text(encoding="utf-8")
            if edit.old and text.count(edit.old) != 1:
                raise ValueError(f"{self.name}: {edit.file} holds {edit.old!r} {text.count(edit.old)} times")
            changed = text.replace(edit.old, edit.new) if edit.old else f"{text}\n{edit.new}\n"
            file.write_text(changed, encoding="utf-8")
        return tree
