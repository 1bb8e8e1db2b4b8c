"""SPEC G4: activations computed again in backward under a budget: predicted, measured, and bit for bit the same."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.graph_models import Everything, graph_package
from tests.vanilla import vanilla

pytestmark = pytest.mark.upgrade

BUDGETS = (1.0, 0.5, 0.25, 0.0)


class Residual(nn.Module):
    """Layers that keep much and drop at random."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 4 * width),
                nn.GELU(),
                nn.Linear(4 * width, width),
                nn.Dropout(0.2),
            )
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def gradients(module: nn.Module, inputs: tuple[Tensor, ...], parameters: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(7)
    out = module(*inputs)
    out = out if isinstance(out, Tensor) else out[0]
    return [out.detach(), *torch.autograd.grad(out, parameters, torch.ones_like(out), allow_unused=True)]


def check_budgets(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[dict[str, Any]]:
    """One report a budget; outputs and gradients bit-equal to the model's in each."""
    opt = graph_package().GraphOptimizer(model, inputs, repeats=0, batches=())
    parameters, told = list(model.parameters()), []
    want = gradients(model.train(), inputs, parameters)
    for budget in BUDGETS:
        made = opt.optimize(["recompute"], strict=True, budget=budget)
        for g, w in zip(gradients(made.train(), inputs, parameters), want, strict=True):
            assert (g is None and w is None) or torch.equal(g, w), f"other bits at budget {budget}"
        told.append(opt.report().to_dict()["passes"][0])
    details = [report["details"]["train"] for report in told]
    measured = [d["saved_bytes_measured"] for d in details]
    assert measured == sorted(measured, reverse=True)
    assert measured[0] == details[0]["saved_bytes_before"]
    for d in details:
        assert abs(d["saved_bytes_predicted"] - d["saved_bytes_measured"]) <= 0.1 * d["saved_bytes_measured"], d
    return told


def test_saved_bytes_keep_the_budget_and_the_prediction_and_no_bit_changes() -> None:
    torch.manual_seed(0)
    told = check_budgets(Residual(6, 16), (torch.randn(24, 16),))
    for report in told:
        details = report["details"]["train"]
        assert details["saved_bytes_measured"] <= details["budget_bytes"]


@pytest.mark.slow
def test_a_vanilla_block_keeps_the_prediction_and_no_bit_changes() -> None:
    torch.manual_seed(0)
    block = vanilla().MMDiTBlock(16, 2, dim_feedforward=64, conditioning=True)
    check_budgets(block, (torch.randn(2, 9, 16), torch.randn(2, 16)))


def test_the_peak_falls_with_what_is_kept() -> None:
    torch.manual_seed(0)
    model, x = Residual(8, 16), torch.randn(64, 16)
    opt = graph_package().GraphOptimizer(model, x, repeats=1, batches=())
    opt.optimize(["recompute"], budget=0.3)
    cost = opt.report().to_dict()["passes"][0]
    assert cost["cost_after"]["train"]["peak_bytes"] < 0.75 * cost["cost_before"]["train"]["peak_bytes"]


def test_batch_norms_statistics_are_updated_once_and_it_is_told_why_it_is_kept() -> None:
    torch.manual_seed(0)
    opt = graph_package().GraphOptimizer(Everything(), torch.randn(4, 6), repeats=0)
    opt.optimize(["recompute"], strict=True, budget=0.0)
    told = opt.report().to_dict()["passes"][0]["opportunities"]["train"]
    assert any("batch_norm" in o["refused"] for o in told if o["refused"])
    assert any(not o["refused"] for o in told)


@pytest.mark.parametrize("budget", [1.5, -1, -0.1, "half", True])
def test_another_budget_raises_and_says_what_is_expected(budget: Any) -> None:
    package = graph_package()
    with pytest.raises(ValueError, match=r"budget: expected a share from 0\.0 to 1\.0"):
        package.find_pass("recompute")(budget=budget)


def test_a_budget_may_be_bytes() -> None:
    opt = graph_package().GraphOptimizer(Residual(2, 8), torch.randn(8, 8), repeats=0, batches=())
    opt.optimize(["recompute"], strict=True, budget=2000)
    details = opt.report().to_dict()["passes"][0]["details"]["train"]
    assert details["saved_bytes_measured"] <= details["budget_bytes"] == 2000
