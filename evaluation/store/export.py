"""Runs for other programs: JSON, CSV and Parquet, each read back and checked before it is put in place."""

import csv
import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from evaluation.report.write import write_record
from evaluation.store.catalogue import Catalogue
from evaluation.store.errors import StoreError
from evaluation.store.files import METRICS
from evaluation.store.forms import SummaryExport, SummaryRow, ValueExport, ValueRow
from evaluation.store.metrics import read_metrics
from evaluation.store.store import Store

Format = Literal["csv", "json", "parquet"]


Rows = Sequence[SummaryRow] | Sequence[ValueRow]


def summary_rows(catalogue: Catalogue, runs: Sequence[str]) -> list[SummaryRow]:
    """Of whole runs; raises StoreError for any other."""
    rows = []
    for run in map(catalogue.whole, runs):
        about = run.model_dump(include={"kind", "status", "started_at"}) | {"commit": run.provenance.git_commit}
        for summary in catalogue.summaries(run.id).values():
            rows.append(SummaryRow(run=run.id, **about, **vars(summary)))
    return rows


def value_rows(store: Store, catalogue: Catalogue, runs: Sequence[str]) -> list[ValueRow]:
    """Of whole runs; raises StoreError for any other."""
    return [row for run in runs for row in _values(store, catalogue.whole(run).id)]


def _values(store: Store, run: str) -> Iterator[ValueRow]:
    for line in read_metrics(store.folder(run) / METRICS):
        for name, value in line.values.items():
            yield ValueRow(run=run, step=line.step, time=line.time, name=name, value=value)


def export(rows: Rows, format: Format, file: Path) -> None:
    """Raises StoreError for no rows, and where what was written does not read back as it was."""
    if not rows:
        raise StoreError("there is nothing to export: the runs have no metrics")
    if format == "json":
        form = SummaryExport if isinstance(rows[0], SummaryRow) else ValueExport
        write_record(form(rows=tuple(rows)), file)
        return
    temporary = file.with_name(f".{file.name}.new")
    file.parent.mkdir(parents=True, exist_ok=True)
    write, read = {"csv": (_write_csv, _read_csv), "parquet": (_write_parquet, _read_parquet)}[format]
    write(rows, temporary)
    if TypeAdapter(list[type(rows[0])]).validate_python(read(temporary)) != list(rows):
        raise StoreError(f"{temporary} does not read back as what was written")
    os.replace(temporary, file)


def _write_csv(rows: Rows, file: Path) -> None:
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(type(rows[0]).model_fields))
        writer.writeheader()
        writer.writerows(row.model_dump(mode="json") for row in rows)


def _read_csv(file: Path) -> list[dict[str, str | None]]:
    """An empty field is null: no text of a row is ever empty."""
    with file.open(newline="", encoding="utf-8") as handle:
        return [{name: text or None for name, text in row.items()} for row in csv.DictReader(handle)]


def _write_parquet(rows: Rows, file: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    types = {int: pyarrow.int64(), float: pyarrow.float64(), float | None: pyarrow.float64()}
    types[datetime] = pyarrow.timestamp("us", tz="UTC")
    fields = type(rows[0]).model_fields
    schema = pyarrow.schema([(name, types.get(f.annotation, pyarrow.string())) for name, f in fields.items()])
    parquet.write_table(pyarrow.Table.from_pylist([row.model_dump() for row in rows], schema), file)


def _read_parquet(file: Path) -> list[dict[str, object]]:
    from pyarrow import parquet

    return parquet.read_table(file).to_pylist()
