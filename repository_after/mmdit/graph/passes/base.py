"""What a pass is, and the registry that finds passes by name."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from typing import Any, ClassVar

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from mmdit.errors import ConfigError
from mmdit.graph.errors import UnknownPassError

_passes: dict[str, type["OptimizationPass"]] = {}


@dataclass(frozen=True)
class Opportunity:
    """Something that a pass can do, or, where `refused` says why, cannot.

    kind: what it is, as "common subexpression"; nodes: names of the graph's nodes it is about; action: what is done.
    """

    kind: str
    nodes: tuple[str, ...]
    action: str
    refused: str | None = None


class OptimizationPass(PassBase):
    """A rewrite of a graph. Subclasses say what they would do (analyze) and do it (transform).

    The optimiser calls analyze on a copy of the graph, transform with what analyze found and did not refuse, on
    another copy, and then verify; what fails any of them is rolled back.
    """

    name: ClassVar[str]

    @property
    def details(self) -> dict[str, Any]:
        """What the report shall tell of this run beside opportunities, by mode."""
        return {}

    @abstractmethod
    def analyze(self, graph_module: fx.GraphModule) -> list[Opportunity]:
        """All opportunities, also the refused. Changes nothing."""

    @abstractmethod
    def transform(self, graph_module: fx.GraphModule, opportunities: list[Opportunity]) -> fx.GraphModule:
        """The graph with these opportunities taken; graph_module itself may be changed and returned."""

    def verify(self, candidate: fx.GraphModule, verifier: Any) -> Any:
        """The verifier's verdict on candidate beside the original model; a pass may add checks of its own."""
        return verifier.judge(candidate)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """As torch's PassManager calls it: analyze and transform; the input is left as it was."""
        graph_module = copy_graph(graph_module)
        taken = [found for found in self.analyze(graph_module) if found.refused is None]
        return PassResult(self.transform(graph_module, taken), bool(taken))


def register_pass(name: str) -> Callable[[type[OptimizationPass]], type[OptimizationPass]]:
    """Class decorator: make a pass known by name. Raises ConfigError for a name that another class has."""

    def register(kind: type[OptimizationPass]) -> type[OptimizationPass]:
        known = _passes.get(name, kind)
        if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
            raise ConfigError("name", "a name that no other pass has", f"{name!r}, which is {known.__qualname__}")
        kind.name = name
        _passes[name] = kind
        return kind

    return register


def known_passes() -> tuple[str, ...]:
    """The registered names."""
    return tuple(sorted(_passes))


def find_pass(name: str) -> type[OptimizationPass]:
    """The pass of a registered name, or of "module:Class" for one of your own that is not registered.

    Raises UnknownPassError, which lists the known names.
    """
    module, separator, attribute = name.partition(":")
    if separator:
        try:
            kind = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UnknownPassError("passes", '"module:Class" that can be imported', f"{name!r} ({error})") from error
        if not (isinstance(kind, type) and issubclass(kind, OptimizationPass)):
            raise UnknownPassError("passes", "a subclass of OptimizationPass", repr(name))
        if not hasattr(kind, "name"):
            kind.name = name
        return kind
    if name not in _passes:
        near = get_close_matches(name, _passes, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownPassError("passes", f"one of {known_passes()}, or 'module:Class'", f"{name!r}{hint}")
    return _passes[name]


def make_passes(names: list[str], options: dict[str, Any]) -> list[OptimizationPass]:
    """The passes by name, each with those of the options that its constructor takes.

    Raises UnknownPassError for a name, or for an option that none of them takes.
    """
    kinds = [find_pass(name) for name in names]
    taken = {kind: set(signature(kind).parameters) for kind in kinds}
    unknown = [option for option in options if not any(option in names for names in taken.values())]
    if unknown:
        accepted = sorted(set().union(*taken.values())) if taken else []
        raise UnknownPassError(unknown[0], f"an option of {names}: one of {accepted}", repr(options[unknown[0]]))
    return [kind(**{k: v for k, v in options.items() if k in taken[kind]}) for kind in kinds]


def copy_graph(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The same graph in a module of its own; weights and submodules are shared."""
    graph = fx.Graph()
    output = graph.graph_copy(graph_module.graph, {}, return_output_node=True)
    graph.output(output[0]).meta.update(output[1].meta)
    graph.set_codegen(graph_module.graph._codegen)
    made = fx.GraphModule(graph_module, graph, type(graph_module).__name__)
    made.training = graph_module.training
    return made
