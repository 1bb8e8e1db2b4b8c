"""The index, which the store's tables are read from. It is made from the files, and holds nothing that they do not."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from evaluation.store.errors import StoreError
from evaluation.store.models import MetricSummary
from evaluation.store.verify import Condition

MIGRATIONS = (
    """
    CREATE TABLE runs (
        id TEXT PRIMARY KEY, state TEXT NOT NULL, reason TEXT, kind TEXT, status TEXT, started_at TEXT,
        likeness TEXT, document TEXT, stamp TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE metrics (
        run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE, name TEXT NOT NULL, count INTEGER NOT NULL,
        not_finite INTEGER NOT NULL, last REAL, minimum REAL, maximum REAL, mean REAL, p25 REAL, p50 REAL, p75 REAL,
        p95 REAL, PRIMARY KEY (run, name)
    ) WITHOUT ROWID;
    """,
    """
    CREATE INDEX metrics_by_name ON metrics (name, run);
    CREATE INDEX runs_by_start ON runs (started_at, id);
    """,
)
_COLUMNS = tuple(MetricSummary.model_fields)
_BUSY_SECONDS = 30.0


class Index:
    """An open index. Raises StoreError for one that is damaged, or of a newer version than this."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with self._told():
            self._database = sqlite3.connect(file, timeout=_BUSY_SECONDS, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute("PRAGMA foreign_keys = ON")
            self._migrate()

    def _migrate(self) -> None:
        with self.writing():
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise StoreError(f"{self.file}: expected version {len(MIGRATIONS)} or older, got {version}: reindex")
            for number, migration in enumerate(MIGRATIONS[version:], version + 1):
                for statement in migration.split(";"):
                    self._database.execute(statement)
                self._database.execute(f"PRAGMA user_version = {number}")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """All or nothing, one writer at a time."""
        with self._told():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def stamps(self) -> dict[str, tuple[str, str]]:
        """Stamp and state by run."""
        return {run: (stamp, state) for run, stamp, state in self.rows("SELECT id, stamp, state FROM runs")}

    def put(self, run: str, stamp: str, found: Condition) -> None:
        """In place of what was known of the run; inside `writing`."""
        self.drop(run)
        about = found.run
        row: tuple[str | None, ...] = (None,) * 5
        if about:
            likeness = json.dumps(about.likeness(), sort_keys=True)
            row = (about.kind, about.status, about.started_at.isoformat(), likeness, about.model_dump_json())
        self._database.execute(
            "INSERT INTO runs (id, state, reason, kind, status, started_at, likeness, document, stamp)"
            " VALUES (?,?,?,?,?,?,?,?,?)",
            (run, found.state, found.reason, *row, stamp),
        )
        marks = ",".join("?" * (1 + len(_COLUMNS)))
        values = ((run, *(getattr(metric, column) for column in _COLUMNS)) for metric in found.metrics)
        self._database.executemany(f"INSERT INTO metrics (run, {', '.join(_COLUMNS)}) VALUES ({marks})", values)

    def drop(self, run: str) -> None:
        self._database.execute("DELETE FROM runs WHERE id = ?", (run,))

    def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple]:
        with self._told():
            return self._database.execute(query, values).fetchall()

    def summaries(self, where: str, values: Sequence[object]) -> Iterable[tuple[str, MetricSummary]]:
        """(run, summary) for each metric that the SQL condition takes."""
        for run, *row in self.rows(f"SELECT run, {', '.join(_COLUMNS)} FROM metrics WHERE {where}", values):
            yield run, MetricSummary.model_construct(**dict(zip(_COLUMNS, row, strict=True)))

    def dump(self) -> dict[str, list[tuple]]:
        """All that it holds but the stamps, to compare two by."""
        columns = "id, state, reason, kind, status, started_at, likeness, document"
        return {
            "runs": self.rows(f"SELECT {columns} FROM runs ORDER BY id"),
            "metrics": self.rows("SELECT * FROM metrics ORDER BY run, name"),
        }

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self.file}: {error}: `python -m evaluation.runs reindex` makes it anew") from error
