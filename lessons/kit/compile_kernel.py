"""The process of `registers`: reads a job from stdin, compiles it for sm_90, and prints what it takes as JSON."""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

ALIGNED = [["tt.divisibility", 16]]


def compile_job(job: dict) -> dict[str, int | bool]:
    spec = importlib.util.spec_from_file_location("kernel_source", job["module"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    attributes = {(i,): ALIGNED for i, kind in enumerate(job["signature"].values()) if kind.startswith("*")}
    source = ASTSource(getattr(module, job["name"]), job["signature"], job["constants"], attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": job["num_warps"]})
    ptx = compiled.asm["ptx"]
    return {
        **assemble(ptx),
        "shared_bytes": compiled.metadata.shared,
        "tensor_core": bool(re.search(r"\b(wgmma|mma)\.", ptx)),
    }


def assemble(ptx: str) -> dict[str, int]:
    """Registers and bytes spilled, as ptxas says."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", str(path), "-o", str(path.with_suffix(".cubin"))]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),
        "spills": sum(int(n) for n in re.findall(r"(\d+) bytes spill", said)),
    }


if __name__ == "__main__":
    print(json.dumps(compile_job(json.load(sys.stdin))))
