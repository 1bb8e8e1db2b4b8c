"""Compiling planned launches without a GPU, and what the compiled code takes of one."""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from mmdit.runtime.launch import Block, Planned, jit_kernel

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TENSOR_CORES = ("HMMA", "HGMMA", "UTCHMMA", "IMMA", "QGMMA", "TCGEN")
TYPES = {"i1": "i32", "u64": "i64", "f32": "fp32"}
DEVICE_TO_HOST = {8: 10, 9: 8, 10: 9}  # where a TMA data type is another on the host


class Resources(NamedTuple):
    """What a kernel takes: registers a thread, bytes of them kept in memory (spills), bytes of shared memory, and how
    many of its instructions are the tensor cores'.
    """

    registers: int
    spilled: int
    shared: int
    tensor_core: int


class _Driver:
    """What Triton's JIT asks its driver for, as if a GPU of one architecture were there."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # under which the JIT keeps what it compiled

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_planned(launch: Planned, arch: int) -> Any:
    """Triton's CompiledKernel of a planned launch for cuda:ARCH, of its cache where that has it."""
    name, _, warps, options, _ = launch.specialisation
    arguments = [a.descriptor() if isinstance(a, Block) else a for a in launch.arguments]
    before = driver._active
    driver.set_active(_Driver(arch))
    try:
        return jit_kernel(name).warmup(*arguments, grid=(1,), num_warps=warps, **dict(options))
    finally:
        driver.set_active(before)


def parameters(compiled: Any, launch: Planned) -> List[Tuple[int, Any]]:
    """The compiled kernel's parameters in their order: the index of the argument, and its type, or of a TMA descriptor
    how the driver is to encode it.

    Raises ValueError where the PTX takes others than this: a Triton that passes arguments in another way.
    """
    maps = iter(getattr(compiled.metadata, "tensordesc_meta", None) or [])
    found: List[Tuple[int, Any]] = []
    count = 2  # scratch memory
    for index, kind in enumerate(compiled.src.signature.values()):
        if kind == "constexpr":
            continue
        if kind.startswith("tensordesc"):
            meta = next(maps)
            block = list(meta["block_size"])
            element_type = DEVICE_TO_HOST.get(meta["elem_type"], meta["elem_type"])
            kind = {"block": block, "element_type": element_type, "element_size": meta["elem_size"]}
            kind["swizzle"] = meta["swizzle"]
            count += 1 + 2 * len(block)
        else:
            kind = "pointer" if kind.startswith("*") else TYPES.get(kind, kind)
            count += 1
        found.append((index, kind))
    taken = len(re.findall(r"^\s*\.param ", compiled.asm["ptx"].partition(")")[0], re.M))
    if taken != count:
        raise ValueError(f"{launch.specialisation.kernel}: expected PTX with {count} parameters, got {taken}")
    return found


def entry_of(compiled: Any, launch: Planned) -> Dict[str, Any]:
    """What the manifest says of a compiled kernel, all but its file."""
    metadata = compiled.metadata
    if metadata.num_ctas != 1 or metadata.profile_scratch_size:
        raise ValueError(f"{launch.specialisation.kernel}: expected one block a cluster and no profiler, got others")
    return {
        **launch.specialisation._asdict(),
        "symbol": metadata.name,
        "parameters": parameters(compiled, launch),
        "threads": 32 * metadata.num_warps,
        "shared": metadata.shared,
        "scratch": metadata.global_scratch_size,
        "pdl": bool(metadata.launch_pdl),
        "cooperative": bool(metadata.launch_cooperative_grid),
    }


def resources(compiled: Any) -> Resources:
    """By cuobjdump and nvdisasm, which come with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    sizes = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage))
    if sorted(sizes) != ["LOCAL", "REG", "STACK"]:
        raise ValueError(f"cuobjdump: expected REG, STACK and LOCAL, got {usage!r}")
    codes = Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)", sass, re.M))
    spilled = int(sizes["STACK"]) + int(sizes["LOCAL"])
    return Resources(int(sizes["REG"]), spilled, compiled.metadata.shared, sum(codes[name] for name in TENSOR_CORES))


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], check=True, capture_output=True, text=True).stdout
