"""The benchmark of the whole model without a GPU: its command line, records, tables and verdicts."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from evaluation.bench import floor, stack
from evaluation.bench.__main__ import main
from evaluation.bench.options import build_parser, command_line, model_cases
from evaluation.bench.stack_record import (
    Count,
    FusedCall,
    StackCase,
    StackContender,
    StackMachine,
    StackRecord,
    StackResult,
    StackTiming,
    Unmeasured,
)
from evaluation.bench.stack_table import markdown_table, shortfalls
from evaluation.report.schema import validate
from evaluation.report.write import write_record

ROOT = Path(__file__).resolve().parents[2]
BEFORE, AFTER = ROOT / "repository_before", ROOT / "repository_after"
TINY = StackCase(batch=2, dtype="bfloat16", masked=False, length=3, context=1, dim=4, heads=2, feed_forward=8, layers=1)
MACHINE = StackMachine(
    gpu="NVIDIA H200",
    driver="1",
    torch_version="2",
    triton_version="3",
    cuda_version="13",
    python_version="3",
    copy_gb_s=1.0,
    sms=1,
    sm_clock_mhz=1,
)


def make_result(case: StackCase = TINY, *, eager_error: float = 2e-3, **rounds_us: list[float]) -> StackResult:
    """A result with the rounds of some contenders; all errors but eager's are 1e-3."""
    errors = {"eager": eager_error}
    timings = [
        StackTiming(contender=name, rounds_us=rounds, samples=9, error=errors.get(name, 1e-3))
        for name, rounds in rounds_us.items()
    ]
    fused = FusedCall(
        path="fused",
        decisions=[],
        launches=[],
        kernels=[Count(name="a", count=30), Count(name="b", count=6)],
        host_us=None,
        peak_bytes=2_000_000,
    )
    return StackResult(
        case=case,
        timings=timings,
        unmeasured=[],
        floor=floor.floor_of(case, MACHINE),
        eager_peak_bytes=50_000_000,
        fused=fused,
    )


def make_record(*results: StackResult, not_begun: tuple[StackCase, ...] = ()) -> StackRecord:
    return StackRecord(
        command="c",
        started_at=datetime.now(UTC),
        before_sha256="b",
        after_sha256="a",
        machine=MACHINE,
        results=list(results),
        not_begun=list(not_begun),
    )


def without(result: StackResult, contender: StackContender) -> StackResult:
    """The result with a contender that could not be measured."""
    missing = [Unmeasured(contender=contender, reason="E: no")]
    kept = [timing for timing in result.timings if timing.contender != contender]
    return result.model_copy(update={"timings": kept, "unmeasured": missing})


# Shortfalls and the table


def test_a_faster_and_more_accurate_fused_model_falls_short_nowhere() -> None:
    assert shortfalls(make_record(make_result(eager=[9.0] * 3, max_autotune=[2.0] * 3, fused_graph=[1.0] * 3))) == []


@pytest.mark.parametrize("rival", ["compiled_graph", "max_autotune"])
def test_a_fused_graph_slower_than_a_rival_beyond_the_spread_falls_short(rival: str) -> None:
    (found,) = shortfalls(make_record(make_result(**{rival: [2.0] * 3, "fused_graph": [2.1] * 3})))
    assert rival in found
    assert shortfalls(make_record(make_result(**{rival: [2.0, 2.0, 2.3], "fused_graph": [2.1] * 3}))) == []


def test_a_fused_model_may_be_slower_called_as_is() -> None:
    assert shortfalls(make_record(make_result(compiled=[1.0] * 3, fused=[2.0] * 3))) == []


def test_a_fused_model_further_from_fp64_than_eager_falls_short() -> None:
    (found,) = shortfalls(make_record(make_result(eager_error=9e-4, eager=[9.0] * 3, fused_graph=[1.0] * 3)))
    assert "error" in found


def test_a_fused_model_that_could_not_be_measured_falls_short_but_a_baseline_does_not() -> None:
    result = make_result(max_autotune=[2.0] * 3, fused_graph=[1.0] * 3)
    assert shortfalls(make_record(without(result, "max_autotune"))) == []
    (found,) = shortfalls(make_record(without(result, "fused_graph")))
    assert "E: no" in found


def test_the_table_has_a_row_for_each_case() -> None:
    masked = TINY.model_copy(update={"masked": True})
    rounds = {"eager": [900.0] * 3, "max_autotune": [100.0] * 3, "fused_graph": [20.0] * 3}
    text = markdown_table(make_record(make_result(**rounds), make_result(masked, **rounds)))
    header, rule, *rows = text.splitlines()[2:]
    assert [line.count("|") for line in (rule, *rows)] == [header.count("|")] * 3
    assert [row.split(" | ")[:3] for row in rows] == [["| 2", "bfloat16", "no"], ["| 2", "bfloat16", "yes"]]
    for cell in ("0.9000 ± 0.0000", "5.00x", "40% (exponentials)", "2.0e-03 / 1.0e-03", "50 / 2", "36"):
        assert f" {cell} |" in rows[0]
    assert "torch.compile" not in header


def test_the_table_of_a_backward_says_so_and_takes_the_strongest_baseline_there_is() -> None:
    both_ways = TINY.model_copy(update={"backward": True, "recompute": "selective"})
    text = markdown_table(make_record(make_result(both_ways, compiled_graph=[30.0] * 3, fused_graph=[10.0] * 3)))
    assert "forward and backward, recompute selective" in text
    assert "| torch.compile / fused |" in text
    assert "| 3.00x |" in text


