"""The committed JSON Schemas of what the grader writes: the report, and the records of the benchmarks.

`python -m evaluation.report.schema` writes them anew from the models; `--check` only says whether they are up to date.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from evaluation.bench.record import BenchRecord
from evaluation.bench.stack_record import StackRecord
from evaluation.bench.tune_record import TuneRecord
from evaluation.report.bundle_record import Bundle
from evaluation.report.models import Report
from evaluation.store.forms import GateRecord, History, RunComparison, SummaryExport, ValueExport
from evaluation.store.models import Artifact, MetricsLine, RunFile, RunSummary
from evaluation.suite.result import Record
from evaluation.training.parity import ParityRecord

FOLDER = Path(__file__).resolve().parents[1] / "schema"
MODELS: tuple[type[Record], ...] = (
    *(Report, Bundle, BenchRecord, StackRecord, TuneRecord, ParityRecord),
    *(RunFile, RunSummary, MetricsLine, Artifact),
    *(RunComparison, GateRecord, History, SummaryExport, ValueExport),
)


def schema_file(model: type[Record]) -> Path:
    """Where a model's schema lies: report.schema.json, bench_record.schema.json."""
    return FOLDER / f"{re.sub('(?<!^)(?=[A-Z])', '_', model.__name__).lower()}.schema.json"


def generate(model: type[Record]) -> str:
    """A model's schema as text, for its file."""
    from jsonschema import Draft202012Validator  # slow to import

    body = model.model_json_schema(mode="serialization")
    schema = {"$schema": Draft202012Validator.META_SCHEMA["$id"]} | body
    Draft202012Validator.check_schema(schema)
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def validate(model: type[Record], document: Any) -> None:
    """Raise jsonschema.ValidationError unless `document` has the committed form of this model."""
    from jsonschema import Draft202012Validator  # slow to import

    Draft202012Validator(json.loads(schema_file(model).read_text(encoding="utf-8"))).validate(document)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.report.schema", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is out of date")
    check = parser.parse_args(argv).check
    stale = [model for model in MODELS if not _is_current(model)]
    for model in stale:
        if check:
            print(f"{schema_file(model)} is out of date: run python -m evaluation.report.schema", file=sys.stderr)
        else:
            schema_file(model).write_text(generate(model), encoding="utf-8")
    return 1 if check and stale else 0


def _is_current(model: type[Record]) -> bool:
    file = schema_file(model)
    return file.exists() and file.read_text(encoding="utf-8") == generate(model)


if __name__ == "__main__":
    sys.exit(main())
