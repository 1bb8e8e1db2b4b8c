"""Kernels that deploy/aot.py compiled ahead of time: found by what a launch is, and loaded without Triton.

Read once, at import: MMDIT_KERNELS=DIR is their folder; MMDIT_KERNELS_FALLBACK=1 lets Triton compile what the folder
does not have, or has for another GPU or other sources, with a warning, where otherwise KernelsError is raised.
"""

import hashlib
import json
import os
import warnings
from ctypes import addressof, c_char, c_void_p, pointer
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from struct import Struct, error
from threading import Lock
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from mmdit.errors import KernelsError
from mmdit.runtime.dispatch import FOLDER
from mmdit.runtime.driver import (
    COOPERATIVE,
    PROGRAMMATIC_STREAM_SERIALIZATION,
    Driver,
    LaunchAttribute,
    LaunchConfig,
    system_driver,
)

FALLBACK = os.environ.get("MMDIT_KERNELS_FALLBACK", "0") == "1"
FORMAT = 1  # of the manifest
MANIFEST = "manifest.json"
OPS = Path(__file__).parents[1] / "ops"
PACKED = {"pointer": "Q", "i64": "q", "i32": "i4x", "fp32": "f4x"}  # each in eight bytes of its own


class Specialisation(NamedTuple):
    """What a compiled kernel is known by, whatever the launch's sizes: no part of it needs Triton to be found."""

    kernel: str
    constants: Tuple[Any, ...]
    warps: int
    options: Tuple[Tuple[str, Any], ...]
    dtypes: Tuple[Optional[str], ...]

    @classmethod
    def of(
        cls,
        kernel: str,
        tensors: Sequence[Optional[Tensor]],
        constants: Tuple[Any, ...],
        warps: int,
        options: Dict[str, Any],
    ) -> "Specialisation":
        dtypes = [None if t is None else str(t.dtype).removeprefix("torch.") for t in tensors]
        return cls(kernel, constants, warps, tuple(sorted(options.items())), tuple(dtypes))

    @classmethod
    def from_json(cls, entry: Dict[str, Any]) -> "Specialisation":
        options = tuple([(name, value) for name, value in entry["options"]])
        return cls(entry["kernel"], tuple(entry["constants"]), entry["warps"], options, tuple(entry["dtypes"]))


class Prebuilt:
    """A loaded kernel, launched as Triton's own: kernel[(grid, 1, 1)](*arguments).

    Args:
        driver: where to load it.
        entry: the manifest's.
        cubin: its code.
        device: index of the GPU.
    """

    def __init__(self, driver: Driver, entry: Dict[str, Any], cubin: bytes, device: int) -> None:
        self.driver, self.device, self.symbol = driver, device, entry["symbol"]
        self.parameters: List[Tuple[int, Any]] = [(index, kind) for index, kind in entry["parameters"]]
        self.scratch: int = entry["scratch"]
        self.function = driver.load(cubin, entry["symbol"], entry["shared"], device)
        self.maps: Dict[Tuple[Any, ...], Any] = {}
        self.lock = Lock()  # of what follows, which a launch fills
        names = [name for _, kind in self.parameters for name in _names(kind)]
        names += ["pointer", "pointer"]  # scratch memory, of the kernel's and of a profiler's
        self.pack = Struct("<" + "".join(PACKED[name] for name in names if name != "map"))
        self.values = (c_char * self.pack.size)()
        places = accumulate([0 if name == "map" else 8 for name in names], initial=addressof(self.values))
        found = [None if name == "map" else at for name, at in zip(names, places, strict=False)]
        self.addresses = (c_void_p * len(found))(*found)
        self.map_places = [place for place, name in enumerate(names) if name == "map"]
        attributes = [PROGRAMMATIC_STREAM_SERIALIZATION] * entry["pdl"] + [COOPERATIVE] * entry["cooperative"]
        self.attributes = (LaunchAttribute * 2)()
        for attribute, kind in zip(self.attributes, attributes, strict=False):
            attribute.id, attribute.value[0] = kind, 1
        self.config = LaunchConfig((1, 1, 1), (entry["threads"], 1, 1), entry["shared"])
        self.config.attributes, self.config.attribute_count = pointer(self.attributes[0]), len(attributes)

    def __getitem__(self, grid: Tuple[int, int, int]) -> Callable[..., None]:
        return partial(self.launch, grid[0], torch._C._cuda_getCurrentRawStream(self.device))

    def launch(self, grid: int, stream: int, *arguments: Any) -> None:
        """Run it as `grid` programs on a stream, with the arguments that Triton's own would take, constants and all.

        Raises KernelsError where the driver does, or for a number that the compiled kernel has no room for.
        """
        if grid == 0:  # nothing to do, and an error to the driver
            return
        values: List[Any] = []
        maps: List[Any] = []
        for index, kind in self.parameters:
            argument = arguments[index]
            if isinstance(kind, dict):
                maps.append(self._map(argument, kind))
                values += argument.tensor.shape
                values += argument.tensor.stride()
            else:
                values.append(argument.data_ptr() if kind == "pointer" else argument)
        scratch = None
        if self.scratch:
            scratch = torch.empty(grid * self.scratch, dtype=torch.uint8, device=f"cuda:{self.device}")
        with self.lock:
            try:
                self.pack.pack_into(self.values, 0, *values, 0 if scratch is None else scratch.data_ptr(), 0)
            except error as problem:
                raise KernelsError(self.symbol, "numbers of the types it was compiled for", str(problem)) from None
            for place, found in zip(self.map_places, maps, strict=True):
                self.addresses[place] = addressof(found)
            self.config.grid[0], self.config.stream = grid, stream
            self.driver.launch(self.config, self.function, self.addresses, self.device)

    def _map(self, block: Any, kind: Dict[str, Any]) -> Any:
        tensor = block.tensor
        key = (tensor.data_ptr(), *tensor.shape, *tensor.stride(), *kind["block"])
        found = self.maps.get(key)
        if found is None:
            if len(self.maps) >= 1024:  # of tensors long gone
                self.maps.clear()  # here, and perhaps of another thread's, which holds its own
            found = self.maps[key] = self.driver.tensor_map(
                *(tensor.data_ptr(), tensor.shape, tensor.stride(), kind["block"]),
                *(kind["element_type"], kind["element_size"], kind["swizzle"]),
            )
        return found


