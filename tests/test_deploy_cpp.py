"""SPEC K2: a package of AOTInductor in a C++ program, which has neither Python nor mmdit."""

import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from subprocess import run
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

from tests.numerics import assert_close

SOURCE = Path(__file__).with_name("package_loader.cpp")
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
pytestmark = [
    pytest.mark.upgrade,
    pytest.mark.exhaustive,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler, neither CXX nor g++: AOTInductor needs one as well"),
]
Call = Callable[[Path, list[torch.Tensor]], list[torch.Tensor]]


@pytest.fixture(scope="module")
def in_cpp(tmp_path_factory: pytest.TempPathFactory) -> Call:
    """A call of a package in a process of C++."""
    folder = tmp_path_factory.mktemp("loader")
    program, inputs, outputs = folder / "loader", folder / "inputs.pt", folder / "outputs.pt"
    headers = [f"-I{path}" for path in include_paths()]
    libraries = [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    names = ["-ltorch", "-ltorch_cpu", "-lc10"]
    run([COMPILER, "-std=c++20", *headers, SOURCE, *libraries, *names, "-o", program], check=True)

    def call(package: Path, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        torch.save(tensors, inputs)
        run([program, package, inputs, outputs], check=True, env={"OMP_NUM_THREADS": "1"})
        return torch.load(outputs, weights_only=False)  # of a list type that C++ writes alone

    return call


@pytest.mark.parametrize("name", ["layernorm_adaln", "MMDiT"])
def test_cpp_loads_a_package_and_gets_its_numbers_at_other_sizes(
    mmdit: ModuleType, in_cpp: Call, name: str, tmp_path: Path
) -> None:
    deploy, subjects = import_module("mmdit.deploy.export"), import_module("mmdit.deploy.subjects")
    subject: Any = subjects.BY_NAME[name]
    module = subject.module()
    program = deploy.export(module, subject.inputs(subjects.EXAMPLE), subject.axes())
    package = deploy.package(program, tmp_path / "package.pt2")
    wide = module.double()
    for shape in subjects.OTHERS:
        inputs = subject.inputs(shape)
        exact = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
        want = import_module("mmdit.deploy.numbers").present(wide(**exact))
        for got, wanted in zip(in_cpp(package, list(inputs.values())), want, strict=True):
            assert_close(got, wanted, 1e-5)
