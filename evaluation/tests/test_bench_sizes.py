"""The benchmark of many sizes without a GPU: its grid, its order, its tables and how a run goes."""

from collections.abc import Callable

import pytest
import torch

from evaluation.bench import stack
from evaluation.bench.__main__ import main
from evaluation.bench.grid import AXES, cells
from evaluation.bench.options import build_parser
from evaluation.bench.records import read_record, table_of
from evaluation.bench.sizes_table import markdown_table, shortfalls, tier
from evaluation.bench.stack_record import CountedDecision, StackCase, StackRecord, StackResult
from evaluation.report.schema import validate
from evaluation.tests.test_bench_stack import BEFORE, MACHINE, TINY, make_record, make_result, without


def cells_of(arguments: str = "") -> tuple[StackCase, ...]:
    return cells(build_parser().parse_args(["sizes", *arguments.split()]))


def make_cell(fused_us: float, compiled_us: float = 100.0, case: StackCase = TINY) -> StackResult:
    return make_result(case, compiled_graph=[compiled_us] * 3, fused_graph=[fused_us] * 3)


def decided(*decisions: tuple[str, str, str]) -> StackResult:
    """A cell in which these ops took these paths for these reasons."""
    cell = make_cell(1.0)
    made = [CountedDecision(op=op, path=path, reason=reason, count=1) for op, path, reason in decisions]
    return cell.model_copy(update={"fused": cell.fused.model_copy(update={"decisions": made})})


# The grid


def test_the_cells_are_as_many_as_asked_for_all_different_and_the_same_each_time() -> None:
    found = cells_of("--cells 200")
    assert len(found) == len(set(found)) == 200
    assert cells_of("--cells 200") == found


