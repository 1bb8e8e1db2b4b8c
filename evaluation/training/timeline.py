"""Where a step's time goes, as files for Perfetto (ui.perfetto.dev) or chrome://tracing."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from evaluation.training.layout import describe

PROFILE, BACKWARD = "profile.trace.json", "backward.trace.json"


@contextmanager
def profiled(file: Path) -> Iterator[None]:
    """Write what torch.profiler sees within: operators, the backward's nodes, kernels and copies."""
    with torch.profiler.profile(record_shapes=True) as profiler:
        yield
    profiler.export_chrome_trace(str(file))


class BackwardSpans:
    """When each node of a backward pass began and ended, by hooks on autograd's graph.

    On a GPU each begins and ends with a synchronisation: the spans are then the nodes' own times, and the whole pass
    is slower than it is.
    """

    def __init__(self, network: nn.Module) -> None:
        self.names = {id(weight): name for name, weight in network.named_parameters()}
        self.on_gpu = next(network.parameters()).is_cuda
        self.spans: list[dict[str, Any]] = []
        self.starts: dict[Node, int] = {}

    def watch(self, loss: Tensor) -> None:
        """Hook every node that loss.backward() will run."""
        seen, found = set(), [loss.grad_fn]
        while found:
            node = found.pop()
            if node is not None and node not in seen:
                seen.add(node)
                found += [following for following, _ in node.next_functions]
                node.register_prehook(lambda _, node=node: self.starts.update({node: self._now()}))
                node.register_hook(lambda _, gradients, node=node: self._end(node, gradients))

    def write(self, file: Path) -> None:
        file.write_text(json.dumps({"traceEvents": self.spans, "displayTimeUnit": "ms"}), encoding="utf-8")

    def _now(self) -> int:
        if self.on_gpu:
            torch.cuda.synchronize()
        return perf_counter_ns()

    def _end(self, node: Node, gradients: tuple[Tensor | None, ...]) -> None:
        end, start = self._now(), self.starts.pop(node)
        told = {
            "weights": self._weights(node),
            "gradients": [describe(g) for g in gradients if g is not None],
        }
        span = {"name": node.name(), "ph": "X", "cat": "backward", "pid": 0, "tid": 0, "args": told}
        self.spans.append(span | {"ts": start / 1000, "dur": (end - start) / 1000})

    def _weights(self, node: Node) -> list[str]:
        """The weights whose gradients this node gives, straight or through one view."""
        near = [n for following, _ in node.next_functions if following for n in (following, *_behind_view(following))]
        return [self.names[id(n.variable)] for n in (node, *near) if id(getattr(n, "variable", None)) in self.names]


def _behind_view(node: Node) -> list[Node]:
    return [n for n, _ in node.next_functions if n] if len(node.next_functions) == 1 else []
