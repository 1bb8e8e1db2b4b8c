"""Where a lesson's kernels run: on the GPU, or in Triton's interpreter; settled before triton is imported."""

import os
import sys

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a GPU must not take one: grading forks
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the profiler warns of tensors made before it

import torch

DEVICE = "cuda" if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"

if DEVICE == "cpu":
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise ImportError("lessons.kit: expected to be imported before triton, got triton first; move its import down")
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)  # the sizes are tiny
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # what a kernel forgets to write is NaN
