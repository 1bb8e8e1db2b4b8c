"""Launching a compiled kernel straight: 4.4 us of host time, where Triton's own look-up of it takes 13 (H200 host)."""

from contextlib import contextmanager
from importlib import import_module
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from mmdit.runtime.architecture import Architecture, capability, meta_stands_for
from mmdit.runtime.dispatch import INTERPRET, launched
from mmdit.runtime.layout import note_layout
from mmdit.runtime.prebuilt import Prebuilt, Specialisation, prebuilt_kernel

_compiled: Dict[Tuple[Any, ...], Any] = {}
_planned: List["Planned"] = []


class Block(NamedTuple):
    """A tensor of 16 bits an element, its last stride 1, as a kernel copies it by TMA, in blocks of this shape."""

    tensor: Tensor
    shape: Tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, *shape: int) -> "Block":
        return cls(tensor, shape)

    def descriptor(self) -> Any:
        """Triton's own."""
        from triton.experimental.gluon.language import NVMMASharedLayout
        from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

        layout = NVMMASharedLayout(min(2 * self.shape[-1], 128), 16, len(self.shape))
        return TensorDescriptor(self.tensor, [*self.tensor.shape], [*self.tensor.stride()], [*self.shape], layout)


class Planned(NamedTuple):
    """A launch that was only planned: what its compiled kernel is known by, and what it would be compiled for."""

    specialisation: Specialisation
    arguments: Tuple[Any, ...]


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


def jit_kernel(name: str) -> Any:
    """Triton's function of a kernel by its name as `launch` takes it."""
    module, _, function = name.partition(":")
    return getattr(import_module(f"mmdit.ops.{module}"), function)


@contextmanager
def planned(gpu: Architecture) -> Iterator[List[Planned]]:
    """The launches of calls on meta tensors, each as on such a GPU, but none of them done."""
    _planned.clear()
    with meta_stands_for(gpu):
        yield _planned


def launch(
    kernel: str,
    grid: int,
    tensors: Tuple[Optional[Tensor], ...],
    strides: Tuple[int, ...],
    lengths: Tuple[int, ...],
    constants: Tuple[Any, ...],
    warps: int,
    descriptors: Tuple[Block, ...] = (),
    **options: Any,
) -> None:
    """Run kernel(*descriptors, *tensors, *strides, *lengths, *constants) as `grid` programs, on the first tensor's
    device.

    kernel: "OP.MODULE:NAME", of ops. No module of kernels is imported where they were compiled ahead of time.

    Triton compiles a kernel anew for each combination of dtypes, constants, and which pointers and ints 16 divides.
    Where 16 divides all pointers and strides, as it nearly always does, the compiled kernel is kept here under a key
    of the rest. `lengths` must be marked do_not_specialize in the kernel, so that they are not part of it; nor are
    `descriptors` (of TMA), whose dtype must be that of a tensor, and whose blocks the constants'.

    options: Triton's own, such as launch_pdl: the kernel may begin while the one before it on the stream still runs
    (programmatic dependent launch), and waits for it by gdc_wait.
    """
    device = tensors[0].get_device()
    if not INTERPRET and device >= 0 and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            return launch(kernel, grid, tensors, strides, lengths, constants, warps, descriptors, **options)

    launched(kernel.rpartition(":")[2])
    arguments = (*descriptors, *tensors, *strides, *lengths, *constants)
    unaligned = 0
    for tensor in tensors:
        if tensor is not None:
            unaligned |= tensor.data_ptr()
    for stride in strides:
        unaligned |= stride
    key = (kernel, device, constants, warps, *options.values(), *[None if t is None else t.dtype for t in tensors])
    aligned = not (INTERPRET or unaligned % 16)
    compiled = _compiled.get(key) if aligned else None
    if compiled is None and not INTERPRET:
        specialisation = Specialisation.of(kernel, tensors, constants, warps, options)
        if device < 0:
            _planned.append(Planned(specialisation, arguments))
            return
        compiled = prebuilt_kernel(specialisation, device, capability(tensors[0]), aligned)
        if compiled is not None:
            _compiled[key] = compiled
    if descriptors and not isinstance(compiled, Prebuilt):
        arguments = (*[block.descriptor() for block in descriptors], *arguments[len(descriptors) :])
    if compiled is not None:
        compiled[(grid, 1, 1)](*arguments)
        return
    compiled = jit_kernel(kernel)[(grid,)](*arguments, num_warps=warps, **options)
    if aligned:
        _compiled[key] = compiled
