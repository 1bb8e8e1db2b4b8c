"""Records of benchmarks as runs of the store: from a file, and as they are made."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.bench.__main__ import finish
from evaluation.bench.options import build_parser, command_line
from evaluation.bench.records import read_record
from evaluation.bench.stack_record import StackRecord, StackResult
from evaluation.runs.__main__ import main as runs
from evaluation.store.bench_run import NOT_RECORDED, bench_metrics, keep_bench
from evaluation.store.catalogue import Catalogue
from evaluation.store.compare import compare
from evaluation.store.errors import StoreError
from evaluation.store.files import ARTIFACTS
from evaluation.store.forms import Rule
from evaluation.store.gate import gate
from evaluation.store.history import history
from evaluation.store.store import Store
from evaluation.suite.command import ROOT
from evaluation.tests.test_bench_tune import make_record, make_result

RECORDS = sorted((ROOT / "evaluation" / "records").rglob("*.json"))
STACK = ROOT / "evaluation" / "records" / "h200" / "stack.json"
TARGET = "stack/B1-L186-C64-D128-H8-F512-N12-bfloat16"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def found(store: Store) -> Catalogue:
    return Catalogue(store.index())


def test_every_committed_record_is_kept_whole_once(store: Store, capsys: pytest.CaptureFixture[str]):
    command = ["--store", str(store.root), "import", *map(str, RECORDS)]
    assert runs([*command, "--tag", "h200", "--commit", "c0ffee"]) == 0
    catalogue = found(store)
    entries = catalogue.entries(kind="bench", tag="h200")
    assert {entry.state for entry in entries} == {"whole"}
    for file in RECORDS:
        record = read_record(file)
        (run,) = (entry.run for entry in entries if entry.run.started_at == record.started_at)
        assert (run.provenance.gpus, run.provenance.git_commit) == ((record.machine.gpu,), "c0ffee")
        assert read_record(store.folder(run.id) / ARTIFACTS / "record.json") == record
        timed = sum(len(each.timings) for each in getattr(record, "results", [record]))
        summaries = catalogue.summaries(run.id, ["*/us"])
        assert len(summaries) == timed
        assert all(each.quartile_distance is not None for each in summaries.values())
    assert runs(command[:4]) == 3
    said = capsys.readouterr().err
    assert said.startswith("import: not done: run bench-")
    assert said.endswith("is already there\n")


def test_a_metric_is_named_by_case_contender_and_unit(store: Store):
    record = read_record(STACK)
    run = keep_bench(store, record)
    summaries = found(store).summaries(run.id)
    (result,) = (each for each in record.results if each.case.name in TARGET)
    timing = result.timing("fused_graph")
    fused = summaries[f"{TARGET}/fused_graph/us"]
    assert (fused.count, fused.p50) == (len(timing.rounds_us), pytest.approx(timing.median_us))
    assert summaries[f"{TARGET}/fused_graph/error"].last == timing.error
    once = ("fused/peak_bytes", "eager/peak_bytes", "fused/host_us", "fused/kernels", "floor_us")
    assert all(summaries[f"{TARGET}/{name}"].count == 1 for name in once)
    assert f" --batch {run.config['batch']} " in record.command
    assert run.flags == {
        "benchmark": "stack",
        "driver": record.machine.driver,
        "rounds": str(fused.count),
        "rep": run.config["rep"],
    }


def test_tiles_are_kept_as_the_tables_and_the_fastest():
    (row, *rest) = bench_metrics(make_record(make_result([3.0] * 3, [2.0] * 3, [5.0] * 3)))
    values = {name.rpartition("/")[0].rpartition("/")[2]: value for name, value in row.items() if name.endswith("/us")}
    assert values == {"table": 3.0, "fastest": 2.0}
    assert len(rest) == 2


def slower(record: StackRecord, by: float, **machine: str) -> StackRecord:
    def timed(result: StackResult) -> StackResult:
        timings = [t.model_copy(update={"rounds_us": [by * us for us in t.rounds_us]}) for t in result.timings]
        return result.model_copy(update={"timings": timings})

    update = {"results": [timed(result) for result in record.results]}
    return record.model_copy(update=update | {"machine": record.machine.model_copy(update=machine)})


def test_runs_on_one_machine_are_compared_gated_and_make_a_history_and_no_others(store: Store):
    record = read_record(STACK)
    metric, rule = f"{TARGET}/fused_graph/us", Rule.parse("stack/*/fused_graph/us:10::error")
    changed = (record, slower(record, 1.05), slower(record, 1.5), slower(record, 1.0, driver="none"))
    base, near, far, other = (keep_bench(store, each).id for each in changed)
    catalogue = found(store)
    (difference,) = compare(catalogue, base, [far], metrics=[metric]).differences
    assert (difference.judgement, difference.percent) == ("outside_noise", pytest.approx(50))
    assert [gate(catalogue, base, run, [rule]).passed for run in (near, far)] == [True, False]
    with pytest.raises(StoreError, match=r"flag driver: \S+ against none"):
        compare(catalogue, base, [other])
    told = history(catalogue, metric, like=base)
    assert {point.run for point in told.points} == {base, near, far}
    assert told.left_out == (f"1 runs: flag driver: {record.machine.driver} against none",)


def test_a_benchmark_keeps_its_record_also_where_it_breaks(store: Store, tmp_path: Path):
    record = read_record(STACK)
    command = ["stack", "--store", str(store.root), "--tag", "nightly", "--output", str(tmp_path / "r.json")]
    options = build_parser().parse_args(command)

    def breaks() -> Iterator[StackRecord]:
        yield slower(record, 2.0)
        raise RuntimeError("wrong outputs")

    assert finish(options, [record]) == 0
    run = found(store).find("nightly").run
    assert (run.status, run.provenance.platform == NOT_RECORDED) == ("success", False)
    with pytest.raises(StoreError, match="is already there"):
        keep_bench(store, read_record(tmp_path / "r.json"))
    read = keep_bench(Store(tmp_path / "other"), read_record(tmp_path / "r.json"))
    assert (read.id, read.likeness()) == (run.id, run.likeness())
    with pytest.raises(RuntimeError, match="wrong outputs"):
        finish(options, breaks())
    assert {entry.run.status for entry in found(store).entries()} == {"success", "failed"}


def test_where_a_run_is_kept_is_not_said_to_decide_what_is_measured():
    options = build_parser().parse_args(["ops", "--store", "here", "--tag", "nightly"])
    assert command_line(options) == "python -m evaluation.bench ops --rounds 9 --rep 20 --dtype bfloat16"


@pytest.mark.parametrize("text", ["{}", "[1]", "no JSON"])
def test_what_is_no_record_is_refused_by_its_name(
    store: Store, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "some.json").write_text(text)
    assert runs(["--store", str(store.root), "import", str(tmp_path / "some.json")]) == 3
    assert "some.json is no record of a benchmark" in capsys.readouterr().err
    assert not store.root.exists()
