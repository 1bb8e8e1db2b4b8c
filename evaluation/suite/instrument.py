"""The grader's own copy of the suite, in which results leave traces that can be checked against what pytest reports.

Every test's body tells, with a nonce of its own, that it was reached to its end; and among the tests are canaries,
under random names, that must fail, must error or must pass. It does not make forging impossible, since a candidate
shares the process with pytest; it makes a forged result contradict itself.
"""

import ast
import secrets
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Outcome = Literal["passed", "failed", "error"]
_VANILLA = "repository_before"

# One of several processes runs all canaries, and of the other tests its share, whatever order they are collected in.
_PLUGIN = """\
import os, sys, zlib, pytest
_number, _count = map(int, sys.argv[3:5])
_write, _file = os.write, os.open({logs!r} + f"/{{_number}}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
def reached(nonce):
    _write(_file, nonce.encode() + b"\\n")
def _is_own(item):
    return item.path.name == {canary_file!r} or zlib.crc32(item.nodeid.encode()) % _count == _number
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    items[:] = filter(_is_own, items)
"""
# Bodies of tests by what must become of them; NAME is the test's own random one.
_CANARIES: tuple[tuple[Outcome, str], ...] = (
    ("passed", "def {name}():\n    assert [1, 2][1] == 2\n"),
    ("failed", "def {name}():\n    assert [1, 2][1] == 3\n"),
    ("failed", "def {name}():\n    raise ValueError('{name}')\n"),
    ("failed", "def {name}():\n    with pytest.raises(ValueError):\n        pass\n"),
    ("failed", "def {name}():\n    import mmdit\n    assert mmdit.{name}\n"),
    ("error", "@pytest.fixture\ndef f{name}():\n    raise ValueError('{name}')\n\ndef {name}(f{name}):\n    pass\n"),
    ("error", "@pytest.fixture\ndef f{name}():\n    yield\n    raise ValueError\n\ndef {name}(f{name}):\n    pass\n"),
)
# The same by the means with which the kata's suite compares; only for a suite that has them.
_COMPARISONS: tuple[tuple[Outcome, str], ...] = (
    ("failed", "def {name}():\n    assert torch.equal(torch.zeros(3), torch.ones(3))\n"),
    ("failed", "def {name}():\n    assert torch.allclose(torch.zeros(3), torch.ones(3))\n"),
    ("failed", "def {name}():\n    torch.testing.assert_close(torch.zeros(3), torch.ones(3))\n"),
    ("failed", "def {name}():\n    assert_close(torch.zeros(3), torch.ones(3), 1e-5)\n"),
    ("failed", "def {name}():\n    assert relative_l2(torch.zeros(3), torch.ones(3).double()) < 0.5\n"),
    ("failed", "def {name}():\n    assert torch.full((3,), torch.nan).isfinite().all()\n"),
)


@dataclass(frozen=True)
class Instrumented:
    """`suite` is the copy. `canaries`: their outcomes by function; `bodies`: the function that a nonce stands for.

    `plugin`: what each process imports first, with its number and the count of processes as arguments; `logs`: the
    folder in which each leaves what it reached.
    """

    suite: Path
    plugin: str
    folder: Path
    logs: Path
    canary_file: str
    canaries: dict[str, Outcome]
    bodies: dict[str, str]

    def is_canary(self, nodeid: str) -> bool:
        return nodeid.partition("::")[0].rpartition("/")[2] == self.canary_file

    def function(self, nodeid: str) -> str:
        """A test's id without parameters, from the suite's folder on, wherever pytest's root is."""
        return nodeid.partition("[")[0].removeprefix(f"{self.suite.name}/")

    def reached(self, process: int) -> Counter[str]:
        """How often each test function's end was reached in a process, by its id without parameters."""
        log = self.logs / str(process)
        lines = log.read_text(encoding="ascii", errors="replace").splitlines() if log.exists() else []
        return Counter(self.bodies.get(nonce, "") for nonce in lines)


def instrument(suite: Path, folder: Path) -> Instrumented:
    """Copy `suite` into `folder`, with what it finds beside it: pyproject.toml, and the vanilla tree."""
    copy = folder / suite.name
    for source in (suite, suite.parent / _VANILLA):
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    settings = suite.parent / "pyproject.toml"
    if settings.is_file():
        shutil.copy(settings, folder)
    plugin, logs, canary_file = (
        f"p{secrets.token_hex(8)}",
        folder / secrets.token_hex(8),
        f"test_{secrets.token_hex(8)}.py",
    )
    logs.mkdir()
    (folder / f"{plugin}.py").write_text(_PLUGIN.format(logs=str(logs), canary_file=canary_file), encoding="utf-8")
    canaries = _write_canaries(copy / canary_file, (copy / "numerics.py").is_file())
    bodies: dict[str, str] = {}
    for file in sorted(copy.rglob("test_*.py")):
        text, found = with_nonces(file.read_text(encoding="utf-8"), plugin)
        file.write_text(text, encoding="utf-8")
        bodies |= {nonce: f"{file.relative_to(copy).as_posix()}::{name}" for nonce, name in found.items()}
    return Instrumented(copy, plugin, folder, logs, canary_file, canaries, bodies)


def _write_canaries(file: Path, compares: bool) -> dict[str, Outcome]:
    """In random order, each marked as the suite's tests are."""
    chosen = list(_CANARIES + (_COMPARISONS if compares else ()))
    secrets.SystemRandom().shuffle(chosen)
    imports = "import pytest\n"
    if compares:
        imports += "import torch\nfrom tests.numerics import assert_close, relative_l2\n"
    canaries, parts = {}, [imports]
    for outcome, body in chosen:
        name, mark = f"test_{secrets.token_hex(6)}", secrets.choice(("contract", "upgrade"))
        canaries[name] = outcome
        fixture, found, function = body.format(name=name).rpartition(f"def {name}(")
        parts.append(f"{fixture}@pytest.mark.{mark}\n{found}{function}")
    file.write_text("\n\n".join(parts), encoding="utf-8")
    return canaries


def with_nonces(source: str, plugin: str) -> tuple[str, dict[str, str]]:
    """The source with a call at the end of every test's body, and the test's name in its file by nonce.

    The call takes the place of a blank line where one follows, so that line numbers stay what they are.
    """
    lines, found = source.splitlines(), {}
    for name, function in reversed(list(_tests(ast.parse(source)))):
        nonce = secrets.token_hex(16)
        found[nonce] = name
        call = f"__import__({plugin!r}).reached({nonce!r})"
        end = function.end_lineno or 0
        if function.body[-1].lineno == function.lineno:  # def and body in one line
            lines[end - 1] += f"; {call}"
            continue
        call = f"{' ' * function.body[0].col_offset}{call}"
        replaced = 1 if end < len(lines) and not lines[end].strip() else 0
        lines[end : end + replaced] = [call]
    return "\n".join(lines) + "\n", found


def _tests(tree: ast.Module) -> list[tuple[str, ast.FunctionDef]]:
    """Test functions of a module and of its test classes, by the name that ends their id, in the file's order."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            found.append((node.name, node))
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            methods = (each for each in node.body if isinstance(each, ast.FunctionDef))
            found += [(f"{node.name}::{each.name}", each) for each in methods if each.name.startswith("test")]
    return found
