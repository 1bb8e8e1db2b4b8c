"""A fake kata: two tiny trees and a tiny suite, so that the grader is tested in seconds."""

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from evaluation.bench.trees import LoadedTree
from evaluation.judge.record import CaseNumbers, Numerics, NumericsRun
from evaluation.report.build import build_report
from evaluation.report.environment import describe_environment
from evaluation.report.models import Report, RunSettings
from evaluation.suite import pair
from evaluation.suite.command import ROOT
from evaluation.suite.pair import PairRun, run_pair
from evaluation.suite.probe import Machine
from evaluation.suite.result import Failure, SuiteRun
from evaluation.suite.run import Settings, run_suite
from evaluation.suite.stage import staged

FAKE = Path(__file__).parent / "fake"

collect_ignore = ["fake"]


@dataclass(frozen=True)
class Kata:
    """Copies of the fake trees and suite, for a test to break."""

    folder: Path

    @property
    def suite(self) -> Path:
        return self.folder / "suite"

    @property
    def before(self) -> Path:
        return self.folder / "before"

    @property
    def after(self) -> Path:
        return self.folder / "after"

    def settings(self, *, timeout: float = 60, quick: bool = False, processes: int = 1) -> Settings:
        return Settings(suite=self.suite, quick=quick, timeout=timeout, seed=7, device="cpu", processes=processes)

    def append(self, file: str, text: str) -> None:
        with (self.folder / file).open("a", encoding="utf-8") as handle:
            handle.write(f"\n{text}\n")

    def grade(self, **settings: float) -> PairRun:
        return run_pair(self.before, self.after, self.settings(**settings), Console(quiet=True), right_numbers)

    def report(self) -> Report:
        pair = self.grade()
        settings = RunSettings(
            before=pair.before.tree, after=pair.after.tree, quick=False, timeout_seconds=60, seed=7, device="cpu"
        )
        return build_report(
            pair,
            run_id="r",
            started_at=datetime.now(UTC),
            duration_seconds=1,
            settings=settings,
            environment=describe_environment(ROOT, pair.machine),
        )

    def run_after(self, **settings: float) -> SuiteRun:
        with ExitStack() as stack:
            return run_suite(stack.enter_context(staged(self.after, "after")), self.settings(**settings))


def right_numbers(*_: object) -> tuple[Numerics, tuple[Failure, ...]]:
    """In the place of the numeric judge, as a fake tree has none of the modules that it calls."""
    run = NumericsRun(cases=(CaseNumbers(name="fake", status="pass", worst=None, problems=()),))
    return Numerics(seed=1, before=run, after=run), ()


@pytest.fixture
def kata(tmp_path: Path) -> Kata:
    shutil.copytree(FAKE, tmp_path / "kata", ignore=shutil.ignore_patterns("__pycache__"))
    return Kata(tmp_path / "kata")


@pytest.fixture(scope="session")
def passing(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report on the fake kata, from one run for all tests that only read it."""
    folder = tmp_path_factory.mktemp("graded") / "kata"
    shutil.copytree(FAKE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair, "describe_machine", lambda _device: Machine(torch_version="0"))
        return Kata(folder).report()


@pytest.fixture(scope="session")
def after_tree() -> LoadedTree:
    """repository_after, whose ops can be registered but once in a process."""
    return LoadedTree.load(ROOT / "repository_after")


@pytest.fixture
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares a test that is not about it the seconds that torch takes to load."""
    monkeypatch.setattr(pair, "describe_machine", lambda _device: Machine(torch_version="0"))


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
