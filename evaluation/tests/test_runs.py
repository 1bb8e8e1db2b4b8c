"""`python -m evaluation.runs`, and what it says of runs: comparisons, gates, histories, exports."""

import csv
import io
import json
from pathlib import Path

import pytest
from pyarrow import parquet
from rich.console import Console

from evaluation.report.schema import validate
from evaluation.runs.__main__ import GATE_BROKEN, main
from evaluation.store.catalogue import Catalogue
from evaluation.store.compare import compare
from evaluation.store.errors import StoreError
from evaluation.store.forms import GateRecord, History, Rule, RunComparison, SummaryExport, ValueExport
from evaluation.store.gate import gate
from evaluation.store.history import change_points, history
from evaluation.store.store import Store
from evaluation.tests.store_scale import measure
from evaluation.tests.stored_runs import stored

FAST, SLOW = [1.0, 1.1, 1.0, 0.9], [2.0, 2.1, 2.0, 1.9]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def catalogue(store: Store) -> Catalogue:
    return Catalogue(store.index())


def said(store: Store, *arguments: str, code: int = 0) -> str:
    out = io.StringIO()
    assert main(["--store", str(store.root), *arguments], Console(file=out, width=300)) == code
    return out.getvalue()


def test_a_run_is_found_by_id_beginning_tag_and_age(store: Store):
    old = stored(store, {"ms": FAST}, id="aaa-1", tags=("base",))
    new = stored(store, {"ms": FAST}, id="aaa-2")
    found = catalogue(store)
    names = {name: found.find(name).id for name in ("aaa-1", "base", "latest", "latest~1")}
    assert names == {"aaa-1": old.id, "base": old.id, "latest": new.id, "latest~1": old.id}
    for name in ("aaa", "absent", "latest~2", "", "*"):
        with pytest.raises(StoreError, match="expected the id"):
            found.find(name)


def test_list_and_show_tell_every_state(store: Store):
    whole = stored(store, {"ms": FAST, "nan": [float("nan")]}, tags=("base",), config={"steps": 3}, artifact="a.txt")
    store.create("training", whole.provenance, id="left").close()
    text = said(store, "list")
    assert all(part in text for part in (whole.id, "base", "partial: its writer is gone", "2 of 2 runs"))
    assert "left" not in said(store, "list", "--kind", "bench")
    text = said(store, "show", whole.id)
    assert all(part in text for part in ("config steps", "1, 1 not finite", "1.085", "a.txt (14 bytes)"))
    assert "its writer is gone" in said(store, "show", "left")


def test_a_change_is_told_from_noise_and_missing_metrics_are_shown(store: Store):
    base = stored(store, {"ms": FAST, "mb": [5.0], "gone": [1.0], "same": FAST})
    run = stored(store, {"ms": SLOW, "mb": [6.0], "new": [1.0], "same": FAST})
    found = {each.metric: each for each in compare(catalogue(store), base.id, [run.id]).differences}
    assert {name: each.judgement for name, each in found.items()} == {
        "ms": "outside_noise",
        "same": "within_noise",
        "mb": "noise_unknown",
        "gone": "missing_in_run",
        "new": "missing_in_base",
    }
    assert (found["ms"].base, found["ms"].value, found["ms"].percent) == (1.0, 2.0, 100.0)
    out = io.StringIO()
    coloured = Console(file=out, width=300, force_terminal=True, color_system="standard")
    main(["--store", str(store.root), "compare", base.id, run.id], coloured)
    lines = {name: line for line in out.getvalue().splitlines() for name in found if f"{name} " in line}
    assert "\x1b[1;35m+1" in lines["ms"]
    assert "\x1b[1;35m" not in lines["same"] + lines["mb"]
    assert "missing in run" in lines["gone"]
    assert [each.metric for each in compare(catalogue(store), base.id, [run.id], top=1).differences] == ["ms"]


def test_the_noise_of_what_is_measured_once_is_the_spread_over_runs_like_it(store: Store):
    ids = [stored(store, {"mb": [value]}).id for value in (1.0, 1.1, 1.2, 1.3, 9.0)]
    stored(store, {"mb": [100.0]}, changes={"cpu_count": 64})
    near, far = (compare(catalogue(store), ids[0], [ids[n]]).differences[0] for n in (1, 4))
    assert (near.judgement, far.judgement) == ("within_noise", "outside_noise")
    assert near.noise == pytest.approx(0.2)


