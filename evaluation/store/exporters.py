"""Runs into MLflow and TensorBoard, each an optional extra of pyproject.toml."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from evaluation.store.errors import StoreError
from evaluation.store.files import ARTIFACTS, METRICS
from evaluation.store.metrics import read_metrics
from evaluation.store.models import Run
from evaluation.store.store import Store

RUN_TAG = "kata.run"
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_\-. :/]")  # what MLflow takes in no name
_METRICS_AT_ONCE, _PARAMS_AT_ONCE = 1000, 100
_STATUS = {"success": "FINISHED", "failed": "FAILED", "no_verdict": "KILLED"}
_SQLITE = "sqlite:///"


def to_mlflow(store: Store, run: Run, uri: str) -> bool:
    """Every value, the config as parameters, tags and artifacts; False where the run is there already.

    The experiment is the run's kind. Raises StoreError where mlflow is not installed, or does not take the run.
    """
    try:
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise StoreError(f"pip install 'mmdit-kata[mlflow]': {error}") from error
    lines = list(read_metrics(store.folder(run.id) / METRICS))
    names, config = _names({name for line in lines for name in line.values}), _names(run.config)
    try:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(run.kind)
        place = Path(uri.removeprefix(_SQLITE)).absolute().parent / "mlflow-artifacts" / run.kind
        beside = place.as_uri() if uri.startswith(_SQLITE) else None
        id = experiment.experiment_id if experiment else client.create_experiment(run.kind, beside)
        if client.search_runs([id], f"tags.`{RUN_TAG}` = '{run.id}'", max_results=1):
            return False
        tags = {RUN_TAG: run.id, "mlflow.source.git.commit": run.provenance.git_commit or ""}
        tags |= {f"tag {number}": tag for number, tag in enumerate(run.tags)}
        made = client.create_run(id, _milliseconds(run.started_at.timestamp()), tags, run.id).info.run_id
        params = [Param(name, json.dumps(run.config[given])) for given, name in config.items()]
        values = [
            Metric(names[name], math.nan if value is None else value, _milliseconds(line.time), line.step)
            for line in lines
            for name, value in line.values.items()
        ]
        for start in range(0, len(values), _METRICS_AT_ONCE):
            client.log_batch(made, metrics=values[start : start + _METRICS_AT_ONCE])
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            client.log_batch(made, params=params[start : start + _PARAMS_AT_ONCE])
        for artifact in run.seal.artifacts if run.seal else ():
            client.log_artifact(made, str(store.folder(run.id) / ARTIFACTS / artifact.name), artifact.kind)
        ended = run.finished_at or run.started_at
        client.set_terminated(made, _STATUS[run.status], _milliseconds(ended.timestamp()))
    except MlflowException as error:
        raise StoreError(f"{uri} does not take run {run.id}: {error}") from error
    return True


def to_tensorboard(store: Store, run: Run, folder: str) -> bool:
    """Every value as a scalar, and the config as text, in FOLDER/RUN; False where that is there already.

    Raises StoreError where tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise StoreError(f"pip install 'mmdit-kata[tensorboard]': {error}") from error
    target = Path(folder, run.id)
    if target.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{run.id}.new")
    with SummaryWriter(str(unfinished)) as writer:
        for line in read_metrics(store.folder(run.id) / METRICS):
            for name, value in line.values.items():
                writer.add_scalar(name, math.nan if value is None else value, line.step, line.time)
        writer.add_text("config", f"```json\n{json.dumps(run.config, indent=2)}\n```")
    unfinished.rename(target)
    return True


def _names(given: Iterable[str]) -> dict[str, str]:
    """Each as MLflow takes it. Raises StoreError for two that become one."""
    names = {name: _NOT_A_NAME.sub("_", name) for name in given}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise StoreError(f"MLflow takes only letters, digits and _-. :/ in names, and so some become one: {twice}")
    return names


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
