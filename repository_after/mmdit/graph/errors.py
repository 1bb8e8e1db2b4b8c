"""What can go wrong with a graph; each error says where, and what to do."""

from mmdit.errors import MMDiTError


class GraphError(MMDiTError, RuntimeError):
    """Base of the graph optimiser's errors."""


class UnknownPassError(GraphError, LookupError):
    """A pass, or an option of one, by a name that nothing is registered under."""


class TraceError(GraphError):
    """A model that no graph can be made of: where it stopped, and a way out.

    Attributes:
        location: "file:line: the source there", or "unknown" where nothing of the user's was on the stack.
        way_out: what to change, or what to use instead.
    """

    def __init__(self, method: str, reason: str, location: str, way_out: str) -> None:
        got = f"{reason}\n  at {location}\n  way out: {way_out}"
        super().__init__("model", f"one that {method} can trace", got)
        self.method, self.reason, self.location, self.way_out = method, reason, location, way_out

    def __reduce__(self):
        return type(self), (self.method, self.reason, self.location, self.way_out)


class VerificationError(GraphError):
    """A pass whose result is not the original model; raised only where the optimiser was asked to be strict."""
