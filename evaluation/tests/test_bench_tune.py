"""The tuning command without a GPU: its record, its table, and how a run goes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evaluation.bench import tune
from evaluation.bench.__main__ import main
from evaluation.bench.records import read_record, table_of
from evaluation.bench.stack_record import StackCase
from evaluation.bench.tune_record import Rejected, TileTiming, TuneJob, TuneRecord, TuneResult
from evaluation.bench.tune_table import markdown_table, shortfalls
from evaluation.report.schema import validate
from evaluation.tests.test_bench_stack import BEFORE, MACHINE

# Long enough for a backward in two chunks, whose sums are then reduced.
SMALL = StackCase(
    batch=1, dtype="float16", masked=False, length=70, context=2, dim=16, heads=1, feed_forward=64, layers=1
)
JOB = TuneJob(op="joint_attention", case=SMALL)


def make_result(present_us: list[float], *others_us: list[float], **fields: object) -> TuneResult:
    """A result with the rounds of the table's tiles, rows=0, and of others, rows=1 and so on."""
    timings = [
        TileTiming(tiles=f"rows={n}", rounds_us=rounds, samples=9, error=1e-3)
        for n, rounds in enumerate((present_us, *others_us))
    ]
    whole = {"job": JOB, "table": "t.tiles", "asked": "dim=16", "problem": None, "rejected": [], "not_tried": []}
    return TuneResult(**(whole | {"timings": timings} | fields))


def nothing(problem: str, asked: str | None) -> TuneResult:
    return make_result([1.0] * 3, timings=[], problem=problem, asked=asked)


def make_record(*results: TuneResult, not_begun: tuple[TuneJob, ...] = ()) -> TuneRecord:
    fields = {"command": "c", "started_at": "2026-01-01T00:00:00Z", "before_sha256": "b", "after_sha256": "a"}
    machine = MACHINE.model_dump(exclude={"sms", "sm_clock_mhz"})
    return TuneRecord(**fields, machine=machine, architecture="sm_90", results=list(results), not_begun=list(not_begun))


# Shortfalls and the table


def test_tiles_faster_beyond_the_spread_are_an_entry_to_write() -> None:
    (found,) = shortfalls(make_record(make_result([3.0] * 3, [2.5] * 3, [2.0] * 3)))
    assert found == "t.tiles, sm_90, asked for dim=16: rows=2 (3.00 -> 2.00 us, 50.0%)"


@pytest.mark.parametrize("other", [[3.1] * 3, [2.9, 2.9, 3.3]], ids=["slower", "faster within the spread"])
def test_other_tiles_are_not(other: list[float]) -> None:
    assert shortfalls(make_record(make_result([3.0] * 3, other))) == []


def test_a_table_whose_own_tiles_fail_falls_short_and_one_that_is_not_asked_does_not() -> None:
    (found,) = shortfalls(make_record(nothing("no kernel", None), nothing("the table's own tiles: E: no", "dim=16")))
    assert found == f"{JOB}: the table's own tiles: E: no"


def test_the_table_has_a_row_for_each_job_and_says_what_was_not_timed() -> None:
    rejected = [Rejected(tiles=f"rows={n}", reason="E: no") for n in (8, 9)]
    short = make_result([3.0] * 3, [2.0] * 3, rejected=rejected, not_tried=["rows=4"])
    job = TuneJob(op="stack_rows", case=SMALL)
    record = make_record(short, make_result([3.0] * 3), nothing("no kernel", None), not_begun=(job,))
    text = markdown_table(record)
    header, rule, *rows = text.splitlines()[2:6]
    assert [line.count("|") for line in (rule, *rows)] == [header.count("|")] * 3
    assert rows[0] == (
        "| joint_attention | 1 | float16 | no | rows=0 | 3.00 ± 0.00 | rows=1 | 2.00 ± 0.00 | 50.0% | 2 | 3 |"
    )
    assert rows[1].endswith("| rows=0 | 3.00 ± 0.00 | the same |  |  | 1 | 0 |")
    assert text.splitlines()[-4:] == [
        "- joint_attention, batch 1, float16: E: no: (rows=8), (rows=9)",
        "- joint_attention, batch 1, float16: 1 more were not tried",
        "- joint_attention, batch 1, float16: no kernel",
        "- stack_rows, batch 1, float16: not begun",
    ]


# A run, its jobs replaced


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, TuneRecord]]:
    """Runs `tune` with the vanilla tree in both roles and tune_job replaced; its exit code and the record."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tune, "architecture_of", lambda _: "sm_90")
    monkeypatch.setattr(tune, "describe_machine", lambda: make_record(make_result([1.0] * 3)).machine)
    file = tmp_path / "tune.json"

    def run(tune_job: Callable[[TuneJob, float], TuneResult], *arguments: str) -> tuple[int, TuneRecord]:
        monkeypatch.setattr(tune, "tune_job", lambda job, *rest: tune_job(job, rest[-2]))
        code = main(["tune", "--after", str(BEFORE), "--output", str(file), *arguments])
        record = read_record(file)
        validate(TuneRecord, record.model_dump(mode="json"))
        assert table_of(file) == markdown_table(record)
        return code, record

    return run


def test_a_run_tunes_each_op_at_each_batch_and_prints_the_entries(
    run: Callable[..., tuple[int, TuneRecord]], capsys: pytest.CaptureFixture[str]
) -> None:
    slow = make_result([3.0] * 3, [2.0] * 3)
    code, record = run(
        lambda job, _: slow.model_copy(update={"job": job}), "--op", "norm_adaln,stack_rows", "--batch", "1,8"
    )
    assert (code, record.architecture) == (1, "sm_90")
    assert [(result.job.op, result.job.case.batch) for result in record.results] == [
        *[("norm_adaln", batch) for batch in (1, 8)],
        *[("stack_rows", batch) for batch in (1, 8)],
    ]
    assert capsys.readouterr().out.splitlines()[-4:] == shortfalls(record)


def test_where_the_tables_are_fastest_a_run_ends_with_0(run: Callable[..., tuple[int, TuneRecord]]) -> None:
    assert run(lambda job, _: make_result([2.0] * 3, [3.0] * 3, job=job), "--op", "norm_adaln")[0] == 0


def test_where_nothing_was_timed_a_run_ends_with_3(run: Callable[..., tuple[int, TuneRecord]]) -> None:
    assert run(lambda job, _: nothing("no kernel", None), "--op", "norm_adaln", "--batch", "1")[0] == 3


def test_the_budget_is_shared_among_the_jobs_and_those_it_did_not_reach_are_named(
    run: Callable[..., tuple[int, TuneRecord]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, deadlines = [0.0], []
    monkeypatch.setattr(tune, "monotonic", lambda: now[0])

    def tune_job(job: TuneJob, deadline: float) -> TuneResult:
        deadlines.append(deadline)
        now[0] = {1: 10.0, 8: 101.0}[job.case.batch]
        return make_result([2.0] * 3, job=job)

    code, record = run(tune_job, "--op", "norm_adaln", "--batch", "1,8,32,128", "--budget-s", "100")
    assert code == 0
    assert deadlines == [25.0, 40.0], "a fourth of 100 s, then a third of the 90 s that were left"
    assert [job.case.batch for job in record.not_begun] == [32, 128]
