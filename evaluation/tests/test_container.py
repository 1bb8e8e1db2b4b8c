"""Containers, by a client that stands for an engine: it keeps what it was asked, and runs plain processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.errors import DockerException, ImageNotFound, NotFound
from rich.console import Console

from evaluation.suite import container
from evaluation.suite.container import IMAGE, Engine
from evaluation.suite.limits import Limits
from evaluation.suite.pair import Judged, run_pair
from evaluation.suite.process import Finished
from evaluation.suite.result import FailureKind, GraderError
from evaluation.suite.run import Settings
from evaluation.suite.stage import staged
from evaluation.tests.conftest import Kata, right_numbers


class FakeContainer:
    """What a container of the engine's is to its client; it counts as removed when it is gone."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked, self.removed, self.attrs = asked, False, {"State": {"Pid": 0, "OOMKilled": False}}

    def start(self) -> None:
        command = [sys.executable if each == "python" else each for each in self.asked["command"]]
        self.process = subprocess.Popen(
            command,
            cwd=self.asked["working_dir"],
            env={"PATH": os.environ["PATH"]} | self.asked["environment"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def reload(self) -> None:
        if self.removed:
            raise NotFound("gone")

    def logs(self, **_how: bool) -> Iterator[bytes]:
        while chunk := os.read(self.process.stdout.fileno(), 1 << 16):
            yield chunk

    def wait(self) -> dict[str, int]:
        code = self.process.wait(30)
        return {"StatusCode": 128 - code if code < 0 else code}

    def remove(self, force: bool) -> None:
        assert force
        self.process.kill()
        self.process.wait()
        self.removed = True


class FakeClient:
    """An engine that has the image; `containers` and `images` are itself."""

    def __init__(self, **broken: Exception) -> None:
        self.containers = self.images = self
        self.made: list[FakeContainer] = []
        self.broken = broken

    def step(self, name: str) -> None:
        if name in self.broken:
            raise self.broken[name]

    def ping(self) -> None:
        self.step("ping")

    def get(self, image: str) -> None:
        assert image == IMAGE
        self.step("get")

    def create(self, **asked: Any) -> FakeContainer:
        self.step("create")
        self.made.append(FakeContainer(asked))
        return self.made[-1]


Run = Callable[..., Finished]


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def run(client: FakeClient, tmp_path: Path) -> Run:
    """Run a line of Python in a container."""

    def run(code: str, timeout: float = 30, **more: Any) -> Finished:
        how = {"cwd": tmp_path, "env": {"TMPDIR": str(tmp_path)}, "timeout": timeout, "folders": {tmp_path: "rw"}}
        return Engine(client).run([sys.executable, "-c", code], **how | more)

    return run


def test_a_container_has_no_network_nothing_to_write_to_and_no_rights(client: FakeClient, run: Run, tmp_path: Path):
    done = run("print('hello')", folders={tmp_path: "rw", Path("/trees/a"): "ro"})
    assert (done.return_code, done.tail.strip(), done.broken) == (0, "hello", None)
    (made,) = client.made
    asked = made.asked
    assert (asked["network_mode"], asked["read_only"], asked["cap_drop"]) == ("none", True, ["ALL"])
    assert asked["security_opt"] == ["no-new-privileges:true"]
    assert asked["user"] == f"{os.getuid()}:{os.getgid()}"
    assert asked["mem_limit"] == asked["memswap_limit"] > 0
    assert asked["pids_limit"] > 0
    assert asked["device_requests"] is None
    modes = {name: each["mode"] for name, each in asked["volumes"].items()}
    assert modes.pop(str(tmp_path)) == "rw"
    assert set(modes.values()) == {"ro"}
    assert made.removed


def test_a_gpu_is_handed_in_where_it_is_asked_for(client: FakeClient, tmp_path: Path):
    how = {"cwd": tmp_path, "env": {"TMPDIR": str(tmp_path)}, "timeout": 30, "folders": {}}
    Engine(client, gpus=True).run(["true"], **how)
    assert client.made[0].asked["device_requests"][0]["Capabilities"] == [["gpu"]]


def test_exit_codes_signals_and_stdin_come_through(run: Run, tmp_path: Path):
    assert run("import sys; sys.exit(3)").return_code == 3
    assert run("import os; os.kill(os.getpid(), 11)").return_code == -11
    (tmp_path / "in").write_text("secret")
    assert run("import sys; print(sys.stdin.read())", stdin=tmp_path / "in").tail.strip() == "secret"


def test_limits_end_a_container(client: FakeClient, run: Run):
    assert run("import time; time.sleep(60)", timeout=0.5).return_code is None
    flood = run("while True: print('x' * 9999)", limits=Limits(output_bytes=1 << 16))
    assert (flood.return_code, flood.broken.startswith("printed more than")) == (None, True)
    assert all(made.removed for made in client.made)


def test_memory_that_ran_out_is_the_trees_doing(client: FakeClient, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FakeContainer, "reload", lambda self: self.attrs["State"].update(OOMKilled=True))
    done = run("pass")
    assert (done.return_code, done.broken) == (None, "took more memory than it may")


@pytest.mark.parametrize(
    ("step", "error", "says"),
    [
        ("ping", DockerException("no socket"), "no Docker engine answers: no socket"),
        ("get", ImageNotFound("x"), "run docker compose build"),
        ("create", DockerException("disk full"), "the engine failed: disk full"),
    ],
)
def test_an_engine_that_fails_is_the_graders_problem(tmp_path: Path, step: str, error: Exception, says: str):
    with pytest.raises(GraderError, match=says):
        Engine(FakeClient(**{step: error})).run(
            ["true"], cwd=tmp_path, env={"TMPDIR": str(tmp_path)}, timeout=5, folders={}
        )


@pytest.mark.usefixtures("known_machine")
def test_both_trees_are_graded_in_containers(kata: Kata, client: FakeClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(container.docker, "from_env", lambda: client)
    settings = Settings(suite=kata.suite, quick=True, timeout=60, seed=7, device="cpu", isolation="docker")
    pair = run_pair(kata.before, kata.after, settings, Console(quiet=True), lambda *_: Judged(*right_numbers()))
    assert pair.failures == ()
    assert len(client.made) == 4  # to import each, and to run the suite on each
    assert all(made.removed for made in client.made)


@pytest.mark.usefixtures("known_machine")
def test_without_an_engine_there_is_no_verdict(kata: Kata, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(container.docker, "from_env", lambda: FakeClient(ping=DockerException("no socket")))
    settings = Settings(suite=kata.suite, quick=True, timeout=60, seed=7, device="cpu", isolation="docker")
    (failure,) = run_pair(kata.before, kata.after, settings, Console(quiet=True), right_numbers).failures
    assert (failure.kind, failure.tree) == (FailureKind.GRADER_ERROR, None)
    assert "--isolation docker: no Docker engine answers" in failure.message


def test_a_tree_sees_its_own_folders_only(kata: Kata, client: FakeClient):
    with staged(kata.after, "after", Engine(client)) as stage:
        stage.run([sys.executable, "-c", "pass"], timeout=30)
    modes = {name: each["mode"] for name, each in client.made[0].asked["volumes"].items()}
    assert modes[str(stage.tree)] == "ro"
    assert [name for name, mode in modes.items() if mode == "rw"] == [str(stage.scratch)]
