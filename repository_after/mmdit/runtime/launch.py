"""Launching a compiled kernel straight: 4.4 us of host time, where Triton's own look-up of it takes 13 (H200 host)."""

from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from mmdit.runtime.architecture import capability
from mmdit.runtime.dispatch import INTERPRET, launched
from mmdit.runtime.layout import note_layout

_compiled: Dict[Tuple[Any, ...], Any] = {}


def unit_stride(t: Optional[Tensor]) -> Optional[Tensor]:
    """t, an input of the caller's op, with a last stride of 1, which the kernels rely on."""
    if t is None:
        return None
    note_layout(t)
    return t if t.stride(-1) == 1 else t.contiguous()


def product_precision() -> str:
    """How kernels take an fp32 product: as torch's own precision flag allows."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def can_chain(x: Tensor) -> bool:
    """Whether kernels on x's device can begin while the one before still runs."""
    return not INTERPRET and capability(x) >= (9, 0)


def launch(
    kernel: Any,
    grid: int,
    tensors: Tuple[Optional[Tensor], ...],
    strides: Tuple[int, ...],
    lengths: Tuple[int, ...],
    constants: Tuple[Any, ...],
    warps: int,
    descriptors: Tuple[Any, ...] = (),
    **options: Any,
) -> None:
    """Run kernel(*descriptors, *tensors, *strides, *lengths, *constants) as `grid` programs, on the first tensor's
    device.

    Triton compiles a kernel anew for each combination of dtypes, constants, and which pointers and ints 16 divides.
    Where 16 divides all pointers and strides, as it nearly always does, the compiled kernel is kept here under a key
    of the rest. `lengths` must be marked do_not_specialize in the kernel, so that they are not part of it; nor are
    `descriptors` (of TMA), whose dtype must be the first tensor's, and whose blocks the constants'.

    options: Triton's own, such as launch_pdl: the kernel may begin while the one before it on the stream still runs
    (programmatic dependent launch), and waits for it by gdc_wait.
    """
    device = tensors[0].get_device()
    if not INTERPRET and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            return launch(kernel, grid, tensors, strides, lengths, constants, warps, descriptors, **options)

    launched(kernel.fn.__name__)
    arguments = (*descriptors, *tensors, *strides, *lengths, *constants)
    unaligned = 0
    for tensor in tensors:
        if tensor is not None:
            unaligned |= tensor.data_ptr()
    for stride in strides:
        unaligned |= stride
    if INTERPRET or unaligned % 16:
        kernel[(grid,)](*arguments, num_warps=warps, **options)
        return
    key = (id(kernel), device, constants, warps, *options.values(), *[None if t is None else t.dtype for t in tensors])
    compiled = _compiled.get(key)
    if compiled is None:
        _compiled[key] = kernel[(grid,)](*arguments, num_warps=warps, **options)
    else:
        compiled[(grid, 1, 1)](*arguments)
