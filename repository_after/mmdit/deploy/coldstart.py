"""How long a new process takes to its first result of the stack, by where its kernels come from.

    python -m mmdit.deploy.aot --target cuda:90 --dtype bfloat16 --batch 1 --output KERNELS
    python -m mmdit.deploy.coldstart --kernels KERNELS

eager: MMDIT_FUSED=0. jit: Triton compiles, its cache empty. warm: Triton's cache is full. cubins: KERNELS, with an
empty cache and no compiler on PATH. torch.compile: of the unfused stack, Inductor's cache empty. Each row is the median
of --rounds processes: imports, and from there to the first and to the second result. Needs a GPU, or --device cpu,
where only eager and torch.compile can run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence

CHILD = """
import json, os, sys, time
started = float(os.environ["MMDIT_STARTED"])
import torch
import mmdit
imported = time.time()
device, batch = sys.argv[1], int(sys.argv[2])
dtype = torch.bfloat16 if device == "cuda" else torch.float32
stack = mmdit.MMDiT(mmdit.MMDiTConfig()).to(device, dtype).eval()
rng = torch.Generator().manual_seed(0)
shapes = (batch, 186, 128), (batch, 128), (batch, 64, 128)
x, y, context = (torch.randn(shape, generator=rng).to(device, dtype) for shape in shapes)
call = torch.compile(stack) if sys.argv[3] == "torch.compile" else stack
times = []
with torch.no_grad():
    for _ in range(2):
        call(x, y, context).x_out.float().sum().item()
        times.append(time.time())
print(json.dumps([imported - started, times[0] - imported, times[1] - times[0]]))
"""
WAYS = ("eager", "jit", "warm", "cubins", "torch.compile")
ON_CPU = ("eager", "torch.compile")


def environment(way: str, cache: Path, kernels: Optional[Path]) -> Dict[str, str]:
    """The variables that make a process take its kernels in one of WAYS, with its caches in a folder."""
    names = ("MMDIT_KERNELS", "MMDIT_KERNELS_FALLBACK", "MMDIT_FUSED", "TRITON_INTERPRET", "CC", "CXX")
    found = {name: value for name, value in os.environ.items() if name not in names}
    package = str(Path(__file__).parents[2])
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    found |= {"TRITON_CACHE_DIR": str(cache / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
    if way in ("eager", "torch.compile"):
        found["MMDIT_FUSED"] = "0"
    if way == "cubins":
        found |= {"MMDIT_KERNELS": str(kernels), "PATH": ""}
    return found


def measure(way: str, device: str, batch: int, rounds: int, kernels: Optional[Path]) -> List[float]:
    """Median seconds of the imports, from there to the first result, and from that to the second.

    Raises RuntimeError with what a process printed that failed.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds + (way == "warm")):
            cache = Path(folder) / ("one" if way == "warm" else str(i))
            variables = {**environment(way, cache, kernels), "MMDIT_STARTED": str(time.time())}
            command = [sys.executable, "-c", CHILD, device, str(batch), way]
            done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{way}: {done.stderr.strip()[-500:]}")
            if way != "warm" or i > 0:
                found.append(json.loads(done.stdout.splitlines()[-1]))
    return [statistics.median(times) for times in zip(*found, strict=True)]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m mmdit.deploy.coldstart", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kernels", type=Path, metavar="DIR", help="of mmdit.deploy.aot; without it no cubins")
    parser.add_argument("--way", action="append", choices=WAYS, help="repeatable (default: all that can run)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way (default: %(default)s)")
    given = parser.parse_args(arguments)

    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        print("not run: no CUDA device (--device cpu measures eager and torch.compile)", file=sys.stderr)
        return 3
    ways = [way for way in WAYS if given.device == "cuda" or way in ON_CPU]
    ways = [way for way in given.way or ways if way != "cubins" or given.kernels]
    where = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, batch {given.batch}, 12 layers; seconds, median of {given.rounds}\n")
    print("| kernels | imports | to the first result | second result |\n| --- | --- | --- | --- |", flush=True)
    for way in ways:
        times = measure(way, given.device, given.batch, given.rounds, given.kernels)
        print(f"| {way} | {' | '.join(f'{seconds:.3f}' for seconds in times)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
