"""What a benchmark runs on."""

import platform
import subprocess

import torch
import triton

from evaluation.bench.record import BenchMachine
from evaluation.bench.timing import copy_bandwidth


def describe_machine() -> BenchMachine:
    """The current GPU and its software; measures the copy bandwidth, which takes a moment."""
    return BenchMachine(
        gpu=torch.cuda.get_device_name(),
        driver=ask_nvidia_smi("driver_version"),
        torch_version=torch.__version__,
        triton_version=triton.__version__,
        cuda_version=torch.version.cuda,
        python_version=platform.python_version(),
        copy_gb_s=copy_bandwidth(),
    )


def ask_nvidia_smi(field: str) -> str:
    """A field of nvidia-smi --query-gpu, of the first GPU and without its unit."""
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
