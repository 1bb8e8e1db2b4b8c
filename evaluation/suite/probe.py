"""Quick looks before the long run: what the machine has, and whether a tree can be imported at all."""

import json
import secrets
import signal
import sys
from pathlib import Path
from typing import Any, Literal

from evaluation.suite.limits import GIB, check_space
from evaluation.suite.process import Finished, run_bounded
from evaluation.suite.result import FailureKind, GraderError, Record, TreeProblem, short_line
from evaluation.suite.stage import Staged, child_environment, scratch_folder

Device = Literal["auto", "cpu", "cuda"]

IMPORT_SECONDS = 60.0
_MACHINE_SECONDS = 180.0
_WORKERS = Path(__file__).resolve().parents[1] / "worker"


class Machine(Record):
    """What the tests run on; `cuda_version` and `gpus` only where a GPU can be used."""

    torch_version: str | None = None
    triton_version: str | None = None
    cuda_version: str | None = None
    gpus: tuple[str, ...] = ()


def describe_machine(device: Device) -> Machine:
    """Raises GraderError when torch or pytest cannot be used here, the GPU that `device` insists on, or the disk."""
    with scratch_folder() as scratch:
        check_space(scratch, GIB)
        result = scratch / "machine.json"
        command = [sys.executable, "-P", str(_WORKERS / "describe_machine.py"), str(result)]
        done = run_bounded(command, cwd=scratch, env=child_environment(scratch), timeout=_MACHINE_SECONDS)
        if not result.exists():
            raise GraderError(f"torch and pytest cannot be used here: {_last_line(done)}")
        machine = Machine.model_validate_json(result.read_bytes())
    if device == "cuda" and not machine.gpus:
        raise GraderError("--device cuda: torch finds no GPU here")
    return machine


def check_import(staged: Staged, timeout: float) -> None:
    """Import mmdit from the tree in a process of its own; raises TreeProblem naming what stopped it."""
    if not (staged.tree / "mmdit" / "__init__.py").is_file():
        raise TreeProblem(FailureKind.NO_PACKAGE, f"{staged.source} holds no mmdit/__init__.py")
    result, nonce = staged.scratch / "import.json", secrets.token_hex()
    command = [sys.executable, "-P", str(_WORKERS / "import_tree.py"), str(result), str(staged.tree)]
    limit = min(timeout, IMPORT_SECONDS)
    done = staged.run(command, timeout=limit, stdin=nonce.encode())
    if done.broken:
        raise TreeProblem(FailureKind.LIMIT_BROKEN, f"import mmdit {done.broken}")
    if done.return_code is None:
        raise TreeProblem(FailureKind.IMPORT_HANG, f"import mmdit did not return within {limit:g} s")
    if done.return_code < 0:
        raise TreeProblem(FailureKind.IMPORT_CRASHED, f"import mmdit was ended by {signal_name(done.return_code)}")
    outcome = _read(result)
    if outcome is None or (outcome.get("nonce") != nonce and "error" not in outcome):
        raise TreeProblem(
            FailureKind.IMPORT_EXIT,
            f"import mmdit ended the process (exit code {done.return_code}) instead of returning",
        )
    if "error" in outcome:
        kind = FailureKind.SYNTAX_ERROR if outcome["error"] == "SyntaxError" else FailureKind.IMPORT_ERROR
        where = f" ({outcome['where']})" if outcome["where"] else ""
        message = short_line(f"{outcome['error']}: {outcome['message']}")
        raise TreeProblem(kind, f"import mmdit: {message}{where}")


def signal_name(return_code: int) -> str:
    """What a negative return code says."""
    return f"signal {-return_code} ({signal.strsignal(-return_code)})"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        outcome = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return outcome if isinstance(outcome, dict) else None


def _last_line(done: Finished) -> str:
    lines = done.tail.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.return_code}"
