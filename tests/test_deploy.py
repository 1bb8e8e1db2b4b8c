"""SPEC K2, N6: every public module and op in every way of deployment, cells of `python -m mmdit.deploy.table`; of the
slower ways some, as the command runs them all.
"""

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.numerics import assert_close

pytestmark = [pytest.mark.upgrade, pytest.mark.filterwarnings("ignore")]

MODULES = (
    *("RMSNorm", "RMSNormWithResidual", "layernorm_adaln", "rmsnorm_adaln", "RMSNormSelfAttention"),
    *("RMSNormSelfAttention, linear", "RMSNormSelfCrossAttention", "MMDiTBlock", "MMDiT"),
)
SOME = {  # the first of a way in a quick run as well, but for ONNX, which test_onnx.py runs
    "export strict": ("rmsnorm_adaln", "RMSNormSelfAttention, linear"),
    "export non-strict": ("RMSNormWithResidual", "MMDiT"),
    "ONNX 18": ("layernorm_adaln",),
    "ONNX 23": ("RMSNormSelfCrossAttention",),
}
CELLS = [
    *[pytest.param(module, way, id=f"{way}-{module}") for way in ("eager", "script", "trace") for module in MODULES],
    *[
        pytest.param(module, way, id=f"{way}-{module}", marks=[pytest.mark.slow] if number or "ONNX" in way else [])
        for way, modules in SOME.items()
        for number, module in enumerate(modules)
    ],
    pytest.param("layernorm_adaln", "AOTInductor CPU", marks=pytest.mark.slow),
    *[
        pytest.param(module, way, id=f"{way}-{module}", marks=pytest.mark.gpu)
        for way, modules in {"AOTInductor GPU": ("MMDiT",), "CUDA graph": MODULES[4:]}.items()
        for module in modules
    ],
]


@pytest.fixture(scope="module")
def cell(mmdit: ModuleType) -> Iterator[Callable[[str, str], float]]:
    columns, subjects = import_module("mmdit.deploy.columns"), import_module("mmdit.deploy.subjects")
    with columns.jobs() as run:
        yield lambda module, way: run(subjects.BY_NAME[module], columns.BY_NAME[way])


@pytest.mark.parametrize(("module", "way"), CELLS)
def test_a_deployed_module_gives_its_numbers_at_other_sizes(
    cell: Callable[[str, str], float], module: str, way: str
) -> None:
    assert cell(module, way) <= import_module("mmdit.deploy.columns").BY_NAME[way].tolerance


def test_the_table_has_every_public_module_and_op(mmdit: ModuleType) -> None:
    rows = {name.partition(",")[0] for name in import_module("mmdit.deploy.subjects").BY_NAME}
    classes = {
        n
        for n in mmdit.__all__
        if isinstance(getattr(mmdit, n), type) and issubclass(getattr(mmdit, n), torch.nn.Module)
    }
    assert rows == (classes - {"GPT2Block"}) | {"layernorm_adaln", "rmsnorm_adaln"}  # of one name less


def test_a_cell_that_is_wrong_or_cannot_be_done_says_so(mmdit: ModuleType) -> None:
    table, subjects = import_module("mmdit.deploy.table"), import_module("mmdit.deploy.subjects")
    column = import_module("mmdit.deploy.columns").BY_NAME["script"]
    subject = subjects.SUBJECTS[0]
    assert table.tell(lambda *_: 1e-7, subject, column) == "1.0e-07"
    assert table.tell(lambda *_: 1e-3, subject, column).startswith("FAIL 1.0e-03")
    assert table.tell(lambda *_: float("nan"), subject, column).startswith("FAIL")
    assert "not finite" in table.tell(lambda *_: (_ for _ in ()).throw(ValueError("not finite")), subject, column)


def fused(program: Any) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if str(node.target).startswith("mmdit.")}


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [True, False], ids=["with-gradients", "without"])
def test_ops_stay_whole_in_an_exported_graph_and_come_apart_on_request(recorded: bool, mmdit: ModuleType) -> None:
    deploy, subjects = import_module("mmdit.deploy.export"), import_module("mmdit.deploy.subjects")
    subject = subjects.BY_NAME["MMDiTBlock"]
    module, inputs = subject.module().requires_grad_(recorded), subject.inputs(subjects.EXAMPLE)
    with torch.set_grad_enabled(recorded):
        program = deploy.export(module, inputs, subject.axes(), whole=True)
    assert fused(program) == {"mmdit.norm_adaln.default" if recorded else "mmdit.stack.default"}
    apart = deploy.decompose(program)
    assert fused(apart) == set()
    other = subject.inputs(subjects.OTHERS[0])
    for run in (program.module(), apart.module()):
        for got, want in zip(run(**other), module(**other), strict=True):
            assert_close(got, want, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("opset", "dtype", "options"),
    [
        pytest.param(18, "float32", ["--external-data", "--mask"], id="18-float32-external"),
        pytest.param(23, "float16", ["--mask", "--positions"], id="23-float16"),
    ],
)
def test_the_onnx_command_writes_a_checked_model_with_its_metadata(
    mmdit: ModuleType, tmp_path: Path, opset: int, dtype: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"dim_base": 32, "num_layers": 1, "num_attn_head": 2, "dim_feedforward": 64}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    output = tmp_path / "model.onnx"
    arguments = ["--config", str(tmp_path / "config.json"), "--output", str(output), "--opset", str(opset)]
    assert import_module("mmdit.deploy.onnx").main([*arguments, "--dtype", dtype, *options]) == 0
    assert "batch 3, length 40, context 9: relative error" in capsys.readouterr().out
    model = import_module("onnx").load(output, load_external_data=False)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(metadata["config"]).items() >= sizes.items()
    assert (metadata["dtype"], model.opset_import[0].version) == (dtype, opset)
    assert (tmp_path / "model.onnx.data").exists() == ("--external-data" in options)
    operators = {node.op_type for node in model.graph.node}
    assert ("Attention" in operators) == (opset == 23)