def test_only_like_is_compared_with_like(store: Store):
    base = stored(store, {"ms": FAST}, flags={"quick": True})
    other = stored(store, {"ms": FAST}, flags={"quick": False}, changes={"gpus": ("NVIDIA H100",)})
    with pytest.raises(StoreError, match="gpu: None against NVIDIA H100; flag quick: True against False"):
        compare(catalogue(store), base.id, [other.id])
    assert "not alike" in said(store, "compare", base.id, other.id, "--anyway")
    said(store, "compare", base.id, other.id, code=3)


def test_what_is_not_whole_is_not_compared(store: Store):
    base = stored(store, {"ms": FAST})
    store.create("bench", base.provenance, id="left").close()
    with pytest.raises(StoreError, match="run left is partial: its writer is gone"):
        compare(catalogue(store), base.id, ["left"])
    with pytest.raises(StoreError, match="has a metric like absent"):
        compare(catalogue(store), base.id, [base.id], metrics=["absent"])


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("ms:100::error", True),
        ("ms:99::error", False),
        ("ms::1.0:error", True),
        ("ms::0.9:error", False),
        ("ms:1000:0.9:error", False),
        ("+ms:0:0:error", True),
        ("+rate:49::error", False),
        ("+rate:50::error", True),
        ("zero:5::error", False),
        ("zero::1:error", True),
        ("gone:5::error", False),
        ("nan:5::error", False),
    ],
)
def test_a_rule_is_kept_up_to_its_limits(store: Store, rule: str, kept: bool):
    base = stored(store, {"ms": [1.0], "rate": [2.0], "zero": [0.0], "gone": [1.0], "nan": [1.0]})
    run = stored(store, {"ms": [2.0], "rate": [1.0], "zero": [1.0], "nan": [float("nan")]})
    found = gate(catalogue(store), base.id, run.id, [Rule.parse(rule)])
    assert (found.passed, [each.kept for each in found.results]) == (kept, [kept])


def test_gate_has_an_exit_code_of_its_own_and_warnings_do_not_break_it(
    store: Store, capsys: pytest.CaptureFixture[str]
):
    base, run = stored(store, {"ms": FAST, "mb": [1.0]}), stored(store, {"ms": SLOW, "mb": [1.0]})
    assert "BROKEN" in said(store, "gate", base.id, run.id, "--rule", "m?:5::error", code=GATE_BROKEN)
    assert "PASSED" in said(store, "gate", base.id, run.id, "--rule", "ms:5::warning", "--rule", "mb:0::error")
    said(store, "gate", base.id, run.id, "--rule", "ms:5::error", "--json", code=GATE_BROKEN)
    document = json.loads(capsys.readouterr().out)
    validate(GateRecord, document)
    assert document["results"][0]["reason"] == "100% worse, 5% allowed"


@pytest.mark.parametrize(
    "rule",
    ["ms", "ms:5:error", "ms:x::error", "ms:-1::error", "ms:nan::error", "ms:::error", ":5::error", "ms:5::fatal"],
)
def test_a_rule_of_the_wrong_form_is_usage(store: Store, rule: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["--store", str(store.root), "gate", "a", "b", "--rule", rule])
    assert stop.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_history_is_of_runs_like_the_newest_and_marks_where_it_changed(store: Store):
    values = [1.0, 1.02, 0.99, 1.01, 1.0, 0.98, 1.5, 1.52, 1.49, 1.51]
    for value in values:
        stored(store, {"ms": [value]}, flags={"quick": True})
    stored(store, {"ms": [7.0]}, flags={"quick": False})
    stored(store, {"ms": [8.0]}, flags={"quick": True}, changes={"gpus": ("NVIDIA H100",)})
    like = catalogue(store).find("latest~11").id
    found = history(catalogue(store), "ms", like=like)
    assert [point.value for point in found.points] == values
    assert [number for number, point in enumerate(found.points) if point.changed] == [6]
    assert found.left_out == (
        "1 runs: flag quick: True against False",
        "1 runs: gpu: None against NVIDIA H100",
    )
    assert [point.value for point in history(catalogue(store), "ms", window="full").points] == [7.0]
    text = said(store, "history", "ms", "--like", like, "--limit", "8")
    assert text.count("changed") == 1
    assert "left out" in text
    said(store, "history", "absent", code=3)


