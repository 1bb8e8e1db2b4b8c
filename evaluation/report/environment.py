"""What a run ran on."""

import os
import platform
import subprocess
from pathlib import Path

from evaluation.report.models import Environment
from evaluation.suite.probe import Machine

_GIT_SECONDS = 10.0


def describe_environment(root: Path, machine: Machine) -> Environment:
    """`root` is the folder whose git commit is told, where git and a repository are there."""
    changes = _git(root, "status", "--porcelain")
    return Environment(
        python_version=platform.python_version(),
        platform=platform.platform(),
        cpu_count=os.cpu_count(),
        git_commit=_git(root, "rev-parse", "HEAD"),
        git_dirty=None if changes is None else bool(changes),
        **machine.model_dump(),
    )


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
