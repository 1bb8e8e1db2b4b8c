"""The benchmark's arithmetic, without a GPU: what a record says, where it falls short, which tree is which."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from evaluation.bench.__main__ import main
from evaluation.bench.joint_attention import AttentionCase, vanilla_attention
from evaluation.bench.norm_adaln import OPS, NormCase
from evaluation.bench.record import BenchMachine, BenchRecord, Timing
from evaluation.bench.records import read_record, table_of
from evaluation.bench.table import markdown_table, share, shortfalls
from evaluation.bench.trees import LoadedTree, hash_tree, load_tree
from evaluation.report.schema import validate

ROOT = Path(__file__).resolve().parents[2]
LARGE = (8, 4096, 3072)


def make_record(fused_us: list[float], compiled_us: list[float], floor_bytes: int = 1000) -> BenchRecord:
    """A record of one case, copy bandwidth 1 GB/s, in which eager takes 1 s."""
    machine = BenchMachine(
        gpu="G", driver="1", torch_version="2", triton_version="3", cuda_version="13", python_version="3", copy_gb_s=1.0
    )
    rounds = {"eager": [1e6] * 3, "compiled": compiled_us, "fused": fused_us}
    timings = [
        Timing(
            op="layernorm_adaln",
            shape=LARGE,
            dtype="bfloat16",
            direction="forward",
            mode=mode,
            contender=name,
            rounds_us=times,
            samples=30,
            floor_bytes=floor_bytes,
            error=1e-3,
        )
        for mode in ("eager", "graph")
        for name, times in rounds.items()
    ]
    return BenchRecord(
        command="c", started_at=datetime.now(UTC), before_sha256="b", after_sha256="a", machine=machine, timings=timings
    )


def test_a_timing_tells_the_median_and_the_quartile_distance_of_its_rounds() -> None:
    timing = make_record([1.0, 2.0, 3.0, 4.0, 100.0], [1.0, 1.0, 1.0]).timings[2]
    assert timing.median_us == 3.0
    assert timing.spread_us == 50.5


def test_a_faster_fused_op_falls_short_nowhere() -> None:
    assert shortfalls(make_record([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])) == []


def test_a_fused_op_slower_than_the_spread_falls_short_in_both_modes() -> None:
    found = shortfalls(make_record([2.2, 2.2, 2.2], [2.0, 2.0, 2.0]))
    assert [line.partition(":")[0] for line in found] == [
        "layernorm_adaln 8x4096x3072 forward, eager",
        "layernorm_adaln 8x4096x3072 forward, graph",
    ]


def test_a_fused_op_slower_within_the_spread_does_not_fall_short() -> None:
    assert shortfalls(make_record([2.0, 2.1, 2.6], [2.0, 2.0, 2.0])) == []


@pytest.mark.parametrize(("microseconds", "short"), [(2e5, 0), (3e5, 2)], ids=["86%", "57%"])
def test_a_large_case_must_reach_the_share_of_the_copy_bandwidth(microseconds: float, short: int) -> None:
    record = make_record([microseconds] * 3, [1e6] * 3, floor_bytes=172_000_000)
    assert len(shortfalls(record)) == short


def test_share_is_the_floor_bytes_per_time_over_the_copy_bandwidth() -> None:
    record = make_record([2.0] * 3, [4.0] * 3)
    assert share(record.timings[2], record) == pytest.approx(0.5)


def test_the_table_has_a_row_for_each_case_with_the_ratio_to_torch_compile() -> None:
    header, _, row = markdown_table(make_record([2.0] * 3, [5.0] * 3)).splitlines()[2:]
    assert row.count("|") == header.count("|")
    assert "8 x 4096 x 3072" in row
    assert "2.50x" in row


def test_the_table_command_prints_a_stored_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record([2.0] * 3, [5.0] * 3)
    (tmp_path / "record.json").write_text(record.model_dump_json())
    assert main(["table", str(tmp_path / "record.json")]) == 0
    assert capsys.readouterr().out.strip() == markdown_table(record)


def test_a_record_refuses_nan() -> None:
    with pytest.raises(ValidationError):
        make_record([float("nan")] * 3, [1.0] * 3)


@pytest.mark.parametrize("command", ["ops", "stack", "sizes", "tune"])
def test_without_a_gpu_nothing_is_measured_and_the_exit_code_says_so(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([command]) == 3
    assert "GPU" in capsys.readouterr().err


def test_two_trees_are_loaded_side_by_side(after_tree: LoadedTree) -> None:
    before, after = load_tree(ROOT / "repository_before"), after_tree.mmdit
    assert not hasattr(before, "explain")
    assert hasattr(after, "explain")
    x, scale, shift = torch.randn(2, 3, 8), torch.randn(2, 8), torch.randn(2, 8)
    torch.testing.assert_close(before.layernorm_adaln(x, scale, shift), after.layernorm_adaln(x, scale, shift))


def test_the_hash_of_a_tree_follows_its_python_files(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    first = hash_tree(tmp_path)
    (tmp_path / "notes.txt").write_text("2")
    assert hash_tree(tmp_path) == first
    (tmp_path / "a.py").write_text("3")
    assert hash_tree(tmp_path) != first


@pytest.mark.parametrize("op", OPS)
def test_the_benchmarks_oracle_agrees_with_the_vanilla_tree_and_sees_a_wrong_gradient(op: str) -> None:
    function = getattr(load_tree(ROOT / "repository_before"), op)
    x, scale, shift = (torch.randn(2, *size, requires_grad=True) for size in ((5, 8), (1, 8), (1, 8)))
    case = NormCase(op, x, scale, shift, torch.randn(2, 5, 8))
    out, d_x, d_scale, d_shift = case.call(function, "forward+backward")()
    assert case.error((out, d_x, d_scale, d_shift)) < 1e-5
    assert case.error((out, d_x, d_scale * 1.1, d_shift)) > 1e-2


@pytest.mark.parametrize("masked", [False, True])
def test_the_benchmarks_attention_agrees_with_its_oracle_and_a_wrong_one_does_not(masked: bool) -> None:
    query, key, value = torch.randn(3, 2, 4, 9, 8)
    attn_mask = (torch.rand(2, 6, 6) < 0.5) | torch.eye(6, dtype=torch.bool) if masked else None
    case = AttentionCase(query, key, value, attn_mask, context_length=3)
    (out,) = case.call(vanilla_attention, "forward")()
    assert case.error((out,)) < 1e-5
    assert case.error((out.roll(1, dims=1),)) > 0.1


@pytest.mark.parametrize("file", sorted((ROOT / "evaluation/records").rglob("*.json")), ids=lambda file: file.name)
def test_a_committed_record_is_valid_and_the_readme_shows_its_table(file: Path) -> None:
    validate(type(read_record(file)), json.loads(file.read_text()))
    assert table_of(file) in (ROOT / "README.md").read_text()
