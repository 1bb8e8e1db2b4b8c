"""MLflow and TensorBoard, the real ones, read back what was exported."""

import io
import math
import sys
from pathlib import Path

import pytest
from rich.console import Console

from evaluation.runs.__main__ import main
from evaluation.store.store import Store
from evaluation.tests.stored_runs import stored

LOSS = [3.0, 2.0, float("nan")]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path / "runs")


def export(store: Store, format: str, output: Path | str, code: int = 0) -> str:
    out = io.StringIO()
    arguments = ["--store", str(store.root), "export", "--format", format, "--output", str(output)]
    assert main(arguments, Console(file=out, width=300)) == code
    return out.getvalue()


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # mlflow's own
def test_mlflow_reads_back_values_config_tags_and_artifacts(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from mlflow.tracking import MlflowClient

    odd = "numerics/share/x[1]"
    run = stored(store, {"loss": LOSS, odd: [0.5]}, config={"lr": 0.1, "task": "flow"}, tags=("a",), artifact="a.txt")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert "1 runs to" in export(store, "mlflow", uri)
    assert "0 runs to" in export(store, "mlflow", uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("bench")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == (run.id, "FINISHED")
    assert found.data.params == {"lr": "0.1", "task": '"flow"'}
    assert (found.data.tags["tag 0"], found.data.tags["mlflow.source.git.commit"]) == ("a", "c" * 40)
    history = sorted(client.get_metric_history(found.info.run_id, "loss"), key=lambda metric: metric.step)
    assert [(metric.step, metric.value) for metric in history[:2]] == [(0, 3.0), (1, 2.0)]
    assert math.isnan(history[2].value)
    assert found.data.metrics["numerics/share/x_1_"] == 0.5
    assert [file.path for file in client.list_artifacts(found.info.run_id, "other")] == ["other/a.txt"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mlflow-artifacts", "mlflow.db", "runs"]

    stored(store, {"x[": [1.0], "x]": [1.0]})
    export(store, "mlflow", uri, code=3)
    assert "some become one: ['x_']" in capsys.readouterr().err


def test_tensorboard_reads_back_every_value(store: Store, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = stored(store, {"loss": LOSS, "after/ms": [0.5]})
    assert "1 runs to" in export(store, "tensorboard", tmp_path / "board")
    assert "0 runs to" in export(store, "tensorboard", tmp_path / "board")
    events = EventAccumulator(str(tmp_path / "board" / run.id))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "after/ms"}
    values = [(event.step, event.value) for event in events.Scalars("loss")]
    assert values[:2] == [(0, 3.0), (1, 2.0)]
    assert math.isnan(values[2][1])
    assert [file.name for file in (tmp_path / "board").iterdir()] == [run.id]


@pytest.mark.parametrize(
    ("format", "module"), [("mlflow", "mlflow.entities"), ("tensorboard", "torch.utils.tensorboard")]
)
def test_what_is_not_installed_is_said_with_what_to_do(
    store: Store, format: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    stored(store, {"loss": LOSS})
    monkeypatch.setitem(sys.modules, module, None)
    export(store, format, "out", code=3)
    assert f"pip install 'mmdit-kata[{format}]'" in capsys.readouterr().err
