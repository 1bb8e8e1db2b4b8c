"""Writing a run. A writer may be killed at any byte: its run is then visibly partial, and no other one's is touched."""

import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pydantic import ValidationError

from evaluation.report.write import write_atomically, write_record
from evaluation.store.errors import StoreError
from evaluation.store.files import ARTIFACT_LINES, ARTIFACTS, METRICS, RUN, SUMMARY, seal_of
from evaluation.store.held import hold
from evaluation.store.lines import Lines, unseal, whole_lines
from evaluation.store.metrics import metrics_line, summarise
from evaluation.store.models import Artifact, ArtifactKind, Run, RunFile, RunSummary, Seal

EndStatus = Literal["success", "failed", "no_verdict"]


class RunWriter:
    """One writer of a run; several may write the same run at once. As a context manager it finishes the run:
    success, or failed where an exception leaves it.
    """

    def __init__(self, folder: Path) -> None:
        """Open a run that has not ended; `Store.create` and `Store.resume` are the ways to here."""
        self.folder = folder
        self._alive = hold(folder)
        try:
            self.run = read_run(folder)
            if self.run.seal:
                raise StoreError(f"run {self.run.id} has ended: it takes no more writers")
            self._metrics, self._artifacts = Lines(folder / METRICS), Lines(folder / ARTIFACT_LINES)
        except BaseException:
            os.close(self._alive)
            raise

    @property
    def id(self) -> str:
        return self.run.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers measured at a step; written when this returns. Raises StoreError once the run has ended."""
        self._metrics.append(metrics_line(step, values))

    def log_many(self, rows: list[tuple[int, Mapping[str, float]]]) -> None:
        """As `log` for each, in one write."""
        self._metrics.append(b"".join(metrics_line(step, values) for step, values in rows))

    def add_artifact(self, source: Path | str, kind: ArtifactKind, name: str | None = None) -> Path:
        """Copy a file into the run, or write a text (a str) under `name`; gives where it lies. A name is used once."""
        name = name or (Path(source).name if isinstance(source, Path) else "")
        checked = _artifact(name=name, kind=kind, size=0, sha256="0" * 64)
        target = self.folder / ARTIFACTS / name
        if target.exists():
            raise StoreError(f"name: run {self.id} has an artifact {name!r} already")
        if isinstance(source, str):
            write_atomically(target, source)
        else:
            temporary = target.with_name(f".{name}.{os.getpid()}")
            with source.open("rb") as read, temporary.open("wb") as written:
                shutil.copyfileobj(read, written)
                written.flush()
                os.fsync(written.fileno())
            os.replace(temporary, target)
        line = checked.model_copy(update=seal_of(target).model_dump())
        self._artifacts.append(line.model_dump_json().encode() + b"\n")
        return target

    def finish(self, status: EndStatus) -> Run:
        """Seal every file; then, and only then, the run is whole. Raises StoreError when it has ended before."""
        self._metrics.seal()
        self._artifacts.seal()
        summary = RunSummary(metrics=summarise(self.folder / METRICS))
        write_record(summary, self.folder / SUMMARY)
        artifacts = tuple(_artifact_lines(self.folder / ARTIFACT_LINES))
        seal = Seal(metrics=seal_of(self.folder / METRICS), summary=seal_of(self.folder / SUMMARY), artifacts=artifacts)
        now = max(datetime.now(UTC), self.run.started_at)
        ended = read_run(self.folder).model_copy(update={"status": status, "finished_at": now, "seal": seal})
        write_run(self.folder, ended)
        self.run = ended
        self.close()
        return ended

    def close(self) -> None:
        """Write no more; a run that nobody finished is then partial."""
        if self._alive >= 0:
            self._metrics.close()
            self._artifacts.close()
            os.close(self._alive)
            self._alive = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _where: TracebackType | None) -> None:
        if self._alive >= 0:
            self.finish("failed" if kind else "success")


def begin(folder: Path, run: Run) -> RunWriter:
    """Lay out a new run's folder and open it. It appears under its name only once its writer holds it."""
    staging = folder.with_name(f".new-{folder.name}-{os.getpid()}")
    try:
        (staging / ARTIFACTS).mkdir(parents=True)
        held = hold(staging)
        try:
            write_run(staging, run)
            if folder.exists():
                raise StoreError(f"run {run.id} is already there")
            os.rename(staging, folder)
            return RunWriter(folder)
        finally:
            os.close(held)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made: {error.strerror}") from error


def reopen(folder: Path) -> RunWriter:
    """Open a run whose writers are gone, to go on where it stopped; also one that was killed while it finished."""
    if not read_run(folder).seal:
        for name in (METRICS, ARTIFACT_LINES):
            unseal(folder / name)
        listed = {artifact.name for artifact in _artifact_lines(folder / ARTIFACT_LINES)}
        for file in (folder / ARTIFACTS).iterdir():
            if file.name not in listed:
                file.unlink()  # its writer was killed before it could say what it is
    return RunWriter(folder)


def read_run(folder: Path) -> Run:
    """Raises StoreError unless the folder's run.json is whole and the folder's own."""
    try:
        run = RunFile.model_validate_json((folder / RUN).read_bytes()).run
    except (OSError, ValidationError) as error:
        raise StoreError(f"{folder / RUN} cannot be read: {error}") from error
    if run.id != folder.name:
        raise StoreError(f"{folder / RUN} is of the run {run.id}")
    return run


def write_run(folder: Path, run: Run) -> None:
    write_record(RunFile.of(run), folder / RUN)


def _artifact_lines(file: Path) -> list[Artifact]:
    try:
        return [Artifact.model_validate_json(line) for block in whole_lines(file) for line in block.split(b"\n")]
    except ValidationError as error:
        raise StoreError(f"{file} cannot be read: {error}") from error


def _artifact(**fields: object) -> Artifact:
    try:
        return Artifact(**fields)
    except ValidationError as error:
        raise StoreError(f"artifact: {error}") from error
