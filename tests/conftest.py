"""The tree under test, its seed and its poisoned memory; tests/selection.py says which tests run on it.

REPO_PATH            tree under test, absolute or relative to the repository root (default repository_after)
MMDIT_TEST_SEED      integer that every random value follows from (default drawn fresh, printed in the header)
MMDIT_TEST_DEVICE    auto, cpu (gpu tests are not run) or cuda (there must be one)
"""

import hashlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.interpreter import Interpreter
from tests.poison import poison_memory
from tests.selection import Selection

ROOT = Path(__file__).resolve().parent.parent
DEVICES = ("auto", "cpu", "cuda")
TREE = pytest.StashKey[Path]()
SEED = pytest.StashKey[int]()

Random = Callable[..., Tensor]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out the tests marked slow")
    parser.addoption("--exhaustive", action="store_true", help="run those marked exhaustive too: 15 more minutes")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TREE] = tree_under_test()
    config.stash[SEED] = seed_of_this_run()
    config.pluginmanager.register(Selection(reasons_not_to_run(config)), "selection")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic algorithms ask for it
    poison_memory()
    torch.set_num_threads(1)  # the cases are small: threads that wait for a busy core cost more than they give
    sys.path.insert(0, str(config.stash[TREE]))


def pytest_report_header(config: pytest.Config) -> str:
    return f"tree: {config.stash[TREE]}, MMDIT_TEST_SEED={config.stash[SEED]}"


def tree_under_test() -> Path:
    """REPO_PATH, resolved; UsageError where no mmdit package is to be found in it."""
    tree = (ROOT / os.environ.get("REPO_PATH", "repository_after")).resolve()
    if not (tree / "mmdit" / "__init__.py").is_file():
        raise pytest.UsageError(f"REPO_PATH: expected a tree with mmdit/__init__.py, got {tree}")
    return tree


def seed_of_this_run() -> int:
    seed = os.environ.get("MMDIT_TEST_SEED", str(secrets.randbelow(2**31)))
    if not seed.isdecimal():
        raise pytest.UsageError(f"MMDIT_TEST_SEED: expected a non-negative integer, got {seed!r}")
    return int(seed)


def reasons_not_to_run(config: pytest.Config) -> dict[str, str | None]:
    """By marker, in the order in which they are told."""
    return {
        "gpu": reason_without_gpu(),
        "exhaustive": None if config.getoption("exhaustive") else "exhaustive: --exhaustive was not asked for",
        "slow": "slow: left out by --quick" if config.getoption("quick") else None,
    }


def reason_without_gpu() -> str | None:
    """Why gpu tests cannot run here, or None where they can."""
    device = os.environ.get("MMDIT_TEST_DEVICE", "auto")
    if device not in DEVICES:
        raise pytest.UsageError(f"MMDIT_TEST_DEVICE: expected one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("MMDIT_TEST_DEVICE: expected a CUDA device for 'cuda', got none from torch")
    if device == "cpu":
        return "gpu: MMDIT_TEST_DEVICE=cpu"
    return None if torch.cuda.is_available() else "gpu: no CUDA device"


@pytest.fixture(scope="session")
def tree(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.stash[TREE]


@pytest.fixture(scope="session")
def mmdit(tree: Path) -> ModuleType:
    """The package under test, proved to come from REPO_PATH."""
    package = import_module("mmdit")
    source = Path(package.__file__ or "").resolve()
    assert source.is_relative_to(tree), f"mmdit was imported from {source}, not from {tree}"
    return package


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of this test's own, which follows from the run's seed and the test's name."""
    name = f"{request.config.stash[SEED]}:{request.node.nodeid}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])


@pytest.fixture
def rng(seed: int) -> torch.Generator:
    torch.manual_seed(seed)  # what draws without a generator: module initialisation, dropout
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def randn(rng: torch.Generator) -> Random:
    """randn(*shape): fresh fp32 normal values of this test's seed."""
    return lambda *shape: torch.randn(shape, generator=rng)


@pytest.fixture(scope="session")
def interpreted(tree: Path) -> Iterator[Callable[..., None]]:
    """interpreted(check, *args): run a module-level check in a process in which Triton interprets its kernels."""
    with Interpreter(tree) as interpreter:
        yield interpreter.run


@pytest.fixture(params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest, seed: int) -> Callable[..., None]:
    """run(check, *args): check(*args, device, seed) in Triton's interpreter, or here on the GPU."""
    if request.param == "gpu":
        return lambda check, *args: check(*args, "cuda", seed)
    interpreted = request.getfixturevalue("interpreted")
    return lambda check, *args: interpreted(check, *args, "cpu", seed)
