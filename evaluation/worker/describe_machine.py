"""Says what tests will run on: `describe_machine.py RESULT` writes versions and GPUs as JSON.

It fails when a package that every run needs is not there, which is the machine's fault and no candidate's.
"""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest  # noqa: F401
import pytest_jsonreport  # noqa: F401
import torch


def main() -> None:
    (result,) = sys.argv[1:]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    machine = {
        "torch_version": torch.__version__,
        "triton_version": _version_of("triton"),
        "cuda_version": torch.version.cuda if count else None,
        "gpus": [torch.cuda.get_device_name(index) for index in range(count)],
    }
    Path(result).write_text(json.dumps(machine), encoding="utf-8")


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
