"""What the index says of runs: the newest first, and found by what a person would call them."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from evaluation.store.errors import StoreError
from evaluation.store.forms import Statistic
from evaluation.store.index import Index
from evaluation.store.models import MetricSummary, Run, RunKind
from evaluation.store.verify import State

_LATEST = re.compile(r"latest(?:~(\d+))?")


class Entry(NamedTuple):
    """`run`: null where its run.json cannot be read; `reason`: what is wrong with a run that is not whole."""

    id: str
    state: State
    reason: str | None
    run: Run | None


class Catalogue:
    def __init__(self, index: Index) -> None:
        self.index = index

    def entries(
        self, *, kind: RunKind | None = None, tag: str | None = None, limit: int | None = None, skip: int = 0
    ) -> list[Entry]:
        """Runs in any state, newest first; those without a readable run.json last."""
        conditions = {"kind = ?": kind, "EXISTS (SELECT 1 FROM json_each(document, '$.tags') WHERE value = ?)": tag}
        given = {text: value for text, value in conditions.items() if value is not None}
        where = " AND ".join(given) or "1"
        rows = self.index.rows(
            f"SELECT id, state, reason, document FROM runs WHERE {where}"
            " ORDER BY started_at DESC, id DESC LIMIT ? OFFSET ?",
            (*given.values(), -1 if limit is None else limit, skip),
        )
        return [_entry(*row) for row in rows]

    def find(self, name: str) -> Entry:
        """A run by its id, the beginning of it, a tag (the newest so tagged), `latest`, or `latest~1` before that.

        Raises StoreError for none, or more than one.
        """
        if match := _LATEST.fullmatch(name):
            found = self.entries(limit=1, skip=int(match[1] or 0))
        else:
            rows = self.index.rows(
                "SELECT id, state, reason, document FROM runs WHERE id = ? OR substr(id, 1, ?) = ? ORDER BY id != ?",
                (name, len(name), name, name),
            )
            exact = bool(rows) and rows[0][0] == name
            found = [_entry(*row) for row in rows[: 1 if exact else None]] or self.entries(tag=name, limit=1)
        if len(found) != 1:
            among = f", which {len(found)} runs begin with" if found else ""
            raise StoreError(f"expected the id, the beginning of one, or a tag of a run, got {name!r}{among}")
        return found[0]

    def whole(self, name: str) -> Run:
        """As `find`, for what reads a run's numbers. Raises StoreError for a run that is not whole."""
        found = self.find(name)
        if found.state != "whole" or found.run is None:
            raise StoreError(f"run {found.id} is {found.state}{f': {found.reason}' if found.reason else ''}")
        return found.run

    def summaries(self, run: str, metrics: Sequence[str] = ()) -> dict[str, MetricSummary]:
        """A run's metrics by name, in order; `metrics` are names or patterns with * and ?, none for all."""
        either = " OR ".join("name GLOB ?" for _ in metrics) or "1"
        found = self.index.summaries(f"run = ? AND ({either}) ORDER BY name", (run, *metrics))
        return {summary.name: summary for _, summary in found}

    def measured(self, metric: str) -> Iterator[tuple[Run, MetricSummary]]:
        """Every whole run that has the metric, oldest first."""
        rows = self.index.rows(
            "SELECT id, document FROM runs JOIN metrics ON run = id AND name = ? WHERE state = 'whole'"
            " ORDER BY started_at, id",
            (metric,),
        )
        summaries = dict(self.index.summaries("name = ?", (metric,)))
        for id, document in rows:
            yield Run.model_validate_json(document), summaries[id]

    def spreads(self, run: str, statistic: Statistic) -> dict[str, float]:
        """Of each metric of a run that at least four runs like it have: the quartile distance over these runs."""
        rows = self.index.rows(
            f"""
            WITH alike AS (
                SELECT id FROM runs WHERE state = 'whole' AND likeness = (SELECT likeness FROM runs WHERE id = ?)
            ), ranked AS (
                SELECT name, {statistic} AS value,
                    row_number() OVER (PARTITION BY name ORDER BY {statistic}) - 1 AS place,
                    count(*) OVER (PARTITION BY name) - 1 AS steps
                FROM metrics JOIN alike ON run = id WHERE {statistic} IS NOT NULL
            )
            SELECT name, max(value) FILTER (WHERE place = 3 * steps / 4) - max(value) FILTER (WHERE place = steps / 4)
            FROM ranked WHERE steps >= 3 GROUP BY name
            """,
            (run,),
        )
        return dict(rows)


def _entry(id: str, state: State, reason: str | None, document: str | None) -> Entry:
    return Entry(id, state, reason, Run.model_validate_json(document) if document else None)