def _names(kind: Any) -> List[str]:
    """The parameters that an argument becomes."""
    if isinstance(kind, str):
        return [kind]
    rank = len(kind["block"])
    return ["map", *["i32"] * rank, *["i64"] * rank]


class Kernels:
    """The kernels of one folder.

    Raises KernelsError where its manifest is missing, of another format, or of other sources than this package's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
        except (OSError, ValueError) as problem:
            raise KernelsError("MMDIT_KERNELS", f"a folder with a {MANIFEST}", f"{folder}: {problem}") from None
        for field, expected in (("format", FORMAT), ("sources", sources_hash())):
            if manifest.get(field) != expected:
                reason = f"{field} {expected}, as this mmdit has"
                raise KernelsError("MMDIT_KERNELS", reason, f"{manifest.get(field)} in {folder}: compile them anew")
        self.triton: str = manifest["triton"]
        self.entries = {(entry["arch"], Specialisation.from_json(entry)): entry for entry in manifest["kernels"]}
        self.arches = sorted({arch for arch, _ in self.entries})

    def kernel(self, driver: Driver, specialisation: Specialisation, device: int, version: Tuple[int, int]) -> Prebuilt:
        """Loaded for a device of this compute capability; KernelsError where the folder has no such, or a damaged."""
        arch = next((arch for arch in self.arches if runs_on(arch, version)), None)
        if arch is None:
            had = ", ".join(map(str, self.arches))
            raise KernelsError("MMDIT_KERNELS", f"kernels for compute capability {version}", f"those for cuda:{had}")
        entry = self.entries.get((arch, specialisation))
        if entry is None:
            raise KernelsError("MMDIT_KERNELS", f"{specialisation} for cuda:{arch}", f"none such in {self.folder}")
        path = self.folder / entry["cubin"]
        cubin = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(cubin).hexdigest() != entry["sha256"]:
            raise KernelsError("MMDIT_KERNELS", f"{path} of sha256 {entry['sha256']}", "another, or none")
        return Prebuilt(driver, entry, cubin, device)


def runs_on(arch: int, version: Tuple[int, int]) -> bool:
    """Whether a cubin of this architecture runs there: those from Hopper on hold instructions of its own alone."""
    major, minor = divmod(arch, 10)
    return version[0] == major and (version[1] >= minor if arch < 90 else version[1] == minor)


@cache
def sources_hash() -> str:
    """Of all files of kernels, by which compiled ones are known to be theirs."""
    total = hashlib.sha256()
    for path in sorted(OPS.glob("*/kernel*.py")):
        total.update(f"{path.relative_to(OPS)}\0".encode() + path.read_bytes())
    return total.hexdigest()


@cache
def kernels(folder: str) -> Kernels:
    return Kernels(Path(folder))


def prebuilt_kernel(
    specialisation: Specialisation, device: int, version: Tuple[int, int], aligned: bool
) -> Optional[Prebuilt]:
    """The kernel of MMDIT_KERNELS for a launch, or None, for Triton to compile it: see this module."""
    if FOLDER is None:
        return None
    try:
        if not aligned:
            raise KernelsError(specialisation.kernel, "addresses and strides that 16 divides", "others")
        return kernels(FOLDER).kernel(system_driver(), specialisation, device, version)
    except KernelsError as problem:
        if not FALLBACK:
            raise
        warnings.warn(f"Triton compiles {specialisation.kernel}: {problem}", RuntimeWarning, stacklevel=3)
        return None


def triton_version() -> str:
    """Of the Triton that compiles the kernels, or did."""
    if FOLDER is not None:
        try:
            return kernels(FOLDER).triton
        except KernelsError:
            if not FALLBACK:
                raise
    import triton

    return triton.__version__
