"""Makes Triton's interpreter do once what it does over and over: most of a test's time, and nothing of its results."""

from dataclasses import replace
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

POINTER = np.dtype(np.uint64)


def hurry() -> None:
    """To be called once in a process whose Triton interprets.

    A kernel's call of a device function patches the whole language again: here only what is not patched yet.
    Integer sums and products are not done a second time in 64 bits to see an overflow: no offset here comes near one.
    A reduction by a function of ours folds all rows at once, each in the order in which it would be folded alone.
    NumPy's type is looked up once for each of Triton's.
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
    interpreter.ReduceOps.generic_reduce = _folded
    by_scalar = cache(interpreter._get_np_dtype)
    interpreter._get_np_dtype = lambda dtype: POINTER if dtype.scalar.is_ptr() else by_scalar(dtype.scalar)


def _folded(self: interpreter.ReduceOps, blocks: tuple[tl.tensor, ...]) -> list[tl.tensor]:
    """The blocks reduced together along an axis."""
    slices = [np.moveaxis(block.handle.data, self.axis, 0) for block in blocks]
    folded = [each[0] for each in slices]
    for number in range(1, len(slices[0])):
        pairs = (*folded, *(each[number] for each in slices))
        told = self.combine_fn.fn(*map(self.to_tensor, pairs, 2 * [block.dtype for block in blocks]))
        told = told if isinstance(told, tuple) else (told,)
        folded = [each.handle.data.reshape(was.shape) for each, was in zip(told, folded, strict=True)]
    if self.keep_dims:
        folded = [np.expand_dims(each, self.axis) for each in folded]
    return [self.to_tensor(each, block.dtype) for each, block in zip(folded, blocks, strict=True)]


@cache
def _languages(function: FunctionType) -> frozenset[Any]:
    seen = [value for value in function.__globals__.values() if isinstance(value, type(tl))]
    return frozenset(language for language in (tl, tl.core) if language in seen)
