"""Checkpoints: safetensors with a header of our own. What does not fit on load is said tensor by tensor."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from evaluation.store.errors import CheckpointMismatch, StoreError
from evaluation.store.models import Scalar

FORMAT = "mmdit-kata-checkpoint"
VERSION = "1"


class Checkpoint(NamedTuple):
    tensors: dict[str, Tensor]  # in the layouts that they were saved with
    values: dict[str, Scalar]


class _Form(NamedTuple):
    """What a tensor is but its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "_Form":
        return cls(tensor.dtype, tuple(tensor.shape), _dense_strides(tensor))


def save_checkpoint(file: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Scalar] | None = None) -> None:
    """Write beside `file`, flush and rename. `values`: the step and what else goes with the tensors."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "values": json.dumps(dict(values or {}), allow_nan=False),
        "strides": json.dumps({name: _Form.of(tensor).strides for name, tensor in tensors.items()}),
    }
    plain = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    temporary = file.with_name(f".{file.name}.new")
    save_file(plain, temporary, header)
    with temporary.open("rb+") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, file)


def load_checkpoint(file: Path, expected: Mapping[str, Tensor] | None = None) -> Checkpoint:
    """What save_checkpoint wrote, on the CPU.

    `expected`: tensors, as of a state_dict, that the checkpoint's must agree with in names, dtypes, shapes and layouts;
    raises CheckpointMismatch with every difference. Raises StoreError for a file that is no checkpoint of this version.
    """
    try:
        with safe_open(file, "pt") as found:
            header = found.metadata() or {}
            stored = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{file} is no safetensors file that can be read: {error}") from error
    form = header.get("format"), header.get("version")
    if form != (FORMAT, VERSION):
        raise StoreError(f"{file}: expected a checkpoint of format {(FORMAT, VERSION)}, got {form}")
    strides = json.loads(header["strides"])
    tensors = {name: _laid_out(tensor, tuple(strides[name])) for name, tensor in stored.items()}
    differences = [] if expected is None else _differences(tensors, expected)
    if differences:
        raise CheckpointMismatch(str(file), differences)
    return Checkpoint(tensors, json.loads(header["values"]))


def _differences(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    lines = []
    for name in sorted({*tensors, *expected}):
        if name not in tensors:
            lines.append(f"{name}: missing, expected {_told(_Form.of(expected[name]))}")
        elif name not in expected:
            lines.append(f"{name}: not expected, got {_told(_Form.of(tensors[name]))}")
        else:
            wanted, got = _Form.of(expected[name]), _Form.of(tensors[name])
            pairs = zip(_Form._fields, wanted, got, strict=True)
            lines += [f"{name}: expected {field} {_plain(w)}, got {_plain(g)}" for field, w, g in pairs if w != g]
    return lines


def _told(form: _Form) -> str:
    return f"{_plain(form.dtype)} {_plain(form.shape)}"


def _plain(value: object) -> str:
    return str(value).removeprefix("torch.")


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """The strides of a copy that keeps the layout but has neither gaps nor overlaps."""
    return torch.empty_like(tensor, device="meta").stride()


def _laid_out(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    if tensor.stride() == strides:
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)
