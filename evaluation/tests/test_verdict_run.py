"""Every verdict is a run of the store, from a config file too, and from Python."""

from pathlib import Path

import pytest

from evaluation import api, evaluate
from evaluation.report.models import Report
from evaluation.store.catalogue import Catalogue
from evaluation.store.errors import StoreError
from evaluation.store.store import Store
from evaluation.suite.result import GraderError
from evaluation.tests.conftest import Kata, right_numbers

pytestmark = pytest.mark.usefixtures("known_machine")


def grade(kata: Kata, *more: str) -> int:
    trees = ("--before", str(kata.before), "--after", str(kata.after))
    return evaluate.main([*trees, *more], suite=kata.suite, reports=kata.folder / "reports", judge=right_numbers)


def test_a_verdict_is_kept_with_its_numbers_report_and_config(kata: Kata, capsys: pytest.CaptureFixture[str]):
    assert grade(kata, "--seed", "5", "--tag", "nightly") == 0
    store = Store(kata.folder / "reports" / "runs")
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
    latest = kata.folder / "reports" / "latest.json"
    assert Report.model_validate_json((artifacts / "report.json").read_bytes()).run_id == entry.id
    assert (artifacts / "report.json").read_text().strip() == latest.read_text().strip()

    # the kept config repeats the run: nothing is given but it
    again = evaluate.main(
        ["--config", str(artifacts / "config.toml")],
        suite=kata.suite,
        reports=kata.folder / "reports",
        judge=right_numbers,
    )
    assert again == 0
    runs = [entry.run for entry in Catalogue(store.index()).entries()]
    assert runs[0].config == runs[1].config
    assert runs[0].id != runs[1].id


def test_a_failing_candidate_is_a_whole_run_that_failed(kata: Kata):
    kata.append("after/mmdit/__init__.py", "del perimeter")
    assert grade(kata) == 1
    entry = Catalogue(Store(kata.folder / "reports" / "runs").index()).find("latest")
    assert (entry.state, entry.run.status) == ("whole", "failed")


def test_no_store_keeps_nothing_and_store_says_where(kata: Kata, tmp_path: Path):
    assert grade(kata, "--no-store") == 0
    assert not (kata.folder / "reports" / "runs").exists()
    assert grade(kata, "--store", str(tmp_path / "mine")) == 0
    assert len(Catalogue(Store(tmp_path / "mine").index()).entries()) == 1


def test_a_store_that_cannot_be_written_is_3_before_anything_runs(kata: Kata, capsys: pytest.CaptureFixture[str]):
    (kata.folder / "file").write_text("")
    assert grade(kata, "--store", str(kata.folder / "file" / "runs")) == 3
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
    kata: Kata, tmp_path: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "config.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit) as stop:
        grade(kata, "--config", str(file))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_line_counts_more_than_the_file(kata: Kata, tmp_path: Path):
    (tmp_path / "config.toml").write_text('seed = 5\nquick = true\ntag = ["a", "b"]\nno-store = false\n')
    assert grade(kata, "--config", str(tmp_path / "config.toml"), "--seed", "6") == 0
    run = Catalogue(Store(kata.folder / "reports" / "runs").index()).find("a").run
    assert (run.config["seed"], run.config["quick"], run.tags) == (6, True, ("a", "b"))


class TestApi:
    @pytest.fixture(autouse=True)
    def _fake(self, kata: Kata, monkeypatch: pytest.MonkeyPatch) -> None:
        real = evaluate.main
        monkeypatch.setattr(
            evaluate, "main", lambda argv, **more: real(argv, suite=kata.suite, judge=right_numbers, **more)
        )

    def test_grade_gives_the_verdict_prints_nothing_and_keeps_the_run(
        self, kata: Kata, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        verdict = api.grade(kata.before, kata.after, {"seed": 3, "tag": ["mine"]}, store=tmp_path / "runs")
        assert (verdict.correctness.status, verdict.speed.status) == ("pass", "not_measured")
        assert capsys.readouterr().out == ""
        (tmp_path / "config.toml").write_text("seed = 3\n")
        kata.append("after/mmdit/__init__.py", "def area(side): return 0")
        verdict = api.grade(kata.before, kata.after, tmp_path / "config.toml", store=tmp_path / "runs")
        assert verdict.correctness.status == "fail"
        with pytest.raises(StoreError, match="quick: False against True"):
            api.grade(kata.before, kata.after, {"quick": True}, store=tmp_path / "runs")
            api.compare("latest~1", "latest", store=tmp_path / "runs")
        found = api.compare("mine", "latest~1", metrics=["success"], store=tmp_path / "runs").differences
        assert [(each.base, each.value) for each in found] == [(1.0, 0.0)]

    def test_grade_says_what_is_wrong_with_its_options_or_why_there_is_no_verdict(self, kata: Kata, tmp_path: Path):
        with pytest.raises(ValueError, match="unrecognized arguments: --qick"):
            api.grade(kata.before, kata.after, {"qick": True}, store=None)
        (tmp_path / "file").write_text("")
        with pytest.raises(GraderError, match="cannot write reports to"):
            api.grade(kata.before, kata.after, store=tmp_path / "file" / "runs")


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
