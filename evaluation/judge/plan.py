"""Files between the judge and a worker: cases out, raw tensors back. Nothing of the oracle's is ever written."""

import json
import secrets
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluation.judge.draw import Drawn
from evaluation.judge.layout import construction

_MAX_JSON_BYTES = 1 << 20
_MAX_TENSOR_BYTES = 1 << 30


class _Told(BaseModel):
    """What comes from a worker is held to its form, and is believed no further than it can be checked."""

    model_config = ConfigDict(extra="forbid", strict=True)


class OutputFacts(_Told):
    """An output at the moment at which it was returned."""

    type: str
    device: str
    contiguous: bool
    digest: str


class CallFacts(_Told):
    """One call: the result's type, and inputs' hashes after it."""

    result: str
    fields: list[str]
    outputs: dict[str, OutputFacts]
    inputs: dict[str, str]


class CaseFacts(_Told):
    """One case: its calls by number, and weights' hashes after all of them; or the error that ended it."""

    error: str | None = None
    facts: dict[str, CallFacts] = {}
    weights: dict[str, str] = {}


def write_plan(folder: Path, drawn: list[Drawn], device: str) -> list[str]:
    """A file per case, under names that say nothing, and the plan. Returns the names."""
    names = [secrets.token_hex(8) for _ in drawn]
    entries = []
    for name, each in zip(names, drawn, strict=True):
        save_file(_tensors(each), folder / f"{name}.safetensors")
        calls = [
            {"weights": call.weights, "start_pos": call.start_pos if isinstance(call.start_pos, int) else None}
            for call in each.calls
        ]
        entry = {"id": name, "make": construction(each.case), "dtype": each.case.dtype, "mode": each.case.mode}
        entries.append(entry | {"calls": calls})
    (folder / "plan.json").write_text(json.dumps({"device": device, "cases": entries}), encoding="utf-8")
    return names


def _tensors(drawn: Drawn) -> dict[str, Tensor]:
    """Weights "w0.NAME", inputs "c0.NAME" by call, cotangents "g0.NAME"; each in memory of its own."""
    found = {f"w{n}.{name}": t for n, each in enumerate(drawn.weights) for name, t in each.items()}
    for n, call in enumerate(drawn.calls):
        found |= {f"c{n}.{name}": t for name, t in call.inputs.items()}
        found |= {} if call.attn_mask is None else {f"c{n}.attn_mask": call.attn_mask}
        found |= {f"c{n}.start_pos": call.start_pos} if isinstance(call.start_pos, Tensor) else {}
    found |= {f"g{n}.{name}": t for n, each in enumerate(drawn.cotangents) for name, t in each.items()}
    return {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in found.items()}


def read_result(folder: Path, name: str) -> tuple[CaseFacts | None, dict[str, Tensor]]:
    """What a worker left of one case: None where it did not come to its end, an error where it cannot be read."""
    facts, tensors = folder / f"{name}.json", folder / f"{name}.safetensors"
    if not facts.is_file() or facts.is_symlink() or tensors.is_symlink():
        return None, {}
    try:
        if facts.stat().st_size > _MAX_JSON_BYTES or tensors.stat().st_size > _MAX_TENSOR_BYTES:
            raise ValueError("larger than any result is")
        return CaseFacts.model_validate_json(facts.read_bytes()), load_file(tensors)
    except ValidationError as error:
        return CaseFacts(error=f"its result cannot be read: {error.errors()[0]['msg']}"), {}
    except (OSError, ValueError, SafetensorError) as error:
        return CaseFacts(error=f"its result cannot be read: {error}"), {}
