"""Whether two trees learn the same: the bound on loss curves, and small runs of the real thing."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import pytest
from rich.progress import Progress

from evaluation.config_file import parse_with_config
from evaluation.report.schema import validate
from evaluation.store.metrics import read_metrics
from evaluation.store.run import read_run
from evaluation.suite.probe import Machine
from evaluation.training import keep
from evaluation.training.__main__ import build_parser, main, resolve
from evaluation.training.config import TrainingConfig
from evaluation.training.errors import StepFailed
from evaluation.training.network import FlowNetwork
from evaluation.training.parity import ParityRecord, ParityRun, compare, in_windows
from evaluation.training.runs import Job, run_all
from evaluation.training.trainer import How, Trained, Trainer

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"batch": 16, "dim": 16, "heads": 2, "feed_forward": 32, "layers": 1}
CONFIG = TrainingConfig(**SIZES, steps=30, dropout=0.0, learning_rate=3e-3, dtype="float32", seed=0)
TINY = "--steps 12 --batch 8 --dim 16 --heads 2 --feed-forward 16 --layers 1 --threads 1"


def run(role: str, seed: int, windows: list[float], sha256: str = "w") -> ParityRun:
    config = CONFIG.model_copy(update={"seed": seed})
    known = {
        "last_weights_sha256": "l",
        "measures": {},
        "layouts": {},
        "seconds": 1.0,
        "peak_bytes": None,
        "path": None,
    }
    return ParityRun(role=role, config=config, first_weights_sha256=f"{sha256}{seed}", windows=windows, **known)


def runs(after: float, **changes: str) -> list[ParityRun]:
    """Three seeds, whose curves are 0.1 apart; after's are before's plus `after`."""
    curves = [[2.0 + 0.1 * seed, 1.0 + 0.1 * seed] for seed in range(3)]
    found = [run("before", seed, curve) for seed, curve in enumerate(curves)]
    return found + [run("after", seed, [v + after for v in curve], **changes) for seed, curve in enumerate(curves)]


@pytest.mark.parametrize(("distance", "same"), [(0.0, True), (0.3, True), (-0.3, True), (0.34, False), (-0.34, False)])
def test_curves_may_differ_by_four_standard_deviations_of_their_means(distance: float, same: bool) -> None:
    (result,) = compare(runs(distance))
    assert [w.allowed for w in result.windows] == pytest.approx([4 * 0.1 * (2 / 3) ** 0.5] * 2)
    assert result.same is same


def test_other_first_weights_or_seeds_cannot_be_compared() -> None:
    (unlike,) = compare(runs(0.0, sha256="other"))
    assert not unlike.same
    assert "other weights at seeds [0, 1, 2]" in unlike.problem
    (missing,) = compare(runs(0.0)[:-1])
    assert not missing.same
    assert "[0, 1, 2] and [0, 1]" in missing.problem


def test_a_curve_is_cut_into_windows_that_hold_every_step_once() -> None:
    assert in_windows([float(i) for i in range(40)]) == [2 * i + 0.5 for i in range(20)]
    assert in_windows([3.0, 5.0]) == [3.0, 5.0]


def cut(network: FlowNetwork) -> FlowNetwork:
    """Its stack passes no gradient on, its outputs being right."""
    network.stack.register_forward_hook(lambda *a: type(a[-1])(*(t.detach() for t in a[-1])))
    return network


def test_a_tree_whose_gradients_are_wrong_does_not_learn_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "repository_before"))

    def curves(role: str, spoil: Callable[[FlowNetwork], FlowNetwork]) -> list[ParityRun]:
        found = []
        for seed in range(2):
            config = CONFIG.model_copy(update={"seed": seed, "steps": 60})
            how = How(tmp_path / f"{role}{seed}", samples=0)
            trainer = Trainer(config, how, lambda *a: spoil(FlowNetwork(*a)))
            trainer.run()
            found.append(run(role, seed, in_windows(trainer.losses)))
        return found

    right = curves("before", lambda network: network)
    copies = [r.model_copy(update={"role": "after"}) for r in right]
    assert compare(right + copies)[0].same
    assert not compare(right + curves("after", cut))[0].same


def test_both_trees_learn_the_same_and_leave_their_record_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keep, "describe_machine", lambda _device: Machine(torch_version="0"))  # seconds, to find out
    output, root = tmp_path / "output", tmp_path / "store"
    command = f"{TINY} --seeds 2 --dropout 0.1 --samples 0 --trace --at-once 2 --output {output}"
    assert main([*command.split(), "--store", str(root)]) == 0
    record = ParityRecord.model_validate_json((output / "record.json").read_text())
    validate(ParityRecord, json.loads((output / "record.json").read_text()))
    runs = [(role, seed, 0.1) for seed in (0, 1) for role in ("before", "after")]
    assert [(r.role, r.config.seed, r.config.dropout) for r in record.runs] == runs
    assert all(result.same for result in record.results)
    assert (output / "curves.png").stat().st_size > 10_000

    stored = [read_run(file.parent) for file in sorted(root.glob("*/run.json"))]
    assert {r.status for r in stored} == {"success"}
    artifacts = {"profile.trace.json", "backward.trace.json", "checkpoint.safetensors"}
    assert [{a.name for a in r.seal.artifacts} for r in stored] == [artifacts] * 4
    metrics = list(read_metrics(root / stored[0].id / "metrics.jsonl"))
    assert [m.step for m in metrics] == list(range(13))
    assert {"loss", "gradient_norm", "learning_rate"} < metrics[0].values.keys()
    assert metrics[-1].values.keys() == {"total_seconds"}

    assert main([*command.split(), "--store", str(root), "--resume"]) == 0
    assert len(list(root.glob("*/run.json"))) == 4
    again = ParityRecord.model_validate_json((output / "record.json").read_text())
    assert again.runs == record.runs  # to the time they took: what has ended is not done again


@pytest.mark.parametrize(("at_once", "raised"), [(1, BrokenBarrierError), (2, StepFailed)])
def test_as_many_runs_as_asked_for_run_side_by_side(
    at_once: int, raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = Barrier(2)

    def train(*_job: object) -> Trained:
        met.wait(timeout=0.5 * at_once**4)
        raise StepFailed("two ran")

    monkeypatch.setattr("evaluation.training.runs.train_tree", train)
    monkeypatch.setattr("evaluation.training.runs.ProcessPoolExecutor", lambda n, _context: ThreadPoolExecutor(n))
    configs = [CONFIG.model_copy(update={"seed": seed}) for seed in (0, 1)]
    jobs = [Job("before", ROOT, config, How(tmp_path / str(config.seed))) for config in configs]
    with pytest.raises(raised):
        list(run_all(jobs, at_once, Progress(disable=True)))


def test_a_tree_that_cannot_be_trained_ends_the_command_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mmdit.py").write_text("raise RuntimeError('no such luck')\n")
    assert main([*TINY.split(), "--tree", "after", "--after", str(tmp_path)]) == 1
    assert "a run failed: RuntimeError: no such luck" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--seeds 1", "at least 2"),
        ("--dropout 1", "numbers from 0 to 0.99, got '1'"),
        ("--after nowhere", "not there"),
        ("--heads 3", "heads that divide dim = 64 in even parts, got 3"),
        ("--length 20", "length, context: flow expects 16 and 0, its images' own, got length 20, context 0"),
        ("--batch 2 --accumulate 3", "accumulate: expected at most batch = 2, got 3"),
        ("--ema 1", "--ema: Input should be less than 1"),
        ("--resume", "--resume: expected --output"),
        ("--trace", "--trace: expected --output or --store"),
        ("--trace --store nowhere --steps 2", "--trace: expected at least 3 --steps"),
        (f"--output {ROOT}", "is not empty; --resume goes on"),
    ],
)
def test_a_wrong_option_is_a_usage_error(arguments: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err


def test_options_come_from_a_file_too_and_those_of_the_command_line_count_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "training.toml"
    file.write_text('steps = 2\ndropout = "0,0.1"\nseeds = 3\ntrace = true\nstore = "nowhere"\n')
    with pytest.raises(SystemExit):
        main(["--config", str(file)])
    assert "--trace: expected at least 3 --steps, of which it sees two, got 2" in capsys.readouterr().err
    options = parse_with_config(build_parser(), ["--config", str(file), "--steps", "4"])
    configs = resolve(options)
    assert {(config.steps, config.dropout, config.seed) for config in configs} == {
        (4, dropout, seed) for dropout in (0.0, 0.1) for seed in range(3)
    }