def test_the_table_says_what_was_not_measured() -> None:
    result = make_result(eager=[9.0] * 3, max_autotune=[2.0] * 3, fused_graph=[1.0] * 3)
    large = TINY.model_copy(update={"batch": 512})
    text = markdown_table(make_record(without(result, "max_autotune"), result, not_begun=(large,)))
    assert "| not measured |" in text
    assert "- batch 2, bfloat16: no max_autotune: E: no" in text
    assert "- batch 512, bfloat16: not begun" in text


def test_the_table_command_prints_a_stored_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record(make_result(eager=[9.0] * 3))
    write_record(record, tmp_path / "stack.json")
    assert main(["table", str(tmp_path / "stack.json")]) == 0
    assert capsys.readouterr().out.strip() == markdown_table(record)


# The command line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("stack --batch 1,0", "at least 1, got '0'"),
        ("stack --batch 1,", "at least 1, got ''"),
        ("stack --dtype float64", "got 'float64'"),
        ("stack --contenders eager,fast", "got 'fast'"),
        ("stack --rounds 1", "at least 2"),
        ("stack --length 5000", "--length: "),
        ("stack --feed-forward 0", "--feed-forward: "),
        ("stack --dim 100 --heads 8", "dim 100 for 8 heads"),
        ("stack --recompute full", "--backward beside --recompute full"),
        ("stack --after nowhere", "not there"),
        ("sizes --dim 80 --head-dim 32,64", "a head dim that is even and divides dim"),
        ("sizes --length 5000 --dim 64", "--length: "),
        ("sizes --context -1", "at least 0, got '-1'"),
        ("sizes --masked maybe", "got 'maybe'"),
        ("tune --op softmax", "got 'softmax'"),
        ("tune --dim 100 --heads 8", "dim 100 for 8 heads"),
        ("table nowhere.json", "nowhere.json"),
        ("table README.md", "Expecting value"),
    ],
)
def test_a_wrong_option_is_a_usage_error_that_says_what_was_expected(
    arguments: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err


def test_there_is_a_case_for_each_batch_and_dtype_at_the_target_sizes() -> None:
    cases = model_cases(build_parser().parse_args(["stack", "--batch", "1,8", "--dtype", "tf32,float16", "--masked"]))
    assert [(case.batch, case.dtype, case.masked) for case in cases] == [
        (1, "tf32", True),
        (8, "tf32", True),
        (1, "float16", True),
        (8, "float16", True),
    ]
    assert (cases[0].layers, cases[0].dim, cases[0].length, cases[0].context) == (12, 128, 186, 64)


def test_the_recorded_command_gives_the_same_cases_again() -> None:
    given = build_parser().parse_args(
        ["stack", "--batch", "8", "--masked", "--feed-forward", "64", "--output", "o.json", "--backward"]
    )
    again = build_parser().parse_args(command_line(given).split()[3:])
    assert model_cases(again) == model_cases(given)
    assert again.contenders == given.contenders
    assert again.output is None


# A run, its timing replaced


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, StackRecord]]:
    """Runs `stack` with the vanilla tree in both roles and time_case replaced; its exit code and the record."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(stack, "describe_stack_machine", lambda: MACHINE)

    def run(time_case: Callable[[StackCase], StackResult], *arguments: str) -> tuple[int, StackRecord]:
        monkeypatch.setattr(stack, "time_case", lambda case, *_: time_case(case))
        file = tmp_path / "stack.json"
        try:
            code = main(["stack", "--after", str(BEFORE), "--output", str(file), *arguments])
        except RuntimeError:
            code = -1
        document = file.read_text()
        record = StackRecord.model_validate_json(document)
        validate(StackRecord, record.model_dump(mode="json"))
        return code, record

    return run


def good(case: StackCase) -> StackResult:
    return make_result(case, eager=[9.0] * 3, max_autotune=[2.0] * 3, fused_graph=[1.0] * 3)


def test_a_run_that_falls_short_nowhere_ends_with_0(run: Callable[..., tuple[int, StackRecord]]) -> None:
    code, record = run(good, "--batch", "1,8")
    assert code == 0
    assert [result.case.batch for result in record.results] == [1, 8]
    assert record.not_begun == []


def test_a_run_that_falls_short_ends_with_1(run: Callable[..., tuple[int, StackRecord]]) -> None:
    assert run(lambda case: make_result(case, max_autotune=[1.0] * 3, fused_graph=[2.0] * 3), "--batch", "1")[0] == 1


def test_a_run_in_which_nothing_was_measured_ends_with_3(run: Callable[..., tuple[int, StackRecord]]) -> None:
    assert run(make_result, "--batch", "1")[0] == 3


def test_past_its_budget_a_run_begins_no_case_and_names_those_left(
    run: Callable[..., tuple[int, StackRecord]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: Iterator[float] = iter((0.0, 50.0, 101.0))
    monkeypatch.setattr(stack, "monotonic", lambda: next(clock))
    code, record = run(good, "--batch", "1,8,32,128", "--budget-s", "100")
    assert code == 0
    assert [result.case.batch for result in record.results] == [1, 8]
    assert [case.batch for case in record.not_begun] == [32, 128]


def test_a_run_that_breaks_keeps_the_cases_that_it_had_done(run: Callable[..., tuple[int, StackRecord]]) -> None:
    def breaks(case: StackCase) -> StackResult:
        if case.batch == 8:
            raise RuntimeError
        return good(case)

    code, record = run(breaks, "--batch", "1,8")
    assert code == -1
    assert [result.case.batch for result in record.results] == [1]
    assert [case.batch for case in record.not_begun] == [8]
