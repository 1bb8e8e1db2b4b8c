"""SPEC K4: kernels compiled ahead of time on this machine, which needs no GPU, and how they are found and launched."""

import json
import shutil
import sys
from collections.abc import Callable
from ctypes import POINTER, Array, c_char, c_int32, c_int64, c_uint64, cast, string_at
from importlib import import_module
from pathlib import Path
from subprocess import run
from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.upgrade

KINDS = {"modulation_kernel", "qkv_kernel", "joint_attention_kernel", "rows_hopper_kernel"}
GLOBAL, RELAXED = 0, 2  # CUstreamCaptureMode
INVALID_CONTEXT = 201  # CUresult
TENSOR_MAP = b"a tensor map".ljust(128, b"\0")


class FakeLibrary:
    """libcuda on a machine without one: says yes to all, and keeps what it was asked."""

    def __init__(self) -> None:
        self.maps: list[dict[str, Any]] = []
        self.launches: list[tuple[Any, Array]] = []
        self.cubins: list[bytes] = []
        self.context: int | None = 1  # of the calling thread
        self.mode = GLOBAL
        self.loaded_in: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: 0

    def cuCtxGetCurrent(self, context: Any) -> int:
        context._obj.value = self.context
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> int:
        context._obj.value = 7 + device
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        self.context = context.value
        return 0

    def cuThreadExchangeStreamCaptureMode(self, mode: Any) -> int:
        self.mode, mode._obj.value = mode._obj.value, self.mode
        return 0

    def cuModuleLoadData(self, module: Any, cubin: Any) -> int:
        self.cubins.append(string_at(cubin, 4))
        self.loaded_in.append(self.mode)
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:
        value._obj.value = 232448
        return 0

    def cuTensorMapEncodeTiled(self, *arguments: Any) -> int:
        found, kind, rank, address, sizes, steps, box, _, _, swizzle, *_ = arguments
        cast(found, POINTER(c_char * 128)).contents[:] = TENSOR_MAP
        named = {"rank": rank, "address": address.value or 0, "sizes": sizes[:rank], "steps": steps[: rank - 1]}
        self.maps.append({**named, "box": box[:rank], "kind": kind, "swizzle": swizzle})
        return 0

    def cuLaunchKernelEx(self, config: Any, function: Any, parameters: Any, extra: Any) -> int:
        if self.context is None:
            return INVALID_CONTEXT
        self.launches.append((config._obj, parameters))
        return 0


