"""SPEC G1, G2, G6, G7: tracing, the registry, verification with planted wrong passes, and the report."""

import json
import sys
from functools import cache
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, fx, nn

from tests.graph_models import PLANTED, Everything, aten, call_after, first, graph_package

pytestmark = pytest.mark.upgrade


@cache
def optimizer() -> Any:
    torch.manual_seed(0)
    return graph_package().GraphOptimizer(Everything(), torch.randn(4, 6), repeats=0)


def planted(name: str) -> str:
    """The name of a registered pass that does what PLANTED says."""
    package = graph_package()

    class Wrong(package.OptimizationPass):
        def analyze(self, graph_module: fx.GraphModule) -> list[Any]:
            return [package.Opportunity("planted", (), name)]

        def transform(self, graph_module: fx.GraphModule, opportunities: list[Any]) -> fx.GraphModule:
            PLANTED[name](graph_module)
            graph_module.recompile()
            return graph_module

    Wrong.__qualname__ = f"Wrong-{name}"
    package.register_pass(f"planted-{name}")(Wrong)
    return f"planted-{name}"


@pytest.mark.parametrize("name", PLANTED)
def test_a_wrong_pass_is_caught_named_and_rolled_back(name: str) -> None:
    opt = optimizer()
    weights = {key: t.clone() for key, t in opt.model.state_dict().items()}
    x = torch.randn(3, 6)
    made = opt.optimize([planted(name), "redundant_ops"])
    wrong, right = opt.report().to_dict()["passes"]
    assert wrong["rolled_back"], f"{name} was not caught"
    assert wrong["name"] == f"planted-{name}"
    assert wrong["name"] in str(opt.report())
    assert right["rolled_back"] is None, right
    for mode in (True, False):
        torch.manual_seed(1)
        want = opt.model.train(mode)(x)
        opt.model.load_state_dict(weights)
        torch.manual_seed(1)
        got = made.train(mode)(x)
        opt.model.load_state_dict(weights)
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_at_least_20_wrong_passes_are_planted() -> None:
    assert len(PLANTED) >= 20
    assert graph_package().known_passes()


def test_a_wrong_pass_raises_where_the_optimiser_is_strict() -> None:
    with pytest.raises(graph_package().VerificationError, match="planted-gelu-for-silu"):
        optimizer().optimize([planted("gelu-for-silu")], strict=True)


def test_the_input_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = Everything().eval()
    before = {key: t.clone() for key, t in model.state_dict().items()}
    opt = graph_package().GraphOptimizer(model, (torch.randn(4, 6),), repeats=1)
    opt.optimize(["redundant_ops"])
    assert not model.training
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_model_trained_in_between_keeps_what_it_learnt() -> None:
    torch.manual_seed(0)
    model, x = Everything(), torch.randn(4, 6)
    opt = graph_package().GraphOptimizer(model, x, repeats=0, batches=())
    with torch.no_grad():
        model.up.weight.add_(1)
    model.train()(x)  # moves the running statistics
    state = {key: t.clone() for key, t in model.state_dict().items()}
    opt.optimize(["redundant_ops"], strict=True)
    assert all(torch.equal(t, state[key]) for key, t in model.state_dict().items())


def test_the_optimised_model_shares_its_weights_and_takes_any_batch() -> None:
    opt = optimizer()
    made = opt.optimize(["redundant_ops"])
    assert {id(p) for p in made.parameters()} == {id(p) for p in opt.model.parameters()}
    assert made.eval()(torch.randn(7, 6))[0].shape == (7, 6)


def test_an_unknown_pass_lists_the_known_and_the_near_one() -> None:
    package = graph_package()
    with pytest.raises(package.UnknownPassError, match=r"redundant_ops.*did you mean 'redundant_ops'"):
        optimizer().optimize(["redundant_op"])
    with pytest.raises(package.UnknownPassError, match="budgett"):
        optimizer().optimize(["redundant_ops"], budgett=1)


def test_a_name_belongs_to_one_pass() -> None:
    package = graph_package()

    class Other(package.OptimizationPass):
        def analyze(self, graph_module: fx.GraphModule) -> list[Any]:
            return []

        def transform(self, graph_module: fx.GraphModule, opportunities: list[Any]) -> fx.GraphModule:
            return graph_module

    with pytest.raises(ValueError, match="redundant_ops"):
        package.register_pass("redundant_ops")(Other)


