"""What NVIDIA's driver library is asked for, by ctypes: to load a kernel, describe a tensor for TMA, and launch."""

from ctypes import (
    CDLL,
    POINTER,
    Array,
    Structure,
    addressof,
    byref,
    c_char,
    c_char_p,
    c_int,
    c_uint32,
    c_uint64,
    c_void_p,
)
from functools import cache
from typing import Any, Sequence

from mmdit.errors import KernelsError

COOPERATIVE, PROGRAMMATIC_STREAM_SERIALIZATION = 2, 6  # CUlaunchAttributeID
SHARED_SIZE, MAX_DYNAMIC_SHARED_SIZE = 1, 8  # CUfunction_attribute
MAX_SHARED_PER_BLOCK_OPTIN = 97  # CUdevice_attribute
PREFER_SHARED = 1  # CUfunc_cache
L2_PROMOTION_128B = 2  # CUtensorMapL2promotion
SHARED_BY_DEFAULT = 49152
TENSOR_MAP_BYTES = 128  # of a CUtensorMap, and what its address is aligned to (by CUDA 12, to 64)
RELAXED = 2  # CUstreamCaptureMode
INVALID_CONTEXT = 201  # CUresult


class LaunchAttribute(Structure):
    """CUlaunchAttribute: an id and a union of 64 bytes."""

    _fields_ = (("id", c_uint32), ("padding", c_uint32), ("value", c_uint32 * 16))


class LaunchConfig(Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", c_uint32 * 3),
        ("block", c_uint32 * 3),
        ("shared", c_uint32),
        ("stream", c_void_p),
        ("attributes", POINTER(LaunchAttribute)),
        ("attribute_count", c_uint32),
    )


class Driver:
    """The driver's calls that raise KernelsError where they fail.

    Args:
        library: libcuda, or what a test puts in its place.
    """

    def __init__(self, library: Any) -> None:
        self.library = library

    def load(self, cubin: bytes, symbol: str, shared: int, device: int) -> c_void_p:
        """The CUfunction of a kernel that takes `shared` bytes of dynamic shared memory, for launches on a device.

        A CUDA graph that is being captured, by any thread, goes on.
        """
        context, module, function, limit, static = c_void_p(), c_void_p(), c_void_p(), c_int(), c_int()
        self._call("cuCtxGetCurrent", byref(context))
        if not context:
            self._enter(device)
        mode = c_int(RELAXED)
        self._call("cuThreadExchangeStreamCaptureMode", byref(mode))
        try:
            self._call("cuModuleLoadData", byref(module), c_char_p(cubin))
        finally:
            self._call("cuThreadExchangeStreamCaptureMode", byref(mode))
        self._call("cuModuleGetFunction", byref(function), module, c_char_p(symbol.encode()))
        if shared > SHARED_BY_DEFAULT:
            self._call("cuDeviceGetAttribute", byref(limit), MAX_SHARED_PER_BLOCK_OPTIN, device)
            self._call("cuFuncGetAttribute", byref(static), SHARED_SIZE, function)
            most = limit.value - static.value
            if shared > most:
                raise KernelsError(symbol, f"at most {most} bytes of shared memory on this GPU", f"{shared}")
            self._call("cuFuncSetCacheConfig", function, PREFER_SHARED)
            self._call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_SIZE, most)
        return function

    def tensor_map(
        self,
        address: int,
        shape: Sequence[int],
        strides: Sequence[int],
        block: Sequence[int],
        element_type: int,
        element_size: int,
        swizzle: int,
    ) -> "Array[c_char]":
        """A CUtensorMap of a tensor whose last stride is 1; innermost last in all of shape, strides and block."""
        rank = len(shape)
        sizes, box = (c_uint64 * rank)(*reversed(shape)), (c_uint32 * rank)(*reversed(block))
        steps = (c_uint64 * rank)(*[element_size * s for s in reversed(strides[:-1])])
        ones = (c_uint32 * rank)(*[1] * rank)
        memory = (c_char * (2 * TENSOR_MAP_BYTES))()
        offset = -addressof(memory) % TENSOR_MAP_BYTES
        found = (c_char * TENSOR_MAP_BYTES).from_buffer(memory, offset)
        self._call(
            "cuTensorMapEncodeTiled",
            *(byref(found), element_type, rank, c_void_p(address), sizes, steps, box, ones),
            *(0, swizzle, L2_PROMOTION_128B, 0),
        )
        return found

    def launch(self, config: LaunchConfig, function: c_void_p, parameters: "Array[c_void_p]", device: int) -> None:
        result = self.library.cuLaunchKernelEx(byref(config), function, parameters, None)
        if result == INVALID_CONTEXT:  # a thread that has not yet called CUDA: rare, so not asked before each launch
            self._enter(device)
            result = self.library.cuLaunchKernelEx(byref(config), function, parameters, None)
        if result:
            self._fail("cuLaunchKernelEx", result)

    def _enter(self, device: int) -> None:
        """Make the device's primary context, which is torch's, this thread's."""
        context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._call("cuCtxSetCurrent", context)

    def _call(self, name: str, *arguments: Any) -> None:
        result = getattr(self.library, name)(*arguments)
        if result:
            self._fail(name, result)

    def _fail(self, name: str, result: int) -> None:
        text = c_char_p()
        self.library.cuGetErrorString(result, byref(text))
        raise KernelsError(name, "success", f"error {result}: {(text.value or b'unknown').decode()}")


@cache
def system_driver() -> Driver:
    """libcuda as this machine has it; KernelsError where there is none."""
    try:
        return Driver(CDLL("libcuda.so.1"))
    except OSError as error:
        raise KernelsError("libcuda.so.1", "NVIDIA's driver", str(error)) from None
