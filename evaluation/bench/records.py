"""The record of any command: how it is read, its tables, and what it comes to."""

import json
from pathlib import Path

from evaluation.bench import sizes_table, stack_table, table, tune_table
from evaluation.bench.record import BenchRecord
from evaluation.bench.stack_record import StackRecord
from evaluation.bench.tune_record import TuneRecord

PAGES = {  # of each command: its record, its tables, and what it says where nothing falls short
    "ops": (BenchRecord, table, "Nowhere slower than torch.compile, nowhere short of the bandwidth target."),
    "stack": (
        StackRecord,
        stack_table,
        "Nowhere slower than torch.compile, nowhere less accurate than vanilla PyTorch.",
    ),
    "sizes": (StackRecord, sizes_table, "Nowhere slower than torch.compile by more than 5 %."),
    "tune": (TuneRecord, tune_table, "Nowhere are other tiles than the tables' faster beyond the spread."),
}

AnyRecord = BenchRecord | StackRecord | TuneRecord


def read_record(file: Path) -> AnyRecord:
    """Raises ValueError for a file that is no record."""
    document = json.loads(file.read_text(encoding="utf-8"))
    kind = document.get("benchmark", "ops") if isinstance(document, dict) else "ops"
    model, _, _ = PAGES.get(kind, PAGES["ops"])
    return model.model_validate(document)


def kind_of(record: AnyRecord) -> str:
    """The command that wrote it."""
    return getattr(record, "benchmark", "ops")


def table_of(file: Path) -> str:
    """The table of a record. Raises ValueError where it is none."""
    record = read_record(file)
    _, page, _ = PAGES[kind_of(record)]
    return page.markdown_table(record)


def outcome(record: AnyRecord) -> tuple[int, str]:
    """The exit code of the command that wrote it, and what is to be said of it."""
    _, page, otherwise = PAGES[kind_of(record)]
    if kind_of(record) != "ops" and not any(result.timings for result in record.results):
        return 3, "Nothing was measured."
    short = page.shortfalls(record)
    return (1, "\n".join(short)) if short else (0, otherwise)
