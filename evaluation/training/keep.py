"""Training runs in the store."""

import json
from pathlib import Path

from evaluation.report.environment import describe_environment
from evaluation.store.store import Store
from evaluation.suite.command import ROOT
from evaluation.suite.probe import describe_machine
from evaluation.training.parity import ParityRun
from evaluation.training.timeline import BACKWARD, PROFILE
from evaluation.training.trainer import CHECKPOINT, METRICS

ARTIFACTS = {"samples.png": "plot", PROFILE: "trace", BACKWARD: "trace", CHECKPOINT: "checkpoint"}
FLAGS = ("task", "steps", "batch", "dim", "heads", "feed_forward", "layers", "dropout", "dtype")
STORED = "stored"  # in a run's folder: where in a store it lies


class Keeper:
    """Puts runs that ended into the store at `root`: metrics of every step, measures and layouts at the last, and what
    files they left.
    """

    def __init__(self, root: Path, device: str) -> None:
        self.store = Store(root)
        self.environment = describe_environment(ROOT, describe_machine(device))

    def keep(self, run: ParityRun, folder: Path) -> str:
        """The id that the run has in the store; one that is there already is not put there again."""
        stored = folder / STORED
        if stored.exists() and Path(stored.read_text(encoding="utf-8")).parent == self.store.root.resolve():
            return Path(stored.read_text(encoding="utf-8")).name
        config = run.config.model_dump()
        flags = {"device": "cuda" if run.peak_bytes is not None else "cpu"} | {name: config[name] for name in FLAGS}
        tags = (run.role, f"task:{run.config.task}", f"seed:{run.config.seed}")
        with self.store.create("training", self.environment, tags=tags, config=config, flags=flags) as writer:
            writer.log_many(_rows(folder / METRICS))
            ended = {**run.measures, "total_seconds": run.seconds}
            ended |= {f"layout.{name}": count for name, count in run.layouts.items()}
            ended |= {} if run.peak_bytes is None else {"peak_bytes": run.peak_bytes}
            writer.log(run.config.steps, ended)
            for name, kind in ARTIFACTS.items():
                if (folder / name).exists():
                    writer.add_artifact(folder / name, kind)
        stored.write_text(str(self.store.root.resolve() / writer.id), encoding="utf-8")
        return writer.id


def _rows(metrics: Path) -> list[tuple[int, dict[str, float]]]:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [(line.pop("step"), line) for line in lines]
