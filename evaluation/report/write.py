"""Writes files so that a reader sees a whole, valid one or none."""

import json
import os
import tempfile
from datetime import datetime
from pathlib import Path

from evaluation.report.schema import validate
from evaluation.suite.result import GraderError, Record


def default_report_file(reports: Path, started_at: datetime, run_id: str) -> Path:
    """reports/YYYY-MM-DD/HH-MM-SS/report.json; a second run of the same second gets a piece of its id as well."""
    folder = reports / started_at.strftime("%Y-%m-%d") / started_at.strftime("%H-%M-%S")
    if folder.exists():
        folder = folder.with_name(f"{folder.name}-{run_id[:8]}")
    return folder / "report.json"


def check_writable(folder: Path) -> None:
    """Make `folder` if need be and try to write in it; raises GraderError when that does not work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise GraderError(f"cannot write reports to {folder}: {error.strerror}") from error


def write_record(record: Record, *files: Path) -> None:
    """Validate against the committed schema of its model, then put the record in place in each of `files`."""
    text = json.dumps(record.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
    validate(type(record), json.loads(text))
    for file in files:
        write_atomically(file, text)


def write_atomically(file: Path, text: str) -> None:
    """Write beside `file`, flush to disk and rename; on any interruption `file` is as it was before.

    The file is readable by everyone, since another user than the writer's reads it behind a container's mount.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