def test_a_plug_in_pass_of_a_users_own_module_works_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = graph_package(), ModuleType("my_passes")

    class Halve(package.OptimizationPass):
        """x * 2 as x + x."""

        def analyze(self, graph_module: fx.GraphModule) -> list[Any]:
            return [package.Opportunity("doubling", (first(graph_module, aten.mul.Tensor).name,), "by adding")]

        def transform(self, graph_module: fx.GraphModule, opportunities: list[Any]) -> fx.GraphModule:
            node = first(graph_module, aten.mul.Tensor)
            node.target, node.args = aten.add.Tensor, (node.args[0], node.args[0])
            return graph_module

    module.Halve = Halve
    monkeypatch.setitem(sys.modules, "my_passes", module)
    made = optimizer().optimize(["my_passes:Halve"])
    assert optimizer().report().to_dict()["passes"][0]["rolled_back"] is None
    assert not [n for n in made.eval_graph.graph.nodes if n.target is aten.mul.Tensor]
    with pytest.raises(package.UnknownPassError, match="nowhere"):
        optimizer().optimize(["nowhere:Halve"])


def test_a_pass_runs_in_torchs_own_pass_manager() -> None:
    from torch.fx.passes.infra.pass_manager import PassManager

    graph_module = optimizer().graphs["eval"]
    twice = graph_package().find_pass("redundant_ops")()
    result = PassManager([twice, twice])(graph_module)
    x = torch.randn(4, 6)
    assert torch.equal(result.graph_module(x)[0], graph_module(x)[0])


class ByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x  # the guilty line


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x.view(-1).add_(1)  # the guilty line
        return x * 2


class Unsupported(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + float(x.numpy().sum())  # the guilty line


@pytest.mark.parametrize("method", ["export", "fx"])
@pytest.mark.parametrize(
    ("model", "way_out"), [(ByValue, "torch.where|export"), (InPlace, "clone"), (Unsupported, "torch.compile")]
)
def test_what_cannot_be_traced_is_told_with_file_line_and_a_way_out(
    model: type[nn.Module], way_out: str, method: str
) -> None:
    with pytest.raises(graph_package().TraceError, match=f"(?s)way out:.*({way_out})") as raised:
        graph_package().GraphOptimizer(model(), torch.randn(3, 4), method=method)
    assert __file__ in raised.value.location
    assert "the guilty line" in raised.value.location


def test_the_report_is_text_a_dict_and_a_picture() -> None:
    torch.manual_seed(0)
    opt = graph_package().GraphOptimizer(Everything(), torch.randn(4, 6), device="cpu", repeats=2)
    opt.optimize(["redundant_ops"])
    told = json.loads(json.dumps(opt.report().to_dict()))["passes"][0]
    assert told["nodes_before"]["train"]["call_function"] > 5
    assert told["cost_before"]["train"]["seconds"] > 0
    assert told["cost_after"]["eval"]["peak_bytes"] > 0
    picture = ElementTree.fromstring(opt.report().to_svg())
    boxes = picture.findall(".//{http://www.w3.org/2000/svg}rect")
    nodes = [told[f"nodes_{when}"]["eval"] for when in ("before", "after")]
    assert len(boxes) == sum(n for kinds in nodes for kind, n in kinds.items() if kind != "get_attr")
    assert "redundant_ops" in str(opt.report())


def test_a_pass_that_changes_the_graph_in_analyze_is_rolled_back() -> None:
    package = graph_package()

    class Hasty(package.OptimizationPass):
        def analyze(self, graph_module: fx.GraphModule) -> list[Any]:
            call_after(first(graph_module, aten.silu.default), aten.neg.default)
            return []

        def transform(self, graph_module: fx.GraphModule, opportunities: list[Any]) -> fx.GraphModule:
            return graph_module

    package.register_pass("hasty")(Hasty)
    optimizer().optimize(["hasty"])
    assert "analyze" in optimizer().report().to_dict()["passes"][0]["rolled_back"]
