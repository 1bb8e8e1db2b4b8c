"""SPEC K4: what the measuring of a cold start does where there is no GPU; it is no test of how fast anything is."""

import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.upgrade


def test_cubins_are_measured_without_a_compiler_and_with_empty_caches(
    mmdit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = import_module("mmdit.deploy.coldstart").environment
    monkeypatch.setenv("MMDIT_FUSED", "0")
    monkeypatch.setenv("CC", "/usr/bin/gcc")
    found = environment("cubins", tmp_path, tmp_path / "kernels")
    assert (found["PATH"], found["MMDIT_KERNELS"]) == ("", str(tmp_path / "kernels"))
    assert not {"CC", "MMDIT_FUSED"} & found.keys()
    assert not list(tmp_path.iterdir())
    assert environment("torch.compile", tmp_path, None)["MMDIT_FUSED"] == "0"
    assert os.environ["MMDIT_FUSED"] == "0"


@pytest.mark.slow
def test_a_process_is_measured_to_its_first_result(mmdit: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_module("mmdit.deploy.coldstart").main(["--device", "cpu", "--way", "eager", "--rounds", "1"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert row[0] == "eager"
    assert all(0 < float(seconds) < 100 for seconds in row[1:])
    assert len(row) == 4


def test_without_a_gpu_it_says_so_and_is_no_success(
    mmdit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert import_module("mmdit.deploy.coldstart").main([]) == 3
    assert "no CUDA device" in capsys.readouterr().err
