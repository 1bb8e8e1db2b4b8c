"""The store: a folder of runs. The files are the truth; every reader first brings the index up to them.

ROOT/RUN/run.json metrics.jsonl summary.json artifacts.jsonl artifacts/
ROOT/quarantine/RUN/    runs whose writer died, or whose files changed afterwards
ROOT/index.sqlite       made from the files; `reindex` makes it anew
"""

import os
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from evaluation.report.models import Environment
from evaluation.store.errors import StoreError
from evaluation.store.files import INDEX, METRICS, QUARANTINE, RUN
from evaluation.store.held import is_held
from evaluation.store.index import Index
from evaluation.store.models import Run, RunKind, Scalar
from evaluation.store.run import RunWriter, begin, read_run, reopen, write_run
from evaluation.store.verify import Condition, examine

_STALE_STAGING_SECONDS = 86400.0
_BATCH = 32


class Store:
    """Runs under `root`. Writing needs no index, and so no writer waits for another's."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(
        self,
        kind: RunKind,
        provenance: Environment,
        *,
        id: str | None = None,
        started_at: datetime | None = None,
        tags: tuple[str, ...] = (),
        config: Mapping[str, Scalar] | None = None,
        flags: Mapping[str, Scalar] | None = None,
    ) -> RunWriter:
        """A new run, open for writing; `started_at`: where it was measured before now. Raises StoreError for an id that
        is taken, or a field of the wrong form.
        """
        started = started_at or datetime.now(UTC)
        try:
            run = Run(
                id=id or f"{started:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}",
                kind=kind,
                tags=tags,
                status="running",
                started_at=started,
                finished_at=None,
                config=dict(config or {}),
                flags=dict(flags or {}),
                provenance=provenance,
                seal=None,
            )
        except ValidationError as error:
            raise StoreError(f"a run's fields: {error}") from error
        if run.id == QUARANTINE or (self.root / QUARANTINE / run.id).exists():
            raise StoreError(f"id: {run.id!r} is taken")
        return begin(self.root / run.id, run)

    def join(self, id: str) -> RunWriter:
        """A second writer of a run that is being written."""
        folder = self.folder(id)
        if not is_held(folder):
            raise StoreError(f"run {id} is written by nobody: resume it instead")
        return RunWriter(folder)

    def resume(self, id: str) -> RunWriter:
        """Go on with a run whose writer died. Raises StoreError where one lives, or the run has ended."""
        folder = self.folder(id)
        found = examine(folder)
        if found.state != "partial":
            raise StoreError(f"run {id} is {found.state}: only a partial run can be gone on with")
        if folder.parent.name == QUARANTINE:
            os.rename(folder, self.root / id)
        return reopen(self.root / id)

    def folder(self, id: str) -> Path:
        """Where the run lies, in quarantine or not."""
        for folder in (self.root / id, self.root / QUARANTINE / id):
            if folder.is_dir():
                return folder
        raise StoreError(f"no run {id!r} in {self.root}")

    def tag(self, id: str, add: tuple[str, ...], remove: tuple[str, ...]) -> Run:
        """Change the tags of a run that has ended."""
        folder = self.folder(id)
        run = read_run(folder)
        if run.seal is None:
            raise StoreError(f"run {id} has not ended: only then can it be tagged")
        kept = [tag for tag in run.tags if tag not in remove]
        try:
            changed = Run.model_validate(run.model_dump() | {"tags": (*kept, *(t for t in add if t not in kept))})
        except ValidationError as error:
            raise StoreError(f"tags: {error}") from error
        write_run(folder, changed)
        return changed

    def remove(self, id: str) -> None:
        """Delete a run that nobody writes: first out of sight, so that no half of it is ever shown."""
        folder = self.folder(id)
        if is_held(folder):
            raise StoreError(f"run {id} is being written")
        doomed = self.root / f".old-{id}-{os.getpid()}"
        os.rename(folder, doomed)
        shutil.rmtree(doomed)

    def sweep(self) -> int:
        """Delete what writers left that were killed before their run began, a day ago or more; gives how many."""
        limit = time.time() - _STALE_STAGING_SECONDS
        stale = [f for f in self.root.glob(".*-*") if f.is_dir() and not is_held(f) and f.stat().st_mtime < limit]
        for folder in stale:
            shutil.rmtree(folder)
        return len(stale)

    def index(self) -> Index:
        """The index, up to the files: what is new or changed is read, and each run lies where its state says."""
        self._check_root()
        index = Index(self.root / INDEX)
        try:
            self._bring_up(index)
        except BaseException:
            index.close()
            raise
        return index

    def reindex(self) -> Index:
        """The index made anew from every byte of every file."""
        self._check_root()
        for suffix in ("", "-wal", "-shm"):
            (self.root / f"{INDEX}{suffix}").unlink(missing_ok=True)
        return self.index()

    def _check_root(self) -> None:
        if not self.root.is_dir():
            raise StoreError(f"{self.root} is not there: no run was stored in it")

    def _bring_up(self, index: Index) -> None:
        known, folders = index.stamps(), self._folders()
        if gone := known.keys() - folders.keys():
            with index.writing():
                for id in gone:
                    index.drop(id)
        news = [id for id, folder in folders.items() if known.get(id) != (_stamp(folder), "whole")]
        for start in range(0, len(news), _BATCH):
            found = [self._examined(folders[id], known.get(id)) for id in news[start : start + _BATCH]]
            with index.writing():
                for each in filter(None, found):
                    index.put(*each)

    def _examined(self, folder: Path, known: tuple[str, str] | None) -> tuple[str, str, Condition] | None:
        """What the index is to hold of a run; None: it does already, or the run was removed."""
        if known and known[0] == _stamp(folder) and known[1] != "running":
            return None
        found = examine(folder)
        placed = self._place(folder, found)
        if placed.is_dir():
            return folder.name, _stamp(placed), found
        with suppress(StoreError):  # another reader moved it while it was read
            return self._examined(self.folder(folder.name), None)
        return None

    def _folders(self) -> dict[str, Path]:
        """Every run's folder by its id. Runs move into quarantine while others read: looked at in this order, each is
        seen once at least.
        """
        outside, quarantined = _runs_in(self.root), _runs_in(self.root / QUARANTINE)
        return quarantined | outside

    def _place(self, folder: Path, found: Condition) -> Path:
        """Move a run into quarantine, or out of it, as its state demands; gives where it lies then."""
        broken = found.state in ("partial", "damaged") and not is_held(folder)
        wanted = self.root / QUARANTINE / folder.name if broken else self.root / folder.name
        if folder == wanted or (found.state == "damaged" and not broken) or wanted.exists():
            return folder
        wanted.parent.mkdir(exist_ok=True)
        try:
            os.rename(folder, wanted)
        except FileNotFoundError:
            return folder  # another reader was faster
        return wanted


def _runs_in(parent: Path) -> dict[str, Path]:
    if not parent.is_dir():
        return {}
    with os.scandir(parent) as entries:
        found = [Path(x.path) for x in entries if x.is_dir() and x.name != QUARANTINE and not x.name.startswith(".")]
    return {folder.name: folder for folder in found}


def _stamp(folder: Path) -> str:
    """What changes when a run's folder does: its place, and the size and time of its two main files."""
    marks = [folder.parent.name]
    for name in (RUN, METRICS):
        try:
            info = os.stat(folder / name)
        except OSError:
            marks.append("none")
        else:
            marks.append(f"{info.st_size}:{info.st_mtime_ns}")
    return " ".join(marks)
