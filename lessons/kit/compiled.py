"""What a kernel becomes on an H100: compiled for sm_90, which needs no GPU but a process without the interpreter."""

import ast
import inspect
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

COMPILER = Path(__file__).with_name("compile_kernel.py")  # by its path: what lessons.kit imports takes seconds
TIMEOUT_S = 120


class Compiled(NamedTuple):
    """Registers a thread uses, bytes it spills to memory, bytes of shared memory, and whether tensor cores work."""

    registers: int
    spills: int
    shared_bytes: int
    tensor_core: bool


def registers(kernel: Any, signature: dict[str, str], constants: dict[str, Any], num_warps: int = 4) -> Compiled:
    """Compile kernel for sm_90 and tell what it takes.

    Args:
        kernel: a @triton.jit function.
        signature: Triton's type of each argument that is no constant, such as {"p_x": "*fp32", "L": "i32"}; pointers
            are taken as 16-byte aligned.
        constants: the value of each tl.constexpr argument (None for a pointer that is not given).

    Raises ValueError where these are not the kernel's arguments, RuntimeError with the compiler's words where it fails.
    """
    arguments = list(inspect.signature(kernel.fn).parameters)
    given = [*signature, *constants]
    if sorted(given) != sorted(arguments):
        raise ValueError(f"signature and constants: expected all of {arguments} once, got {given}")
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder, "kernel_source.py")
        module.write_text(source_of(kernel))
        order = {name: signature.get(name, "constexpr") for name in arguments}
        job = {"module": str(module), "name": kernel.fn.__name__, "signature": order, "constants": constants}
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        done = subprocess.run(
            [sys.executable, str(COMPILER)],
            input=json.dumps({**job, "num_warps": num_warps}),
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    if done.returncode:
        raise RuntimeError(f"{kernel.fn.__name__} does not compile for sm_90:\n{done.stderr.strip()[-2000:]}")
    return Compiled(**json.loads(done.stdout.splitlines()[-1]))


def source_of(kernel: Any) -> str:
    """A module with the kernel, and the jit functions and constants that it uses from its own."""
    parts: dict[str, str] = {}

    def add(name: str, value: Any) -> None:
        if name in parts:
            return
        if isinstance(value, ModuleType):
            parts[name] = f"import {value.__name__} as {name}"
        elif isinstance(value, tl.constexpr):
            parts[name] = f"{name} = tl.constexpr({value.value!r})"
        elif isinstance(value, (int, float, str)):
            parts[name] = f"{name} = {value!r}"
        elif isinstance(value, (JITFunction, InterpretedFunction)):
            source = textwrap.dedent(inspect.getsource(value.fn))
            for used in sorted({node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}):
                if used in value.fn.__globals__ and used != name:
                    add(used, value.fn.__globals__[used])
            parts[name] = source

    add("tl", tl)
    add("triton", triton)
    add(kernel.fn.__name__, kernel)
    return "\n\n".join(parts.values()) + "\n"
