"""The optimiser: traces a model in both modes, runs passes, verifies each against the model, and reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.passes.infra.pass_manager import PassManager
from torch.utils._pytree import tree_map

from mmdit.errors import ConfigError
from mmdit.graph.errors import TraceError, VerificationError
from mmdit.graph.measure import Cost, measure
from mmdit.graph.passes.base import Opportunity, OptimizationPass, copy_graph, make_passes
from mmdit.graph.report import PassReport, Report, kinds_of
from mmdit.graph.trace import ANOTHER_WAY, batch_of, in_mode, split_inputs, trace
from mmdit.graph.verify import Verdict, Verifier, draw_cases

MODES = {"train": True, "eval": False}


class OptimizedModel(nn.Module):
    """A model's graphs in training and in evaluation mode, of which it runs the one of its own mode.

    Called as the model was. Its parameters and buffers are the model's own.
    """

    def __init__(self, train_graph: nn.Module, eval_graph: nn.Module, training: bool) -> None:
        super().__init__()
        self.train_graph, self.eval_graph = train_graph, eval_graph
        self.train(training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (self.train_graph if self.training else self.eval_graph)(*args, **kwargs)


@dataclass(frozen=True)
class _Step:
    """What one pass did to one mode's graph."""

    graph_module: fx.GraphModule
    opportunities: list[Opportunity]
    verdict: Verdict