def test_no_change_is_seen_in_noise_alone():
    import numpy as np

    noise = np.random.default_rng(0)
    assert [change_points(noise.normal(5, 1, 60).tolist()) for _ in range(20)].count([]) >= 19
    assert change_points([3.0] * 20) == []
    assert change_points([1.0, 9.0]) == []


@pytest.mark.parametrize(
    ("arguments", "form"),
    [(("compare", "latest~1", "latest"), RunComparison), (("history", "ms"), History)],
)
def test_json_is_of_the_published_form(
    store: Store, arguments: tuple[str, ...], form: type, capsys: pytest.CaptureFixture[str]
):
    for values in (FAST, SLOW):
        stored(store, {"ms": values})
    said(store, *arguments, "--json")
    document = json.loads(capsys.readouterr().out)
    validate(form, document)
    form.model_validate(document)


@pytest.mark.parametrize("values", [False, True], ids=["summaries", "values"])
def test_exports_have_every_row_in_each_format(store: Store, tmp_path: Path, values: bool):
    run = stored(store, {"ms": FAST, 'a, "b"': [float("inf")]})
    stored(store, {"ms": SLOW})
    more = ("--values",) if values else ()
    for format in ("json", "csv", "parquet"):
        said(store, "export", "--format", format, "--output", str(tmp_path / f"out.{format}"), *more)
    document = json.loads((tmp_path / "out.json").read_text())
    validate(ValueExport if values else SummaryExport, document)
    with (tmp_path / "out.csv").open(newline="") as handle:
        lines = list(csv.DictReader(handle))
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert len(document["rows"]) == len(lines) == len(table) == (9 if values else 3)
    key = "value" if values else "last"
    assert [line[key] for line in lines] == ["" if v is None else str(v) for v in (row[key] for row in table)]
    assert {row["name"] for row in table if row["run"] == run.id} == {"ms", 'a, "b"'}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.csv", "out.json", "out.parquet", "runs"]


def test_an_export_that_does_not_read_back_is_not_put_in_place(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stored(store, {"ms": FAST})
    monkeypatch.setattr("evaluation.store.export._read_csv", lambda _file: [])
    said(store, "export", "--format", "csv", "--output", str(tmp_path / "out.csv"), code=3)
    assert not (tmp_path / "out.csv").exists()


def test_prune_keeps_the_newest_and_what_is_tagged(store: Store):
    ids = [stored(store, {"ms": FAST}).id for _ in range(4)]
    said(store, "tag", ids[0], "base")
    store.create("bench", stored(store, {"ms": FAST}).provenance, id="left").close()
    before = said(store, "list")
    said(store, "prune", "--keep", "2", "--dry-run")
    assert said(store, "list") == before
    said(store, "prune", "--keep", "2", "--quarantined")
    left = {entry.id for entry in catalogue(store).entries()}
    assert ids[0] in left
    assert len(left) == 3
    assert "left" not in left
    assert said(store, "tag", ids[0], "--remove", "base").endswith("no tags\n")


def test_reindex_says_what_is_wrong(store: Store):
    run = stored(store, {"ms": FAST})
    (store.root / run.id / "metrics.jsonl").chmod(0o644)
    (store.root / run.id / "metrics.jsonl").write_text("{}\n")
    text = said(store, "reindex")
    assert "1 damaged" in text
    assert "metrics.jsonl has 3 bytes" in text
    assert "damaged" in said(store, "list")
    said(Store(store.root / "nowhere"), "list", code=3)


def test_many_values_are_appended_and_read_fast(tmp_path: Path):
    """A sample; `python -m evaluation.tests.store_scale` does 1,000 runs of 100,000 values."""
    assert measure(tmp_path / "runs", runs=12, values=20_000).problems() == []
