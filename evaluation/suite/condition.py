"""Which fields go with which value of another, as JSON Schema says it: if this, then that, else the other."""

from collections.abc import Iterable
from typing import Any

Schema = dict[str, Any]

NULL: Schema = {"type": "null"}
NOT_NULL: Schema = {"not": NULL}
EMPTY: Schema = {"maxItems": 0}
NOT_EMPTY: Schema = {"minItems": 1}


def when(field: str, values: Iterable[object], then: Schema, otherwise: Schema | None = None) -> Schema:
    """Where `field` has one of `values`, the other fields are as in `then`, else as in `otherwise`."""
    condition = {"properties": {field: {"enum": list(values)}}, "required": [field]}
    found = {"if": condition, "then": {"properties": then}}
    return found if otherwise is None else found | {"else": {"properties": otherwise}}


def conditions(*found: Schema) -> Schema:
    """For a model's json_schema_extra."""
    return {"allOf": list(found)}