class GraphOptimizer:
    """Optimises a model by passes, each verified against the model itself.

    Args:
        model: any traceable module; never modified.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or a pair of both.
            Where the first axis of the first tensor is at least 2 it is the batch, and any batch size can be run.
        device: where to bring the inputs; None for where the model is, which must be the same.
        method: how to trace, "export" or "fx".
        tolerance: relative L2 error that a pass may cause; None for the dtype's own.
        batches: other batch sizes to verify at.
        repeats: timed calls for the report; 0 measures nothing.
        seed: of the inputs drawn for verification, and of what is random in the model.

    Raises TraceError for a model that cannot be traced, and ConfigError for a device that the model is not on.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        device: str | torch.device | None = None,
        *,
        method: str = "export",
        tolerance: float | None = None,
        batches: Sequence[int] = (2, 5),
        repeats: int = 5,
        seed: int = 0,
    ) -> None:
        weight = next(iter(model.parameters()), None)
        if device is not None and weight is not None and weight.device.type != torch.device(device).type:
            raise ConfigError("device", f"the model's device, {weight.device}", str(device))
        arguments = split_inputs(example_inputs)
        if device is not None:
            arguments = tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, arguments)
        self.model, self.arguments, self.repeats = model, arguments, repeats
        self.graphs: dict[str, fx.GraphModule] = {}
        self.verifiers: dict[str, Verifier] = {}
        for mode, training in MODES.items():
            with in_mode(model, training):
                traced = trace(model, arguments, method)
                free = method == "fx" or traced.batch is None
                self.batch = traced.batch
                cases = draw_cases(arguments, [n for n in batches if free and n != batch_of(arguments)], seed)
                self.graphs[mode] = traced.graph_module
                self.verifiers[mode] = Verifier(model, cases, tolerance, seed)
                self._check_traced(mode, method)
        self._report: Report | None = None

    def _check_traced(self, mode: str, method: str) -> None:
        """Raise TraceError where the graph itself is not the model."""
        verdict = self.verifiers[mode].judge(self.graphs[mode])
        if not verdict.passed:
            way_out = 'trace with method="export"' if method == "fx" else ANOTHER_WAY
            raise TraceError(method, f"a {mode} graph that is not the model: {verdict}", "no single line", way_out)

    def optimize(self, passes: Sequence[str], *, strict: bool = False, **options: Any) -> OptimizedModel:
        """The model after these passes, in their order; one that fails verification is left out.

        Args:
            passes: registered names, or "module:Class".
            strict: raise VerificationError for a pass that fails, instead of leaving it out and telling in the report.
            options: each goes to the passes whose constructor takes it, as budget to "recompute".

        Raises UnknownPassError for an unknown name or option.
        """
        made = make_passes(list(passes), options)
        for verifier in self.verifiers.values():
            verifier.refresh()
        graphs, reports = dict(self.graphs), []
        costs = self._costs(graphs)
        for optimization in made:
            steps, problem = self._step(optimization, graphs)
            before = graphs
            if problem is None:
                graphs = {mode: step.graph_module for mode, step in steps.items()}
            elif strict:
                raise VerificationError("passes", f"{optimization.name} to keep the model", problem)
            after = self._costs(graphs) if problem is None else costs
            reports.append(_told(optimization.name, before, graphs, steps, problem, costs, after, optimization.details))
            costs = after
        self._report = Report(type(self.model).__name__, self.batch, reports, self.graphs, graphs)
        return OptimizedModel(graphs["train"], graphs["eval"], self.model.training)

    def report(self) -> Report:
        """What the last optimize did. Raises ConfigError where there was none."""
        if self._report is None:
            raise ConfigError("report", "a call of optimize before it", "none")
        return self._report

    def _step(
        self, optimization: OptimizationPass, graphs: dict[str, fx.GraphModule]
    ) -> tuple[dict[str, _Step], str | None]:
        """The pass on both modes' graphs, and why it is to be rolled back, if it is."""
        steps: dict[str, _Step] = {}
        for mode, graph_module in graphs.items():
            try:
                steps[mode] = self._try(optimization, graph_module, self.verifiers[mode])
            except Exception as error:
                told = error.__cause__ or error
                problem = f"{mode}: {type(told).__name__}: {told}"
                changed = self.verifiers[mode].restore_weights()
                return steps, problem + (f"; changed the weights {changed}" if changed else "")
            if not steps[mode].verdict.passed:
                return steps, str(steps[mode].verdict)
        return steps, None

    def _try(self, optimization: OptimizationPass, graph_module: fx.GraphModule, verifier: Verifier) -> _Step:
        seen, before = copy_graph(graph_module), str(graph_module.graph)
        shown = str(seen.graph)
        found = optimization.analyze(seen)
        if str(seen.graph) != shown:
            raise RuntimeError("analyze changed the graph")
        taken = [opportunity for opportunity in found if opportunity.refused is None]
        manager = PassManager([_Transform(optimization, taken)], run_checks_after_each_pass=True)
        manager.add_checks(_lint)
        candidate = manager(copy_graph(graph_module)).graph_module
        if str(graph_module.graph) != before:
            raise RuntimeError("transform changed the graph that it was to leave as it was")
        candidate.training = verifier.training
        return _Step(candidate, found, optimization.verify(candidate, verifier))

    def _costs(self, graphs: dict[str, fx.GraphModule]) -> dict[str, Cost]:
        if not self.repeats:
            return {}
        return {mode: measure(g, self.model, self.arguments, self.repeats) for mode, g in graphs.items()}


class _Transform:
    """One pass's transform, with what was found, as torch's PassManager calls it."""

    def __init__(self, optimization: OptimizationPass, taken: list[Opportunity]) -> None:
        self.optimization, self.taken = optimization, taken

    def __call__(self, graph_module: fx.GraphModule) -> Any:
        return PassResult(self.optimization.transform(graph_module, self.taken), bool(self.taken))


def _lint(module: nn.Module) -> None:
    if isinstance(module, fx.GraphModule):
        module.graph.lint()


def _told(
    name: str,
    before: dict[str, fx.GraphModule],
    after: dict[str, fx.GraphModule],
    steps: dict[str, _Step],
    problem: str | None,
    costs: dict[str, Cost],
    costs_after: dict[str, Cost],
    details: dict[str, Any],
) -> PassReport:
    worst = max((s.verdict for s in steps.values()), key=lambda v: v.error, default=None)
    return PassReport(
        name=name,
        rolled_back=problem,
        error=None if worst is None else worst.error,
        where=None if worst is None else worst.where,
        nodes_before={mode: kinds_of(g) for mode, g in before.items()},
        nodes_after={mode: kinds_of(g) for mode, g in after.items()},
        opportunities={mode: tuple(step.opportunities) for mode, step in steps.items()},
        cost_before=costs,
        cost_after=costs_after,
        details=details,
    )
