"""Options of a command from a TOML file: each key is an option's name without its dashes."""

import argparse
import tomllib
from pathlib import Path


def add_config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.toml",
        help="options from a file, each by its name without dashes: a text, a number, true, or a list of them for one "
        "that may be repeated; those on the command line count more",
    )


def parse_with_config(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """As parser.parse_args, which what the file that --config names says comes before. A file that cannot be read, an
    option that is not there, and a value that it does not take are usage errors.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_config_option(finder)
    file = finder.parse_known_args(arguments)[0].config
    if file is None:
        return parser.parse_args(arguments)
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
        return parser.parse_args([*options_of(found), *arguments])
    except (OSError, UnicodeError, ValueError) as error:
        parser.error(f"--config {file}: {error}")


def options_of(values: dict[str, object]) -> list[str]:
    """A command line of these values by name: true is the option alone, false none, a list one for each.

    Raises ValueError for a table or a date, and for a key that is no option's name.
    """
    found: list[str] = []
    for name, value in values.items():
        if name == "config" or name.startswith("-"):
            raise ValueError(f"expected options' names, got {name!r}")
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, bool | int | float | str):
                raise ValueError(f"{name}: expected a text, a number, true, false or a list of them, got {value!r}")
            if each is True:
                found.append(f"--{name}")
            elif each is not False:
                found.append(f"--{name}={each}")
    return found
