"""What the values of the benchmarks' options must be: types for argparse, and sizes that a model can have."""

import argparse
import math
from collections.abc import Callable, Sequence

from pydantic import ValidationError

from evaluation.bench.stack_record import StackCase


def ints_from(least: int) -> Callable[[str], tuple[int, ...]]:
    """An argparse type: ints of at least `least` between commas, each once."""
    return lambda text: tuple(dict.fromkeys(map(int_from(least), text.split(","))))


def names_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """An argparse type: some of these names between commas, each once."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, got {name!r}")
        return names

    return parse


def int_from(least: int) -> Callable[[str], int]:
    """An argparse type: an int of at least `least`."""

    def parse(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
        return int(text)

    return parse


def numbers_from(least: float, most: float) -> Callable[[str], tuple[float, ...]]:
    """An argparse type: numbers between commas, each once, from `least` to `most`."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            numbers = tuple(dict.fromkeys(map(float, text.split(","))))
        except ValueError:
            numbers = (math.nan,)
        if not all(least <= number <= most for number in numbers):
            raise argparse.ArgumentTypeError(f"expected numbers from {least:g} to {most:g}, got {text!r}")
        return numbers

    return parse


def make_case(**sizes: object) -> StackCase:
    """The case of these sizes. Raises ValueError, naming the option, where no model has them."""
    try:
        return StackCase(**sizes)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"--{name}: ".replace("_", "-") for name in first["loc"])
        raise ValueError(where + first["msg"].removeprefix("Value error, ")) from error
