"""Whether stopping, repeating or splitting a run changes a bit of what it ends with.

resumed   a run that stops and goes on from its checkpoint, against one that does not stop
repeated  the same run twice
in parts  batches taken in 4 parts, against whole ones: computed in fp64, where sums in another order differ by less
          than fp32 shows, and compared in fp32

python -m evaluation.training.equalities                    # a CPU: both trees, in each dtype
python -m evaluation.training.equalities --device cuda      # the target sizes, on a GPU
"""

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.table import Table

from evaluation.bench.option_types import int_from
from evaluation.suite.command import ROOT, tree_folder
from evaluation.training.__main__ import RATES, SIZES
from evaluation.training.config import TrainingConfig

PARTS = 4
DTYPES = ("float32", "bfloat16", "autocast")
EXIT_CODES = "exit code: 0, all are equal; 1, some differ or a run failed; 2, usage"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.training.equalities",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--before", type=tree_folder, default=ROOT / "repository_before", help="the vanilla tree")
    parser.add_argument("--after", type=tree_folder, default=ROOT / "repository_after", help="the other tree")
    parser.add_argument("--device", choices=tuple(SIZES), default="cpu", help="default cpu")
    parser.add_argument("--steps", type=int_from(2), default=6, metavar="N", help="of each run (default 6)")
    parser.add_argument("--dropout", type=float, default=0.1, metavar="P", help="but where in parts (default 0.1)")
    options = parser.parse_args(argv)
    console = Console()
    sizes = SIZES[options.device] | {"steps": options.steps, "learning_rate": RATES[options.device], "seed": 0}
    configs = [TrainingConfig(**sizes, dropout=options.dropout, dtype=d, deterministic=True) for d in DTYPES]
    found = Table(title=f"last weights and losses, {options.device}")
    for heading in ("tree", "dtype", "check", "equal"):
        found.add_column(heading)
    equal = True
    for role in ("before", "after"):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool, console.status(f"{role}"):
            try:
                rows = pool.submit(check, getattr(options, role), configs, options.device).result()
            except Exception as error:  # a tree's own, out of its process
                console.print(f"{role} failed: {type(error).__name__}: {error}", markup=False)
                return 1
        for dtype, name, same in rows:
            found.add_row(role, dtype, name, "yes" if same else "NO")
            equal &= same
    console.print(found)
    return 0 if equal else 1


def check(tree: Path, configs: list[TrainingConfig], device: str) -> list[tuple[str, str, bool]]:
    """A dtype, a check and whether it holds, of each; for a process with no other tree."""
    import torch

    from evaluation.training.process import deterministic, isolate
    from evaluation.training.trainer import How, Trainer

    isolate(tree, threads=None)

    def trained(config: TrainingConfig, stop: int | None = None) -> tuple[list[float], dict[str, torch.Tensor]]:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(config, How(Path(folder), device, samples=0))
            if stop:
                trainer.run(stop)
                trainer = Trainer(config, How(Path(folder), device, samples=0))
                trainer.resume()
            trainer.run()
            return trainer.losses, {name: t.clone() for name, t in trainer.state.tensors().items()}

    def same(one: tuple, other: tuple) -> bool:
        return one[0] == other[0] and all(torch.equal(t, other[1][name]) for name, t in one[1].items())

    def narrowed(run: tuple) -> tuple:
        weights = {name: t.float() for name, t in run[1].items() if name.startswith("network.")}
        return torch.tensor(run[0], dtype=torch.float32).tolist(), weights

    rows = []
    with deterministic(True):
        for config in configs:
            whole = trained(config)
            rows.append((config.dtype, "resumed", same(trained(config, config.steps // 2), whole)))
            rows.append((config.dtype, "repeated", same(trained(config), whole)))
        wide = configs[0].model_copy(update={"dtype": "float64", "dropout": 0.0})
        parts = wide.model_copy(update={"accumulate": PARTS})
        rows.append(("float64", "in parts", same(narrowed(trained(parts)), narrowed(trained(wide)))))
    return rows


if __name__ == "__main__":
    sys.exit(main())
