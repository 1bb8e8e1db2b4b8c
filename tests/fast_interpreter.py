"""Makes Triton's interpreter do once what it does over and over: half of a test's time, and nothing of its results."""

from dataclasses import replace
from functools import cache
from types import FunctionType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def hurry() -> None:
    """To be called once in a process whose Triton interprets.

    A kernel's call of a device function patches the whole language again: here only what is not patched yet.
    Integer sums and products are not done a second time in 64 bits to see an overflow: no offset here comes near one.
    """
    patch, patched = interpreter._patch_lang, set()

    def patch_once(function: FunctionType) -> Any:
        languages = _languages(function)
        if languages <= patched:
            return interpreter._LangPatchScope()
        patched.update(languages)
        scope = patch(function)
        restore = scope.restore

        def restore_all() -> None:
            restore()
            patched.clear()

        scope.restore = restore_all
        return scope

    interpreter._patch_lang = patch_once
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)


@cache
def _languages(function: FunctionType) -> frozenset[Any]:
    seen = [value for value in function.__globals__.values() if isinstance(value, type(tl))]
    return frozenset(language for language in (tl, tl.core) if language in seen)