@pytest.fixture(scope="module")
def built(mmdit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A folder of some kernels for Hopper, one with TMA, and their planned launches."""
    aot, plan = import_module("mmdit.deploy.aot"), import_module("mmdit.deploy.plan")
    planned = plan.plan(90, plan.Sizes(batches=(32,), dtypes=("bfloat16",)))
    chosen = {launch.specialisation.kernel.partition(":")[2]: launch for launch in planned.values()}
    launches = [chosen[name] for name in sorted(KINDS)]
    folder = tmp_path_factory.mktemp("kernels")
    compiled = ((90, launch, aot.compile_planned(launch, 90)) for launch in launches)
    assert aot.write(folder, compiled) == len(KINDS)
    return folder, launches


def load(folder: Path, launch: Any, version: tuple[int, int] = (9, 0)) -> tuple[Any, FakeLibrary]:
    prebuilt, driver = import_module("mmdit.runtime.prebuilt"), import_module("mmdit.runtime.driver")
    library = FakeLibrary()
    kernels = prebuilt.Kernels(folder)
    return kernels.kernel(driver.Driver(library), launch.specialisation, 0, version), library


def on_cpu(argument: Any) -> Any:
    """A planned argument with memory of its own."""
    if isinstance(argument, torch.Tensor):
        return torch.empty_strided(argument.shape, argument.stride(), dtype=argument.dtype)
    return argument._replace(tensor=on_cpu(argument.tensor)) if hasattr(argument, "tensor") else argument


@pytest.mark.parametrize("kernel", sorted(KINDS))
def test_a_launch_gives_the_driver_each_argument_where_the_kernel_takes_it(
    built: tuple[Path, list[Any]], kernel: str
) -> None:
    folder, launches = built
    launch = next(each for each in launches if each.specialisation.kernel.endswith(f":{kernel}"))
    loaded, library = load(folder, launch)
    assert library.cubins == [b"\x7fELF"]
    arguments = [on_cpu(argument) for argument in launch.arguments]
    loaded.launch(5, 77, *arguments)
    config, parameters = library.launches[0]
    constants = len(launch.specialisation.constants)
    at = 0
    for argument in arguments[:-constants]:
        if hasattr(argument, "tensor"):  # a TMA descriptor, then its sizes and strides
            assert string_at(parameters[at], 128) == TENSOR_MAP
            assert parameters[at] % 128 == 0
            tensor, found = argument.tensor, library.maps.pop(0)
            rank = tensor.dim()
            assert [cast(parameters[at + 1 + i], POINTER(c_int32))[0] for i in range(rank)] == list(tensor.shape)
            strides = [cast(parameters[at + 1 + rank + i], POINTER(c_int64))[0] for i in range(rank)]
            assert strides == list(tensor.stride())
            assert found["sizes"] == list(tensor.shape)[::-1]
            assert found["steps"] == [2 * stride for stride in tensor.stride()[-2::-1]]
            assert (found["address"], found["rank"]) == (tensor.data_ptr(), rank)
            assert found["box"][1:] == list(argument.shape)[-2::-1]
            assert found["box"][0] * 2 <= 128 << (found["swizzle"] == 0)
            at += 1 + 2 * rank
        elif argument is not None:
            pointer = isinstance(argument, torch.Tensor)
            got = cast(parameters[at], POINTER(c_uint64 if pointer else c_int32))[0]
            assert got == (argument.data_ptr() if pointer else argument)
            at += 1
    assert len(parameters) == at + 2  # scratch memory
    assert not library.maps
    warps = launch.specialisation.warps
    assert (list(config.grid), list(config.block), config.stream) == ([5, 1, 1], [32 * warps, 1, 1], 77)
    chained = ("launch_pdl", True) in launch.specialisation.options
    assert [config.attributes[i].id for i in range(config.attribute_count)] == [6] * chained


def test_a_second_launch_sees_its_own_arguments(built: tuple[Path, list[Any]]) -> None:
    folder, launches = built
    loaded, library = load(folder, launches[2])
    for grid in (3, 4):
        arguments = [on_cpu(argument) for argument in launches[2].arguments]
        loaded.launch(grid, 0, *arguments)
        config, parameters = library.launches[-1]
        first = next(a for a in arguments if isinstance(a, torch.Tensor))
        assert cast(parameters[0], POINTER(c_uint64))[0] == first.data_ptr()
        assert config.grid[0] == grid


def test_an_empty_grid_launches_nothing(built: tuple[Path, list[Any]]) -> None:
    folder, launches = built
    loaded, library = load(folder, launches[1])
    for grid in (0, 1):
        loaded.launch(grid, 0, *map(on_cpu, launches[1].arguments))
    assert [config.grid[0] for config, _ in library.launches] == [1]


@pytest.mark.parametrize("context", [1, None], ids=["entered", "new"])
def test_a_thread_launches_in_its_context_or_enters_the_primary_one(
    mmdit: ModuleType, built: tuple[Path, list[Any]], context: int | None
) -> None:
    folder, launches = built
    loaded, library = load(folder, launches[1])
    library.context = context
    loaded.launch(3, 0, *map(on_cpu, launches[1].arguments))
    assert ([config.grid[0] for config, _ in library.launches], library.context) == ([3], context or 7)


def test_a_kernel_may_be_loaded_while_a_graph_is_captured(built: tuple[Path, list[Any]]) -> None:
    folder, launches = built
    _, library = load(folder, launches[1])
    assert (library.loaded_in, library.mode) == ([RELAXED], GLOBAL)


def test_a_number_that_the_kernel_has_no_room_for_raises(mmdit: ModuleType, built: tuple[Path, list[Any]]) -> None:
    folder, launches = built
    loaded, _ = load(folder, launches[1])
    arguments = [1 << 31 if type(argument) is int else argument for argument in launches[1].arguments]
    with pytest.raises(mmdit.MMDiTError, match="modulation_kernel"):
        loaded.launch(1, 0, *arguments)


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def append_to_cubins(folder: Path) -> None:
    for path in folder.glob("*/*.cubin"):
        path.write_bytes(path.read_bytes() + b"0")


# What is done to the folder, and what the error names.
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
    "half a manifest": (lambda folder: (folder / "manifest.json").write_text('{"format": 1,'), "manifest.json"),
    "another format": (lambda folder: edit(folder, format=0), "format"),
    "kernels of other sources": (lambda folder: edit(folder, sources="0"), "sources"),
    "no cubins": (lambda folder: [path.unlink() for path in folder.glob("*/*.cubin")], "sha256"),
    "other cubins": (append_to_cubins, "sha256"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_folder_that_cannot_be_used_raises_and_says_why(
    mmdit: ModuleType, built: tuple[Path, list[Any]], name: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(built[0], tmp_path / "kernels")
    change, named = DAMAGE[name]
    load(folder, built[1][0])
    change(folder)
    with pytest.raises(mmdit.MMDiTError, match=named):
        load(folder, built[1][0])


@pytest.mark.parametrize("version", [(8, 0), (9, 1), (10, 0), (12, 0)], ids=str)
def test_another_architecture_raises_and_says_which_there_are(
    mmdit: ModuleType, built: tuple[Path, list[Any]], version: tuple[int, int]
) -> None:
    with pytest.raises(mmdit.MMDiTError, match=r"cuda:90"):
        load(built[0], built[1][0], version)


def test_only_where_told_so_does_triton_compile_what_the_folder_lacks(
    mmdit: ModuleType, built: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prebuilt, driver = import_module("mmdit.runtime.prebuilt"), import_module("mmdit.runtime.driver")
    monkeypatch.setattr(prebuilt, "FOLDER", str(built[0]))
    monkeypatch.setattr(prebuilt, "system_driver", lambda: driver.Driver(FakeLibrary()))
    known = built[1][0].specialisation
    assert prebuilt.prebuilt_kernel(known, 0, (9, 0), True).symbol == "joint_attention_kernel"
    for specialisation, aligned in ((known._replace(warps=16), True), (known, False)):
        with pytest.raises(mmdit.MMDiTError):
            prebuilt.prebuilt_kernel(specialisation, 0, (9, 0), aligned)
        monkeypatch.setattr(prebuilt, "FALLBACK", True)
        with pytest.warns(RuntimeWarning, match="Triton compiles"):
            assert prebuilt.prebuilt_kernel(specialisation, 0, (9, 0), aligned) is None
        monkeypatch.setattr(prebuilt, "FALLBACK", False)


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
sys.path[:0] = sys.argv[2:]
from tests.test_aot import FakeLibrary, on_cpu
from mmdit.deploy.plan import Sizes, plan
from mmdit.runtime.driver import Driver
from mmdit.runtime.prebuilt import kernels
found = kernels(sys.argv[1])
for arch, specialisation in found.entries:
    launch = plan(arch, Sizes(batches=(32,), dtypes=("bfloat16",)))[specialisation]
    library = FakeLibrary()
    found.kernel(Driver(library), specialisation, 0, (9, 0)).launch(1, 0, *map(on_cpu, launch.arguments))
    assert len(library.launches) == 1
assert not [name for name in sys.modules if name.startswith("mmdit.ops") and "kernel" in name.rpartition(".")[2]]
print(len(found.entries))
"""


@pytest.mark.slow
def test_a_call_finds_its_kernels_where_triton_is_not_installed(built: tuple[Path, list[Any]], tree: Path) -> None:
    root = Path(__file__).parents[1]
    done = run(
        [sys.executable, "-c", WITHOUT_TRITON, built[0], tree, root],
        env={"MMDIT_KERNELS": str(built[0]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(len(KINDS))), done.stderr
