"""Where a record comes from."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluation.bench.trees import hash_tree


def provenance(before: Path, after: Path, command: str) -> dict[str, Any]:
    """The fields that every record has of the run that begins now: its command, its start, its trees."""
    return {
        "command": command,
        "started_at": datetime.now(UTC),
        "before_sha256": hash_tree(before),
        "after_sha256": hash_tree(after),
    }
