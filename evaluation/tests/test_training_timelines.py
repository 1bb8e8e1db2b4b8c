"""Timelines of a step, layouts of the fused ops' inputs, and what a layout's description says is wrong with it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from evaluation.training.config import TrainingConfig
from evaluation.training.layout import describe, oddities, overlaps, shared
from evaluation.training.timeline import BACKWARD, PROFILE, BackwardSpans
from evaluation.training.trainer import How, Trainer

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"batch": 4, "dim": 16, "heads": 2, "feed_forward": 16, "layers": 1}
CONFIG = TrainingConfig(**SIZES, steps=3, dropout=0.0, learning_rate=1e-3, dtype="float32", seed=0)


def test_spans_hold_every_node_of_a_backward_once_and_name_its_weights(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    spans = BackwardSpans(network)
    loss = network(torch.ones(2, 3)).sum()
    spans.watch(loss)
    loss.backward()
    spans.write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = [event["name"] for event in events]
    assert names.count("AddmmBackward0") == 2
    assert names.count("ReluBackward0") == 1
    leaves = [event["args"]["weights"] for event in events if event["name"].endswith("AccumulateGrad")]
    assert sorted(leaves) == [["0.bias"], ["0.weight"], ["2.bias"], ["2.weight"]]
    products = [event["args"]["weights"] for event in events if event["name"] == "AddmmBackward0"]
    assert [sorted(weights) for weights in products] == [["2.bias", "2.weight"], ["0.bias", "0.weight"]]
    assert events[0]["args"]["gradients"] == ["float32 (), strides ()"]
    ends = [event["ts"] + event["dur"] for event in events]
    assert all(event["ph"] == "X" and event["dur"] > 0 for event in events)
    assert all(end <= event["ts"] + 0.01 for end, event in zip(ends, events[1:], strict=False))


def test_a_traced_run_leaves_timelines_and_the_bits_of_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "repository_before"))
    traced, plain = (Trainer(CONFIG, How(tmp_path / name, trace=name == "traced")) for name in ("traced", "plain"))
    traced.run()
    plain.run()
    assert traced.losses == plain.losses
    profile = json.loads((traced.how.folder / PROFILE).read_text())["traceEvents"]
    assert {"aten::addmm", "Optimizer.step#AdamW.step"} <= {event.get("name") for event in profile}
    backward = json.loads((traced.how.folder / BACKWARD).read_text())["traceEvents"]
    named = {name for event in backward for name in event["args"]["weights"]}
    assert {"stack.layers.0.mlp.0.weight", "tokens_in.weight"} <= named
    assert not list(plain.how.folder.glob("*.trace.json"))


LAYOUTS = """
import sys
from pathlib import Path
import torch, mmdit
from evaluation.training.config import TrainingConfig
from evaluation.training.trainer import How, Trainer
x, scale = torch.randn(2, 4, 32), torch.randn(2, 32)
with mmdit.count_layouts() as counts:
    mmdit.layernorm_adaln(x, scale, scale)
    mmdit.layernorm_adaln(x[:, ::2], scale, scale)
    mmdit.layernorm_adaln(x.new_empty(2, 32, 4).mT, scale, scale)
    try:
        mmdit.count_layouts().__enter__()
    except RuntimeError as error:
        print(error)
print(counts)
with mmdit.count_layouts() as again:
    mmdit.layernorm_adaln(x.mT.contiguous().mT, scale, scale)
print(again)
sizes = {"batch": 2, "dim": 16, "heads": 1, "feed_forward": 64, "layers": 1, "dropout": 0.0, "seed": 0}
config = TrainingConfig(**sizes, steps=2, learning_rate=1e-3, dtype="float32")
for until in (1, 2):
    trainer = Trainer(config, How(Path(sys.argv[1]), samples=0))
    if until == 2:
        trainer.resume()
    trainer.run(until)
    print(trainer.layouts())
print(trainer.path)
"""


def test_layouts_of_the_fused_ops_inputs_are_counted_from_0_in_each_run(tmp_path: Path) -> None:
    """In a process of its own, where Triton's interpreter takes the kernels."""
    path = f"{ROOT}{os.pathsep}{ROOT / 'repository_after'}"
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", LAYOUTS, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    nested, counts, again, once, twice, path = done.stdout.splitlines()
    assert nested == "count_layouts: expected a call outside another count_layouts, got a nested one"
    assert counts == "{'norm_adaln.contiguous': 7, 'norm_adaln.strided': 1, 'norm_adaln.copied': 1}"
    assert again == "{'norm_adaln.copied': 1, 'norm_adaln.contiguous': 2}"
    once, twice = map(ast.literal_eval, (once, twice))
    assert once.keys() == {"norm_adaln.contiguous", "norm_adaln.strided"}
    assert twice == {name: 2 * count for name, count in once.items()}  # of both steps, in two processes' turns
    assert path == "mixed"  # norms by a kernel, the rest by PyTorch


@pytest.mark.parametrize(
    ("tensor", "odd"),
    [
        (torch.zeros(2, 3), []),
        (torch.zeros(2, 3).mT, ["not contiguous"]),
        (torch.zeros(4, 3)[::2], ["not contiguous"]),
        (torch.zeros(1, 3).expand(2, 3), ["elements share memory"]),
        (torch.zeros(4).unfold(0, 2, 1), ["elements share memory"]),
        (torch.zeros(0, 3).expand(0, 3), []),
        (torch.zeros(1, 1).expand(1, 1), []),
        (torch.frombuffer(bytearray(9), dtype=torch.float32, offset=1, count=2), ["not aligned to its elements"]),
    ],
    ids=["dense", "transposed", "strided", "expanded", "unfolded", "empty", "of one", "unaligned"],
)
def test_a_description_says_what_is_odd_about_a_layout(tensor: Tensor, odd: list[str]) -> None:
    assert oddities(tensor) == odd
    assert overlaps(tensor) == ("elements share memory" in odd)
    told = f"float32 {tuple(tensor.shape)}, strides {tensor.stride()}"
    assert describe(tensor) == ", ".join([told, *odd])


def test_tensors_that_share_memory_are_named() -> None:
    whole = torch.zeros(4, 4)
    assert shared({"a": whole[:2], "b": whole[2:]}) == []
    assert shared({"whole": whole, "row": whole[1], "other": whole[3]}) == [
        "row lies in the memory of whole",
        "other lies in the memory of whole",
    ]
