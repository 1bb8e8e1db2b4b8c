"""Names and hashes of the files of a run's folder."""

import hashlib
from pathlib import Path

from evaluation.store.models import FileSeal

RUN, METRICS, SUMMARY = "run.json", "metrics.jsonl", "summary.json"
ARTIFACTS, ARTIFACT_LINES = "artifacts", "artifacts.jsonl"
WRITERS = "writers.lock"  # every writer of the run holds it, shared, for as long as it lives
QUARANTINE, INDEX = "quarantine", "index.sqlite"


def seal_of(file: Path) -> FileSeal:
    """A file's size and SHA-256, read in blocks."""
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256")
        return FileSeal(size=handle.tell(), sha256=digest.hexdigest())
