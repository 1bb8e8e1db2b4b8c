"""Every verdict is a run of the store, from a config file too, and from Python."""

from argparse import Namespace
from pathlib import Path

import pytest

from evaluation import api, evaluate
from evaluation.report.models import Report
from evaluation.store.catalogue import Catalogue
from evaluation.store.errors import StoreError
from evaluation.store.history import history
from evaluation.store.store import Store
from evaluation.suite.command import ROOT
from evaluation.suite.result import Failure, FailureKind, GraderError
from evaluation.suite.run import Settings
from evaluation.tests.h200_report import h200_speed

TARGET = h200_speed().cases[0].name


@pytest.fixture(autouse=True)
def graded(passing: Report, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """In place of the long work: the report that is there, with the run's options. Fields put in here change it."""
    changes: dict[str, object] = {}

    def grade_trees(options: Namespace, settings: Settings, *rest: object) -> Report:
        assert isinstance(options.before, Path)
        given = {"seed": settings.seed, "quick": settings.quick, "device": settings.device}
        about = passing.settings.model_copy(update=given)
        return passing.model_copy(update={"run_id": rest[-1], "settings": about, **changes})

    monkeypatch.setattr(evaluate, "_grade", grade_trees)
    monkeypatch.setattr(evaluate, "REPORTS", "no test writes there")
    return changes


@pytest.fixture
def failing(passing: Report) -> dict[str, object]:
    """The fields of a report on a tree that failed."""
    failure = Failure(kind=FailureKind.TIMEOUT, tree="after", message="m")
    comparison = passing.comparison.model_copy(update={"passed_gate": False})
    results = passing.results.model_copy(update={"comparison": comparison})
    told = {"success": False, "failures": (failure,), "error": "after: timeout: m"}
    return told | {"comparison": comparison, "results": results}


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    return tmp_path / "reports"


def grade(reports: Path, *more: str) -> int:
    return evaluate.main(list(more), reports=reports)


def kept(reports: Path) -> Catalogue:
    return Catalogue(Store(reports / "runs").index())


def test_a_verdict_is_kept_with_its_numbers_report_and_config(reports: Path, capsys: pytest.CaptureFixture[str]):
    assert grade(reports, "--seed", "5", "--tag", "nightly") == 0
    store = Store(reports / "runs")
    found = Catalogue(store.index())
    entry = found.find("nightly")
    assert (entry.state, entry.run.kind, entry.run.status) == ("whole", "evaluate", "success")
    assert entry.run.flags == {"quick": False, "device": "auto"}
    assert entry.run.config["seed"] == 5
    assert f"run: {entry.id}" in capsys.readouterr().out
    numbers = {name: metric.last for name, metric in found.summaries(entry.id).items()}
    assert (numbers["after/tests/passed"], numbers["before/tests/failed"], numbers["success"]) == (4, 2, 1)
    assert numbers["axis/speed/passed"] == 0
    artifacts = store.folder(entry.id) / "artifacts"
    latest = reports / "latest.json"
    assert Report.model_validate_json((artifacts / "report.json").read_bytes()).run_id == entry.id
    assert (artifacts / "report.json").read_text().strip() == latest.read_text().strip()

    # the kept config repeats the run: nothing is given but it
    assert grade(reports, "--config", str(artifacts / "config.toml")) == 0
    runs = [entry.run for entry in Catalogue(store.index()).entries()]
    assert runs[0].config == runs[1].config
    assert runs[0].id != runs[1].id


def test_a_failing_candidate_is_a_whole_run_that_failed(
    reports: Path, graded: dict[str, object], failing: dict[str, object]
):
    graded.update(failing)
    assert grade(reports) == 1
    entry = kept(reports).find("latest")
    assert (entry.state, entry.run.status) == ("whole", "failed")


def test_times_are_kept_by_round_and_the_page_tells_of_earlier_runs(reports: Path, graded: dict[str, object]):
    graded["speed"] = h200_speed()
    for _ in range(3):
        assert grade(reports) == 0
    found = kept(reports)
    entry = found.find("latest")
    metrics = found.summaries(entry.id, ["speed/*"])
    took = metrics[f"speed/{TARGET}/after/graph/seconds"]
    assert (took.count, took.quartile_distance > 0) == (7, True)
    assert metrics[f"speed/{TARGET}/ratio"].last == pytest.approx(8.44, abs=0.01)
    assert metrics[f"speed/{TARGET}/after/graph/peak_bytes"].last == 1_186_304
    page = (Store(reports / "runs").folder(entry.id) / "artifacts" / "report.html").read_text()
    assert page.count("<polyline") == 3
    assert "2 runs; the last 8.44" in page
    assert page in [file.read_text() for file in reports.rglob("*-*/report.html")]


@pytest.mark.parametrize(("what", "path"), [("fallback", "fused"), ("fused", "fallback")])
def test_times_of_a_fallback_have_names_and_a_history_of_their_own(
    reports: Path, graded: dict[str, object], what: str, path: str
):
    fused = h200_speed()
    cases = tuple(case.model_copy(update={"path": path}) for case in fused.cases)
    fallback = fused.model_copy(update={"what": what, "cases": cases})
    for graded["speed"] in (fallback, fallback, fused, fallback):
        assert grade(reports) == 0
    found = kept(reports)
    entry = found.find("latest")
    assert found.summaries(entry.id, ["speed/*"]) == {}
    assert {name.split("/")[2] for name in found.summaries(entry.id, [f"fallback/{TARGET}/*"])} > {"ratio", "before"}
    assert len(history(found, f"fallback/{TARGET}/ratio").points) == 3
    assert len(history(found, f"speed/{TARGET}/ratio").points) == 1
    page = (Store(reports / "runs").folder(entry.id) / "artifacts" / "report.html").read_text()
    assert f"<h3>fallback/{TARGET}/ratio" in page


def test_no_store_keeps_nothing_and_store_says_where(reports: Path, tmp_path: Path):
    assert grade(reports, "--no-store") == 0
    assert not (reports / "runs").exists()
    assert grade(reports, "--store", str(tmp_path / "mine")) == 0
    assert len(Catalogue(Store(tmp_path / "mine").index()).entries()) == 1


def test_a_store_that_cannot_be_written_is_3_before_anything_runs(
    reports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    assert grade(reports, "--store", str(tmp_path / "file" / "runs")) == 3
    captured = capsys.readouterr()
    assert "cannot write reports to" in captured.err
    assert "before:" not in captured.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quick = ", "Invalid value"),
        ("no-such-option = 1", "unrecognized arguments: --no-such-option=1"),
        ("timeout = -1", "not a positive number"),
        ("quick = 3", "ignored explicit argument '3'"),
        ("seed = [1, {a = 2}]", "seed: expected a text, a number"),
        ("tag = 'no tag'", "'no tag': expected"),
        ("config = 'other.toml'", "expected options' names, got 'config'"),
        (None, "No such file"),
    ],
)
def test_a_wrong_config_file_is_usage(
    reports: Path, tmp_path: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "config.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit) as stop:
        grade(reports, "--config", str(file))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_line_counts_more_than_the_file(reports: Path, tmp_path: Path):
    (tmp_path / "config.toml").write_text('seed = 5\nquick = true\ntag = ["a", "b"]\nno-store = false\n')
    assert grade(reports, "--config", str(tmp_path / "config.toml"), "--seed", "6") == 0
    run = kept(reports).find("a").run
    assert (run.config["seed"], run.config["quick"], run.tags) == (6, True, ("a", "b"))


def test_grade_gives_the_verdict_prints_nothing_and_keeps_the_run(
    tmp_path: Path, graded: dict[str, object], failing: dict[str, object], capsys: pytest.CaptureFixture[str]
):
    trees, store = (ROOT / "repository_before", ROOT / "repository_after"), tmp_path / "runs"
    verdict = api.grade(*trees, {"seed": 3, "tag": ["mine"]}, store=store)
    assert (verdict.correctness.status, verdict.speed.status) == ("pass", "not_measured")
    assert capsys.readouterr().out == ""
    graded.update(failing)
    (tmp_path / "config.toml").write_text("seed = 3\nquick = true\n")
    api.grade(*trees, tmp_path / "config.toml", store=store)
    assert Catalogue(Store(store).index()).find("latest").run.status == "failed"
    with pytest.raises(StoreError, match="quick: False against True"):
        api.compare("mine", "latest", store=store)


def test_grade_says_what_is_wrong_with_its_options_or_why_there_is_no_verdict(tmp_path: Path):
    trees = ROOT / "repository_before", ROOT / "repository_after"
    with pytest.raises(ValueError, match="unrecognized arguments: --qick"):
        api.grade(*trees, {"qick": True}, store=None)
    (tmp_path / "file").write_text("")
    with pytest.raises(GraderError, match="cannot write reports to"):
        api.grade(*trees, store=tmp_path / "file" / "runs")


def test_a_run_is_opened_ended_and_gone_on_with_from_python(tmp_path: Path):
    with api.open_run("training", tags=["t"], flags={"task": "flow"}, store=tmp_path) as run:
        run.log(0, {"loss": 1.0})
    left = api.open_run("training", flags={"task": "flow"}, store=tmp_path)
    left.log(0, {"loss": 1.0})
    left.close()
    with api.open_run(resume=left.id, store=tmp_path) as again:
        again.log(1, {"loss": 3.0})
    found = api.compare("t", left.id, statistic="last", store=tmp_path)
    assert [each.change for each in found.differences] == [2.0]
    assert api.here().torch_version is not None
