"""The package's exceptions: each names the argument, what was expected and what came."""


class MMDiTError(Exception):
    """Base of every error this package raises on purpose.

    Attributes:
        argument: name of the offending argument, as in the signature.
        expected: what would have been accepted.
        got: what came.
    """

    def __init__(self, argument: str, expected: str, got: str) -> None:
        super().__init__(f"{argument}: expected {expected}, got {got}")
        self.argument = argument
        self.expected = expected
        self.got = got

    def __reduce__(self):
        return type(self), (self.argument, self.expected, self.got)


class ConfigError(MMDiTError, ValueError):
    """A constructor argument that no module can be built from."""


class ShapeError(MMDiTError, ValueError):
    """A tensor of the wrong rank or size."""


class DTypeError(MMDiTError, TypeError):
    """Not a tensor, a dtype that is not supported, or dtypes that do not go together."""


class DeviceError(MMDiTError, ValueError):
    """Tensors on different devices."""


class MissingInputError(MMDiTError, ValueError):
    """An input that this module was built to need."""


class UnexpectedInputError(MMDiTError, ValueError):
    """An input that this module was built without, and would have to ignore."""


class PositionError(MMDiTError, IndexError):
    """A position outside the rotary table."""


class KernelsError(MMDiTError, RuntimeError):
    """Kernels compiled ahead of time that cannot be used here."""
