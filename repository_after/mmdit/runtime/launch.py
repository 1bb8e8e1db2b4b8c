"""Launching a kernel in about 6 us of host time; Triton's own look-up of the compiled one takes 13 (H200 host)."""

from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from mmdit.runtime.dispatch import INTERPRET, launched

_compiled: Dict[Tuple[Any, ...], Any] = {}


def launch(
    kernel: Any,
    grid: int,
    tensors: Tuple[Optional[Tensor], ...],
    strides: Tuple[int, ...],
    lengths: Tuple[int, ...],
    constants: Tuple[Any, ...],
    warps: int,
) -> None:
    """Run kernel(*tensors, *strides, *lengths, *constants) as `grid` programs, on the first tensor's device.

    Triton compiles a kernel anew for each combination of dtypes, constants, and which pointers and ints 16 divides.
    Where 16 divides all pointers and strides, as it nearly always does, the compiled kernel is kept here under a key
    of the rest. `lengths` must be marked do_not_specialize in the kernel, so that they are not part of it.
    """
    device = tensors[0].get_device()
    if not INTERPRET and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            return launch(kernel, grid, tensors, strides, lengths, constants, warps)

    launched(kernel.fn.__name__)
    arguments = (*tensors, *strides, *lengths, *constants)
    unaligned = 0
    for tensor in tensors:
        if tensor is not None:
            unaligned |= tensor.data_ptr()
    for stride in strides:
        unaligned |= stride
    if INTERPRET or unaligned % 16:
        kernel[(grid,)](*arguments, num_warps=warps)
        return
    key = (id(kernel), device, constants, warps, *[None if t is None else t.dtype for t in tensors])
    compiled = _compiled.get(key)
    if compiled is None:
        _compiled[key] = kernel[(grid,)](*arguments, num_warps=warps)
    else:
        compiled[(grid, 1, 1)](*arguments)