@pytest.mark.parametrize("count", [24, 48])
def test_every_beginning_of_the_grid_has_seen_some_of_everything(count: int) -> None:
    found = cells_of()[:count]
    assert {case.dtype for case in found} == set(AXES["dtype"][0])
    assert {case.masked for case in found} == {False, True}
    assert {case.context for case in found} == set(AXES["context"][0])
    assert {case.length for case in found} == set(AXES["length"][0])
    assert {case.dim // case.heads for case in found} == set(AXES["head_dim"][0])
    assert len({case.dim for case in found}) >= len(AXES["dim"][0]) * 2 / 3


def test_a_small_grid_is_taken_whole_and_heads_divide_their_dim() -> None:
    found = cells_of("--dim 80,128 --head-dim 16,64 --length 5 --context 0,3 --rows 64 --dtype float16 --masked no")
    assert {(case.dim, case.heads, case.context, case.batch) for case in found} == {
        (dim, heads, context, batch)
        for dim, heads in ((80, 5), (128, 8), (128, 2))
        for context, batch in ((0, 12), (3, 8))
    }
    assert {(case.feed_forward / case.dim, case.layers) for case in found} == {(4, 2)}


# Shortfalls and the table


@pytest.mark.parametrize(("fused_us", "short"), [(99.0, 0), (104.0, 0), (106.0, 1)])
def test_a_cell_falls_short_where_fused_is_slower_by_more_than_5_percent(fused_us: float, short: int) -> None:
    found = shortfalls(make_record(make_cell(fused_us)))
    assert len(found) == short
    assert all("D 4, 2 heads, x 3, context 1, batch 2, bfloat16" in line for line in found)


def test_a_cell_without_a_fused_time_falls_short_but_one_without_a_compiled_one_does_not() -> None:
    (found,) = shortfalls(make_record(without(make_cell(1.0), "fused_graph")))
    assert "E: no" in found
    assert shortfalls(make_record(without(make_cell(1.0), "compiled_graph"))) == []


@pytest.mark.parametrize(
    ("decisions", "expected"),
    [
        ([("stack", "fused", "on a GPU; tiles tier")], "tiles"),
        ([("stack", "fused", "on a GPU; rows tier, not tiles: wide"), ("pack_heads", "fused", "")], "rows"),
        (
            [("stack", "fused", "; rows tier, not tiles: wide"), ("joint_attention", "pytorch", "head dim")],
            "rows, by PyTorch joint_attention",
        ),
        ([("stack", "pytorch", "D above 2048"), ("layernorm_adaln", "fused", "")], "modules: D above 2048"),
        ([], "modules"),
    ],
)
def test_the_tier_is_what_explain_tells(decisions: list[tuple[str, str, str]], expected: str) -> None:
    assert tier(decided(*decisions)) == expected


def test_the_table_has_a_row_for_each_cell_by_size_with_the_ratio_of_each_round() -> None:
    large = TINY.model_copy(update={"dim": 8, "masked": True, "context": 0})
    small = make_result(TINY, compiled_graph=[100.0, 400.0, 900.0], fused_graph=[100.0, 200.0, 300.0])
    left = TINY.model_copy(update={"dim": 64})
    text = markdown_table(make_record(make_cell(20.0, case=large), small, not_begun=(left,)))
    header, rule, *rows = text.splitlines()[2:6]
    assert [line.count("|") for line in (rule, *rows)] == [header.count("|")] * 3
    assert [row.split(" | ")[:7] for row in rows] == [
        ["| 4", "2 of 2", "3", "1", "2", "bfloat16", "no"],
        ["| 8", "2 of 4", "3", "0", "2", "bfloat16", "yes"],
    ]
    assert "| 2.00 ± 2.00 |" in rows[0]
    assert "| 0.1000 ± 0.0000 | 0.0200 ± 0.0000 | 5.00 ± 0.00 | 1.0e-03 / 1.0e-03 |" in rows[1]
    assert "- D 64, 2 heads, x 3, context 1, batch 2, bfloat16: not begun" in text


# A run, its timing replaced


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> Callable[..., tuple[int, StackRecord]]:
    """Runs `sizes` with the vanilla tree in both roles and time_case replaced; its exit code and the record."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(stack, "describe_stack_machine", lambda: MACHINE)
    file = tmp_path / "sizes.json"

    def run(time_case: Callable[[StackCase], StackResult], *arguments: str) -> tuple[int, StackRecord]:
        monkeypatch.setattr(stack, "time_case", lambda case, *_: time_case(case))
        code = main(["sizes", "--after", str(BEFORE), "--output", str(file), *arguments])
        record = read_record(file)
        validate(StackRecord, record.model_dump(mode="json"))
        assert table_of(file) == markdown_table(record)
        return code, record

    return run


def test_a_run_takes_the_cells_in_their_order_with_both_contenders(run: Callable[..., tuple[int, StackRecord]]) -> None:
    code, record = run(lambda case: make_cell(1.0, case=case), "--cells", "5")
    assert (code, record.benchmark) == (0, "sizes")
    assert tuple(result.case for result in record.results) == cells_of()[:5]


def test_a_cell_that_fails_is_named_and_the_others_go_on(
    run: Callable[..., tuple[int, StackRecord]], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = cells_of()[1]

    def time_case(case: StackCase) -> StackResult:
        if case == wrong:
            raise RuntimeError("fused_graph: expected an error below 5e-02, got 1.0")
        return make_cell(1.0, case=case)

    code, record = run(time_case, "--cells", "3")
    assert code == 1
    assert [len(result.timings) for result in record.results] == [2, 0, 2]
    assert [each.contender for each in record.results[1].unmeasured] == ["compiled_graph", "fused_graph"]
    assert "got 1.0" in capsys.readouterr().out.splitlines()[-1]


def test_a_run_in_which_nothing_was_measured_ends_with_3(run: Callable[..., tuple[int, StackRecord]]) -> None:
    assert run(make_result, "--cells", "1")[0] == 3


def test_past_its_budget_a_run_names_the_cells_that_it_did_not_begin(
    run: Callable[..., tuple[int, StackRecord]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0.0, 50.0, 101.0))
    monkeypatch.setattr(stack, "monotonic", lambda: next(clock))
    code, record = run(lambda case: make_cell(1.0, case=case), "--cells", "4", "--budget-s", "100")
    assert code == 0
    assert len(record.results) == 2
    assert tuple(record.not_begun) == cells_of()[2:4]
