"""Runs one command in a container of its own: no network, nothing to write to but its folders, no capabilities, limits.

The engine ends what the command leaves behind.
"""

import os
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import docker
from docker.errors import DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.types import DeviceRequest, LogConfig, Ulimit

from evaluation.suite.limits import THREADS, Limits, Watch
from evaluation.suite.process import TAIL_BYTES, Finished, OutputHandler
from evaluation.suite.result import GraderError

IMAGE = "mmdit-kata"
_WORKERS = Path(__file__).resolve().parents[1] / "worker"
_POLL_SECONDS = 0.1
_NOBODY = -1
_THE_HOSTS = ("PATH", "HOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
_SIGNALLED = 128  # what an exit status is more by, where a signal ended the process

Access = Literal["ro", "rw"]


class Engine:
    """A Docker engine that answers and has the image of `docker compose build`, else GraderError."""

    def __init__(self, client: Any = None, gpus: bool = False) -> None:
        self.gpus = gpus
        try:
            self.client = client or docker.from_env()
            self.client.ping()
            self.client.images.get(IMAGE)
        except ImageNotFound as error:
            raise GraderError(f"--isolation docker: no image {IMAGE} here: run docker compose build") from error
        except DockerException as error:
            raise GraderError(f"--isolation docker: no Docker engine answers: {error}") from error

    def run(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        timeout: float,
        folders: Mapping[Path, Access],
        stdin: Path | None = None,
        on_output: OutputHandler | None = None,
        limits: Limits | None = None,
    ) -> Finished:
        """As run_bounded does it, with `folders` to be seen under their own names. stdin: a file in one of them.

        Raises GraderError where the engine fails.
        """
        started, limits = time.monotonic(), limits or Limits()
        watch = Watch(_NOBODY, Path(env["TMPDIR"]), limits)
        try:
            container = self.client.containers.create(**self._form(command, cwd, env, folders, stdin, watch))
            try:
                container.start()
                container.reload()
                watch.root = container.attrs["State"].get("Pid") or _NOBODY
                in_time, tail = _follow(container, started + timeout, on_output or (lambda _: None), watch)
                code = _return_code(container, watch) if in_time and watch.broken is None else None
            finally:
                with suppress(NotFound):
                    container.remove(force=True)
        except (DockerException, OSError) as error:
            raise GraderError(f"--isolation docker: the engine failed: {error}") from error
        return Finished(code, time.monotonic() - started, tail.decode(errors="replace"), watch.broken)

    def _form(
        self,
        command: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        folders: Mapping[Path, Access],
        stdin: Path | None,
        watch: Watch,
    ) -> dict[str, Any]:
        program = ["python" if each == sys.executable else each for each in command]
        if stdin:
            program = ["sh", "-c", 'file=$1; shift; exec "$@" <"$file"', "sh", str(stdin), *program]
        seen = dict(folders) | {_WORKERS: "ro"}
        own = {name: value for name, value in env.items() if name not in _THE_HOSTS}
        return {
            "image": IMAGE,
            "command": program,
            "entrypoint": [],
            "working_dir": str(cwd),
            "environment": own | {"HOME": env.get("TMPDIR", str(cwd))},
            "user": f"{os.getuid()}:{os.getgid()}",
            "volumes": {str(folder): {"bind": str(folder), "mode": mode} for folder, mode in seen.items()},
            "network_mode": "none",
            "read_only": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "init": True,
            "mem_limit": watch.memory,
            "memswap_limit": watch.memory,
            "pids_limit": watch.limits.processes * THREADS,
            "ulimits": [Ulimit(name="fsize", soft=watch.limits.file_bytes, hard=watch.limits.file_bytes)],
            "log_config": LogConfig(type=LogConfig.types.JSON, config={"max-size": str(2 * watch.limits.output_bytes)}),
            "device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])] if self.gpus else None,
        }


def _follow(container: Container, deadline: float, on_output: OutputHandler, watch: Watch) -> tuple[bool, bytes]:
    """Read what it prints until it ends, or has to be ended: whether it did so in time, and the end of its output."""
    chunks: queue.Queue[bytes | None] = queue.Queue(maxsize=64)

    def read() -> None:
        with suppress(DockerException, OSError):
            for chunk in container.logs(stream=True, follow=True):
                chunks.put(chunk)
        chunks.put(None)

    threading.Thread(target=read, daemon=True).start()
    tail = b""
    while time.monotonic() < deadline:
        try:
            chunk = chunks.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            chunk = b""
        if chunk is None:
            return True, tail
        tail = (tail + chunk)[-TAIL_BYTES:]
        on_output(chunk)
        if watch(len(chunk)):
            return True, tail
    return False, tail


def _return_code(container: Container, watch: Watch) -> int | None:
    """Negative for a signal; None where memory ran out."""
    status = int(container.wait()["StatusCode"])
    container.reload()
    if container.attrs["State"].get("OOMKilled"):
        watch.broken = "took more memory than it may"
        return None
    return _SIGNALLED - status if status > _SIGNALLED else status
