"""What the index says of runs: the newest first, and found by what a person would call them."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import quantiles
from typing import NamedTuple

from evaluation.store.errors import StoreError
from evaluation.store.forms import Statistic
from evaluation.store.index import Index
from evaluation.store.models import MetricSummary, Run, RunKind
from evaluation.store.verify import State

_ALIKE = 100
_LATEST = re.compile(r"latest(?:~(\d+))?")


class Entry(NamedTuple):
    """`run`: null where its run.json cannot be read; `reason`: what is wrong with a run that is not whole."""

    id: str
    state: State
    reason: str | None
    run: Run | None


class Measured(NamedTuple):
    """A metric of a run; `likeness` as JSON, `value` null where it is no finite number."""

    run: str
    started_at: str
    commit: str | None
    likeness: str
    value: float | None


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

    def measured(self, metric: str, statistic: Statistic) -> list[Measured]:
        """Every whole run that has the metric, oldest first."""
        rows = self.index.rows(
            f"SELECT id, started_at, document ->> '$.provenance.git_commit', likeness, {statistic}"
            " FROM runs JOIN metrics ON run = id AND name = ? WHERE state = 'whole' ORDER BY started_at, id",
            (metric,),
        )
        return [Measured(*row) for row in rows]

    def spreads(self, run: str, metrics: Sequence[str], statistic: Statistic) -> dict[str, float]:
        """Of each of these metrics that at least four runs like this one have: the quartile distance over the runs, the
        newest hundred of them.
        """
        rows = self.index.rows(
            f"""
            WITH alike AS (
                SELECT id FROM runs WHERE state = 'whole' AND likeness = (SELECT likeness FROM runs WHERE id = ?)
                ORDER BY started_at DESC LIMIT {_ALIKE}
            )
            SELECT name, {statistic} FROM metrics JOIN alike ON run = id
            WHERE {statistic} IS NOT NULL AND name IN (SELECT value FROM json_each(?))
            """,
            (run, json.dumps(list(metrics))),
        )
        found: dict[str, list[float]] = defaultdict(list)
        for name, value in rows:
            found[name].append(value)
        quartiles = {
            name: quantiles(values, n=4, method="inclusive") for name, values in found.items() if len(values) >= 4
        }
        return {name: high - low for name, (low, _, high) in quartiles.items()}


def _entry(id: str, state: State, reason: str | None, document: str | None) -> Entry:
    return Entry(id, state, reason, Run.model_validate_json(document) if document else None)
