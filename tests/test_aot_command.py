"""SPEC K4: the command that compiles kernels ahead of time, and which it compiles."""

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.upgrade

TINY = {"dim_base": 32, "num_attn_head": 2, "dim_feedforward": 64, "num_layers": 1}
OF_MODULES = {"norm_adaln_forward", "joint_attention", "pack_mask", "modulation", "qkv", "rows"}


@pytest.mark.slow
def test_a_model_of_a_file_is_compiled(mmdit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    sizes = ["--batch", "1", "--length", "5", "--context", "3", "--dtype", "float16"]
    options = ["--target", "cuda:90", "--config", str(tmp_path / "config.json"), "--output", str(tmp_path / "kernels")]
    assert import_module("mmdit.deploy.aot").main([*options, *sizes]) == 0
    manifest = json.loads((tmp_path / "kernels" / "manifest.json").read_text())
    assert f"{len(manifest['kernels'])} kernels" in capsys.readouterr().out
    assert {entry["kernel"].partition(":")[2] for entry in manifest["kernels"]} >= {"qkv_kernel", "rows_kernel"}
    assert all((tmp_path / "kernels" / entry["cubin"]).is_file() for entry in manifest["kernels"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--output", "DIR", "--config", "missing.json"], "missing.json"),
        (["--modules", "--check"], "--modules: expected --output, got none"),
        (["--output", "DIR", "--target", "cuda:75"], "invalid choice: 'cuda:75'"),
    ],
    ids=["no-such-file", "modules-without-output", "unknown-target"],
)
def test_a_wrong_option_is_named(
    mmdit: ModuleType, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        import_module("mmdit.deploy.aot").main(options)
    assert exit_.value.code == 2
    assert told in capsys.readouterr().err


def test_the_kernels_of_every_module_of_the_table_are_planned(mmdit: ModuleType) -> None:
    planned = import_module("mmdit.deploy.plan").plan_modules(90)
    assert {name.kernel.partition(":")[2].removesuffix("_kernel") for name in planned} == OF_MODULES
