"""What each kernel of the tuning tables may take of a GPU, committed in budget.json, and what takes more.

It has the numbers of each Triton that made it; `python -m mmdit.deploy.aot --update-budget` makes those of the present.
"""

import json
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple

import triton

from mmdit.deploy.build import Resources
from mmdit.runtime.prebuilt import Specialisation

FILE = Path(__file__).with_name("budget.json")
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class Limit(NamedTuple):
    """The most that any specialisation of one key takes; whether all use the tensor cores."""

    registers: int
    spilled: int
    shared: int
    tensor_core: bool


def budget_key(arch: int, specialisation: Specialisation) -> str:
    """All specialisations that differ in constants alone share a limit: other tiles are held to those they replace."""
    dtypes = ",".join("-" if name is None else SHORT.get(name, name) for name in specialisation.dtypes)
    options = "".join(f" {name}={value}" for name, value in specialisation.options)
    return f"cuda:{arch} {specialisation.kernel} warps={specialisation.warps}{options} {dtypes}"


def limits(measured: Iterable["tuple[str, Resources]"]) -> Dict[str, Limit]:
    """The limits that hold for all of these."""
    found: Dict[str, Limit] = {}
    for key, r in measured:
        had = found.get(key, Limit(0, 0, 0, True))
        most = (max(a, b) for a, b in zip(had[:3], r[:3], strict=True))
        found[key] = Limit(*most, had.tensor_core and r.tensor_core > 0)
    return found


def read_budget() -> Dict[str, Limit]:
    """The committed limits of this Triton; ValueError where there are none."""
    budgets = json.loads(FILE.read_text())
    if triton.__version__ not in budgets:
        raise ValueError(f"budget.json: expected Triton {' or '.join(budgets)}, got {triton.__version__}")
    return {key: Limit(*limit) for key, limit in budgets[triton.__version__].items()}


def write_budget(found: Dict[str, Limit]) -> None:
    """Replace the limits of this Triton for the architectures that were found."""
    budgets = json.loads(FILE.read_text())
    arches = {key.split()[0] for key in found}
    kept = {key: limit for key, limit in budgets.get(triton.__version__, {}).items() if key.split()[0] not in arches}
    budgets[triton.__version__] = kept | found
    parts = []
    for version, limits in sorted(budgets.items()):
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(limits[key])}" for key in sorted(limits))
        parts.append(f"{json.dumps(version)}: {{\n{lines}\n}}")
    FILE.write_text("{" + ", ".join(parts) + "}\n")


def excess(key: str, resources: Resources, budget: Dict[str, Limit]) -> List[str]:
    """What a kernel takes beyond its budget, one line for each kind."""
    limit = budget.get(key)
    if limit is None:
        return [f"{key}: expected an entry of budget.json, got none"]
    units = {"registers": "registers a thread", "spilled": "bytes spilled", "shared": "bytes of shared memory"}
    found = []
    for field, unit in units.items():
        most, got = getattr(limit, field), getattr(resources, field)
        if got > most:
            found.append(f"{key}: expected at most {most} {unit}, got {got}")
    if limit.tensor_core and not resources.tensor_core:
        found.append(f"{key}: expected instructions of the tensor cores, got none")
    return found
