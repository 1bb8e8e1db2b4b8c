"""Which of a test's parameters a quick run keeps."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_unless(keep: Callable[..., bool], values: Iterable[Any]) -> list[Any]:
    """The values as parameters, marked slow but for those that `keep` is true of; a tuple is several arguments."""
    several = [value if type(value) is tuple else (value,) for value in values]
    return [pytest.param(*each, marks=[] if keep(*each) else pytest.mark.slow) for each in several]
