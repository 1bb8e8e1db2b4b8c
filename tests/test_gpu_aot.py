"""SPEC K4 on an NVIDIA GPU: kernels compiled ahead of time, in a process without Triton and without a compiler."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.cases import Shape
from tests.kernels import seeded
from tests.tiles_tier import Case, draw_call, draw_stack

pytestmark = [pytest.mark.gpu, pytest.mark.upgrade]

TARGET = Case("cross", Shape(1, 186, 64, 8, 16), torch.bfloat16, 512)
CASES = (
    TARGET,
    replace(TARGET, shape=Shape(32, 186, 64, 8, 16), mask="random", start="tensor"),
    replace(TARGET, shape=Shape(48, 186, 64, 8, 16)),
    replace(TARGET, dtype=torch.float32),
)
WITHOUT_TRITON = """
import sys, time
sys.modules["triton"] = None
import torch, mmdit
given = torch.load(sys.argv[1], weights_only=False)
stack = mmdit.MMDiT(given["config"]).eval().to("cuda", given["dtype"])
stack.load_state_dict(given["state"])
with torch.no_grad():
    outputs = stack(**given["inputs"])
    launches = mmdit.explain(stack, **given["inputs"]).launches
    torch.save((list(outputs), launches), sys.argv[2])
"""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cubins_give_the_jits_bits_where_neither_triton_nor_a_compiler_is(
    mmdit: ModuleType, case: Case, tmp_path: Path, tree: Path, seed: int
) -> None:
    rng = seeded(seed)
    stack = draw_stack(case, rng).to("cuda", case.dtype)
    inputs, options = draw_call(case, "cuda", rng)
    call: dict[str, Any] = {**inputs, **options}
    with torch.no_grad():
        want = stack(**call)
        launches = mmdit.explain(stack, **call).launches
    major, minor = torch.cuda.get_device_capability()
    (tmp_path / "config.json").write_text(json.dumps(vars(stack.config)))
    aot = import_module("mmdit.deploy.aot")
    aot.main(
        [
            *("--target", f"cuda:{10 * major + minor * (major > 8)}", "--output", str(tmp_path / "kernels")),
            *("--batch", str(case.shape.batch), "--dtype", str(case.dtype).removeprefix("torch.")),
            *("--config", str(tmp_path / "config.json")),
            *("--length", str(case.shape.length), "--context", str(case.shape.context)),
        ]
    )
    given = {"config": stack.config, "dtype": case.dtype, "state": stack.state_dict(), "inputs": call}
    torch.save(given, tmp_path / "given.pt")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MMDIT")}
    environment |= {"MMDIT_KERNELS": str(tmp_path / "kernels"), "PYTHONPATH": str(tree), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON, tmp_path / "given.pt", tmp_path / "found.pt"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    got, launched = torch.load(tmp_path / "found.pt", weights_only=False)
    assert launched == launches
    for found, wanted in zip(got, want, strict=True):
        assert (found is None) == (wanted is None)
        assert wanted is None or torch.equal(found, wanted)
