"""The committed JSON Schema of the report.

`python -m evaluation.report.schema` writes it anew from the models; `--check` only says whether it is up to date.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from evaluation.report.models import Report

SCHEMA_FILE = Path(__file__).resolve().parents[1] / "schema" / "report.schema.json"


def generate() -> str:
    """The schema as text, for the file."""
    schema = {"$schema": Draft202012Validator.META_SCHEMA["$id"]} | Report.model_json_schema(mode="serialization")
    Draft202012Validator.check_schema(schema)
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def validate(document: Any) -> None:
    """Raise jsonschema.ValidationError unless `document` has the committed form."""
    Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))).validate(document)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.report.schema", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the file is out of date")
    schema = generate()
    if not parser.parse_args(argv).check:
        SCHEMA_FILE.write_text(schema, encoding="utf-8")
    elif SCHEMA_FILE.read_text(encoding="utf-8") != schema:
        print(f"{SCHEMA_FILE} is out of date: run python -m evaluation.report.schema", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
