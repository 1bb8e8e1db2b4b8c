"""Take a function out of a lesson, with what it needs of the same lesson, as a module of its own."""

import ast
import re
from collections.abc import Mapping, Sequence
from symtable import SymbolTable, symtable
from typing import NamedTuple

from lessons.lesson import Cell

REGION = re.compile(r"\s*### (BEGIN|END) SOLUTION")


class Definition(NamedTuple):
    """A statement at the top of a cell: what it defines, the names it uses, and its text."""

    place: int
    defines: frozenset[str]
    uses: frozenset[str]
    text: str
    imported_from: str | None


def lift(cells: Sequence[Cell], wanted: Sequence[str], title: str) -> str:
    """A module with the functions `wanted` as the cells but the tests leave them, and no more than they need.

    Raises ValueError for one that is not defined, and for one that needs lessons.kit.
    """
    last: Mapping[str, Definition] = {
        name: definition for definition in definitions(cells) for name in definition.defines
    }
    needed: dict[int, Definition] = {}

    def need(name: str, by: str) -> None:
        definition = last[name]
        if definition.place in needed:
            return
        if (definition.imported_from or "").startswith("lessons"):
            raise ValueError(
                f"{by}: expected to need nothing but torch and triton, got {name} of {definition.imported_from}"
            )
        needed[definition.place] = definition
        for used in sorted(definition.uses & last.keys() - definition.defines):
            need(used, by)

    for name in wanted:
        if name not in last:
            raise ValueError(f"{name}: expected it in the solution cells, got {', '.join(sorted(last))}")
        need(name, name)
    imports = [d.text for _, d in sorted(needed.items()) if d.imported_from is not None]
    others = [d.text for _, d in sorted(needed.items()) if d.imported_from is None]
    return "\n".join([f'"""{title}"""\n', *imports, "\n\n" + "\n\n\n".join(others)]) + "\n"


def definitions(cells: Sequence[Cell]) -> list[Definition]:
    """Functions, classes, constants and imports at the top of all code cells but tests, in order."""
    found: list[Definition] = []
    for cell in cells:
        if cell.kind != "code" or cell.is_test:
            continue
        lines = cell.source.splitlines()
        for node in ast.parse(cell.source).body:
            first = min([node.lineno, *[d.lineno for d in getattr(node, "decorator_list", ())]])
            text = "\n".join(line for line in lines[first - 1 : node.end_lineno] if not REGION.match(line))
            uses = globals_of(symtable(text, "cell", "exec"))
            found.append(Definition(len(found), defined_by(node), uses, text, import_of(node)))
    return found


def globals_of(table: SymbolTable) -> frozenset[str]:
    """The names that code takes from its module."""
    outer = table.get_type() == "module"
    own = (s.get_name() for s in table.get_symbols() if s.is_referenced() and (outer or s.is_global()))
    return frozenset(own).union(*map(globals_of, table.get_children()))


def defined_by(node: ast.stmt) -> frozenset[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return frozenset([name])
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return frozenset((alias.asname or alias.name).split(".")[0] for alias in names)
        case ast.Assign(targets=targets):
            return frozenset(n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            return frozenset([name])
    return frozenset()


def import_of(node: ast.stmt) -> str | None:
    match node:
        case ast.ImportFrom(module=module):
            return module or ""
        case ast.Import(names=names):
            return names[0].name
    return None
