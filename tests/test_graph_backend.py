"""SPEC G8: torch.compile(backend="mmdit")."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import ROOT
from tests.graph_models import graph_package, in_mode
from tests.numerics import TOLERANCE, assert_close
from tests.vanilla import vanilla

pytestmark = pytest.mark.upgrade

QUICK = {"inner": "aot_eager"}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def block() -> nn.Module:
    torch.manual_seed(0)
    return vanilla().MMDiTBlock(16, 2, dim_feedforward=24, dropout=0.0, conditioning=True)


def values(call: Any, model: nn.Module, batch: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(batch)
    x, y = torch.randn(batch, 5, 16, generator=rng), torch.randn(batch, 16, generator=rng)
    out = call(x.requires_grad_(), y)[0]
    return [out, *torch.autograd.grad(out.square().sum(), [x, *model.parameters()])]


def check_training(options: dict[str, Any], batches: tuple[int, ...]) -> None:
    """Outputs and gradients at each batch size; two compilations at most, one of them for any size."""
    seen, model = len(graph_package().compilations()), block()
    compiled = torch.compile(model, backend="mmdit", fullgraph=True, options=options)
    for batch in batches:
        for got, want in zip(values(compiled, model, batch), values(model, model, batch), strict=True):
            assert_close(got, want, 2 * TOLERANCE[torch.float32])
    made = graph_package().compilations()[seen:]
    assert len(made) == min(2, len(batches))
    for compilation in made:
        assert compilation.problem is None
        assert compilation.nodes_after["mmdit"] == 4, compilation


def test_what_drops_is_left_where_no_kernel_can_draw_it() -> None:
    graph_package()
    model = in_mode(block(), training=True, dropout=1.0)
    compiled = torch.compile(model, backend="mmdit", fullgraph=True, options=QUICK)
    x, y = torch.randn(2, 5, 16), torch.randn(2, 16)
    with torch.no_grad():
        assert_close(compiled(x, y)[0], model(x, y)[0], TOLERANCE[torch.float32])
    (refused,) = [o.refused for o in graph_package().compilations()[-1].opportunities if o.action == "to stack"]
    assert refused.startswith("a CPU tensor")


@pytest.mark.slow
def test_a_vanilla_block_is_fused_trains_and_is_compiled_once_for_any_batch() -> None:
    check_training(QUICK, (3, 4, 5, 6))


@pytest.mark.slow
def test_inductor_takes_what_is_left() -> None:
    graph_package()

    def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return torch.tanh(F.layer_norm(x, (16,), eps=1e-6) * (1 + scale) + shift)

    inputs = [torch.randn(shape).requires_grad_() for shape in ((3, 5, 16), (3, 1, 16), (3, 1, 16))]
    out, want = torch.compile(modulated, backend="mmdit", fullgraph=True)(*inputs), modulated(*inputs)
    assert graph_package().compilations()[-1].nodes_after["mmdit"] == 1
    found = [torch.autograd.grad(t.square().sum(), inputs) for t in (out, want)]
    for got, wanted in zip((out, *found[0]), (want, *found[1]), strict=True):
        assert_close(got, wanted, TOLERANCE[torch.float32])


def entry_point() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["entry-points"]["torch_dynamo_backends"]["mmdit"]


def test_it_is_registered_on_import_and_named_as_an_entry_point() -> None:
    graph_package()
    assert "mmdit" in torch._dynamo.list_backends()
    module, _, name = entry_point().partition(":")
    assert callable(getattr(import_module(module), name))


UNIMPORTED = """
import sys, torch
assert "mmdit" not in sys.modules
x = torch.randn(3, 4)
assert torch.equal(torch.compile(torch.sin, backend="mmdit", options={"inner": "eager"})(x), torch.sin(x))
assert len(sys.modules["mmdit.graph"].compilations()) == 1
"""


@pytest.mark.slow
def test_an_installed_package_needs_no_import(tree: Path, tmp_path: Path) -> None:
    installed = tmp_path / "mmdit_kata-0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mmdit-kata\nVersion: 0\n")
    (installed / "entry_points.txt").write_text(f"[torch_dynamo_backends]\nmmdit = {entry_point()}\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tree), str(tmp_path)))}
    command = [sys.executable, "-P", "-c", UNIMPORTED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_passes_and_their_options_are_chosen_and_unknown_ones_raise() -> None:
    graph_package()
    model, x = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4)), torch.randn(8, 4)
    made = torch.compile(model, backend="mmdit", options={**QUICK, "passes": ["recompute"], "budget": 0.0})
    assert_close(made(x), model(x), TOLERANCE[torch.float32])
    torch._dynamo.reset()
    with pytest.raises(Exception, match="budgett"):
        torch.compile(model, backend="mmdit", options={**QUICK, "budgett": 1})(x)


def test_a_graph_break_and_a_model_without_such_parts_still_work() -> None:
    graph_package()

    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.sin(x) * torch.sin(x)
            return x if x.sum() > 0 else -x

    x = torch.randn(3, 4)
    assert torch.equal(torch.compile(Breaks(), backend="mmdit", options=QUICK)(x), Breaks()(x))


def test_a_graph_that_the_passes_cannot_take_is_compiled_all_the_same_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph_package()

    def fail(*_: Any) -> None:
        raise RuntimeError("not today")

    monkeypatch.setattr(import_module("mmdit.graph.backend"), "to_aten", fail)
    x = torch.randn(3, 4)
    assert torch.equal(torch.compile(torch.sin, backend="mmdit", options=QUICK)(x), torch.sin(x))
    assert "not today" in graph_package().compilations()[-1].problem
