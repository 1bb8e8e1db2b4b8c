"""Checkpoints: what was saved comes back, and what does not fit is said tensor by tensor."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evaluation.store.checkpoint import load_checkpoint, save_checkpoint
from evaluation.store.errors import CheckpointMismatch, StoreError


def test_values_dtypes_and_layouts_come_back(tmp_path: Path):
    shared = torch.randn(4, 6)
    tensors = {
        "transposed": shared.t(),
        "plain": shared,
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "gaps": torch.randn(4, 8)[:, ::2],
        "half": torch.randn(3).bfloat16(),
        "empty": torch.empty(0, 2),
        "scalar": torch.tensor(3),
    }
    save_checkpoint(tmp_path / "c.safetensors", tensors, {"step": 7, "task": "flow"})
    found = load_checkpoint(tmp_path / "c.safetensors", tensors)
    assert found.values == {"step": 7, "task": "flow"}
    for name, tensor in tensors.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype
    assert found.tensors["transposed"].stride() == (1, 6)
    assert found.tensors["channels_last"].is_contiguous(memory_format=torch.channels_last)
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


def test_every_difference_is_said(tmp_path: Path):
    saved = {"same": torch.ones(2), "dtype": torch.ones(2), "shape": torch.ones(2, 3), "layout": torch.ones(2, 3)}
    save_checkpoint(tmp_path / "c.safetensors", saved | {"extra": torch.ones(1)})
    expected = saved | {
        "dtype": torch.ones(2).half(),
        "shape": torch.ones(2, 4),
        "layout": torch.ones(3, 2).t(),
        "absent": torch.ones(5),
    }
    with pytest.raises(CheckpointMismatch) as stop:
        load_checkpoint(tmp_path / "c.safetensors", expected)
    assert stop.value.differences == [
        "absent: missing, expected float32 (5,)",
        "dtype: expected dtype float16, got float32",
        "extra: not expected, got float32 (1,)",
        "layout: expected strides (1, 2), got (3, 1)",
        "shape: expected shape (2, 4), got (2, 3)",
        "shape: expected strides (4, 1), got (3, 1)",
    ]


def test_what_is_no_checkpoint_is_refused(tmp_path: Path):
    file = tmp_path / "c.safetensors"
    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(StoreError, match=r"expected a checkpoint of format .*, got \(None, None\)"):
        load_checkpoint(file)
    save_checkpoint(file, {"a": torch.ones(100)})
    whole = file.read_bytes()
    for size in (0, 5, 20, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(StoreError, match="no safetensors file"):
            load_checkpoint(file)
    with pytest.raises(StoreError, match="no safetensors file"):
        load_checkpoint(tmp_path / "absent")
