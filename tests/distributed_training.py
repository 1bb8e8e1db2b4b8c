"""A training step on several processes, each with its share of a batch, against the whole batch on one:

    torchrun --nproc-per-node 2 -m tests.distributed_training

on as many GPUs, or on CPUs in Triton's interpreter where there are none (with TRITON_INTERPRET=1).
"""

import gc
import os
import sys
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.cases import Shape
from tests.numerics import relative_l2
from tests.tiles_tier import Case, fp32_products
from tests.training_tier import draw, explained

CPU_CASE = Case("cross", Shape(2, 3, 2, 2, 16), torch.float32, 64)
GPU_CASE = Case("cross", Shape(8, 186, 64, 8, 16), torch.bfloat16, 512, layers=3)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def wrapped(stack: nn.Module, how: str) -> nn.Module:
    if how == "ddp":
        return DistributedDataParallel(stack)
    for layer in stack.layers:
        fully_shard(layer)
    return fully_shard(stack)


def step_matches_one_process(how: str, device: str, case: Case) -> None:
    """Every weight's gradient, and the mean of the processes' own over all weights."""
    drawn, whole = draw(case, device, 7), draw(case, device, 7)
    want = explained(whole)[0].gradients
    rank, world = dist.get_rank(), dist.get_world_size()
    module = wrapped(drawn.stack, how)
    inputs = {name: t.chunk(world)[rank] for name, t in drawn.inputs.items()}
    cotangents = [t.chunk(world)[rank] for t in drawn.cotangents.values()]

    def step() -> None:
        torch.autograd.backward(list(module(**inputs)), cotangents)

    with fp32_products("high"):
        explanation = import_module("mmdit").explain(step)
    assert explanation.launches.count("block_backward_kernel") == case.layers, str(explanation)
    for name, parameter in drawn.stack.named_parameters():
        gradient = parameter.grad if how == "ddp" else parameter.grad.full_tensor()
        error = relative_l2(gradient.double() * world, want[name].double())
        assert error < TOLERANCE[case.dtype], f"{name}: {error:.1e}"


def main() -> None:
    tree = Path(__file__).resolve().parent.parent / os.environ.get("REPO_PATH", "repository_after")
    sys.path.insert(0, str(tree))
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        for how in ("ddp", "fsdp"):
            step_matches_one_process(how, *(("cuda", GPU_CASE) if on_gpu else ("cpu", CPU_CASE)))
            print(f"{how}, process {dist.get_rank()} of {dist.get_world_size()}: gradients match", flush=True)
            gc.collect()  # what still holds the group would end it after the interpreter, whose threads abort then
        dist.barrier()  # nobody leaves while another is at work
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
