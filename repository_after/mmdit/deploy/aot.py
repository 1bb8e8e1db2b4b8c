"""Compile the kernels that a model launches ahead of time, on a machine that needs no GPU.

    python -m mmdit.deploy.aot --target cuda:90 --target cuda:80 --output DIR
    MMDIT_KERNELS=DIR python serve.py      # needs no Triton and no C compiler

DIR gets a cubin and the PTX of each kernel, and manifest.json. --check holds what is compiled to budget.json; it and
--update-budget take fewer batches, and the kernels of training too.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import triton
from rich.console import Console
from rich.progress import track

from mmdit.config import MMDiTConfig
from mmdit.deploy.budget import budget_key, excess, limits, read_budget, write_budget
from mmdit.deploy.build import Resources, compile_planned, entry_of, resources
from mmdit.deploy.plan import DTYPES, Plan, Sizes, plan, plan_modules, table_entry
from mmdit.runtime.launch import Planned
from mmdit.runtime.prebuilt import FORMAT, MANIFEST, sources_hash

BUDGETED = (1, 4, 8, 32, 40, 66, 96, 128)  # batches between which the tuning tables change, at the target sizes
TARGETS = {"cuda:80": 80, "cuda:90": 90, "cuda:100": 100}
Compiled = Tuple[int, Planned, Any]


def compile_all(arches: Sequence[int], *plans: Callable[[int], Plan]) -> Iterator[Compiled]:
    """(arch, launch, Triton's compiled kernel) for each specialisation, with its progress on stderr."""
    launches = []
    for arch in arches:
        found = {name: launch for each in plans for name, launch in each(arch).items()}
        launches += [(arch, launch) for launch in found.values()]
    console = Console(stderr=True)
    for arch, launch in track(launches, "compiling", console=console, disable=not console.is_terminal):
        yield arch, launch, compile_planned(launch, arch)


def write(folder: Path, compiled: Iterator[Compiled]) -> int:
    """Write the kernels' files, then the manifest, which is what makes them count; how many there are."""
    entries: List[Dict[str, Any]] = []
    for arch, launch, kernel in compiled:
        entry = entry_of(kernel, launch)
        cubin = kernel.asm["cubin"]
        sha256 = hashlib.sha256(cubin).hexdigest()
        path = Path(table_entry(arch).name) / f"{entry['symbol']}-{sha256[:12]}.cubin"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(cubin)
        (folder / path).with_suffix(".ptx").write_text(kernel.asm["ptx"])
        took = resources(kernel)._asdict()
        entries.append({"arch": arch, **entry, "cubin": path.as_posix(), "sha256": sha256, "resources": took})
    manifest = {"format": FORMAT, "triton": triton.__version__, "sources": sources_hash(), "kernels": entries}
    part = folder / f"{MANIFEST}.part"
    lines = ",\n".join(map(json.dumps, manifest.pop("kernels")))
    part.write_text(f'{json.dumps(manifest)[:-1]}, "kernels": [\n{lines}\n]}}\n')
    part.replace(folder / MANIFEST)
    return len(entries)


def measure(compiled: Iterator[Compiled]) -> Iterator[Tuple[str, Resources]]:
    """Each kernel's key in the budget, and what it takes."""
    for arch, launch, kernel in compiled:
        yield budget_key(arch, launch.specialisation), resources(kernel)


def read_config(path: str) -> MMDiTConfig:
    """MMDiTConfig of a JSON file with any of its fields; ArgumentTypeError where it is none."""
    try:
        return MMDiTConfig(**json.loads(Path(path).read_text()))
    except (OSError, TypeError, ValueError) as error:  # of which MMDiTConfig's own are
        raise argparse.ArgumentTypeError(f"expected MMDiTConfig's fields as JSON in {path}, got {error}") from error


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m mmdit.deploy.aot", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    default, add = Sizes(), parser.add_argument
    add("--target", action="append", choices=TARGETS, help="repeatable (default: all of them)")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--output", type=Path, metavar="DIR", help="write cubins, PTX and manifest.json to this folder")
    action.add_argument("--check", action="store_true", help="hold each kernel to budget.json; exit code 1 beyond it")
    action.add_argument("--update-budget", action="store_true", help="make budget.json of what they take")
    add("--config", type=read_config, metavar="FILE", help="JSON, MMDiTConfig's fields (default: the target sizes)")
    add("--dtype", action="append", choices=DTYPES, help="repeatable (default: all of them)")
    add("--batch", action="append", type=int, help="repeatable (default: 1 to 256, closer where the tables change)")
    add("--length", type=int, default=default.length, help="rows of x (default: %(default)s)")
    add("--context", type=int, default=default.context, help="rows of the context (default: %(default)s)")
    add("--training", action="store_true", help="with gradients")
    add("--modules", action="store_true", help="instead, into DIR: those of the modules of mmdit.deploy.table")
    given = parser.parse_args(arguments)
    if given.modules and not given.output:
        parser.error("--modules: expected --output, got none")
    sizes = Sizes(
        *(given.config or default.config, given.length, given.context, tuple(given.batch or default.batches)),
        *(tuple(given.dtype or default.dtypes), given.training),
    )
    arches = [TARGETS[name] for name in given.target or TARGETS]
    if given.output:
        plans = [plan_modules] if given.modules else [partial(plan, sizes=sizes)]
        print(f"{write(given.output, compile_all(arches, *plans))} kernels in {given.output}")
        return 0
    few = replace(sizes, batches=tuple(given.batch or BUDGETED), training=False)
    compiled = compile_all(arches, partial(plan, sizes=few), partial(plan, sizes=replace(few, training=True)))
    if given.update_budget:
        write_budget(limits(measure(compiled)))
        return 0
    budget = read_budget()
    found = [line for key, took in measure(compiled) for line in excess(key, took, budget)]
    print("\n".join(found) or "every kernel is within its budget")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
