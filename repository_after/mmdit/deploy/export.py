"""torch.export, with the fused ops whole or as PyTorch's arithmetic, and AOTInductor's packages.

An exported program whose ops are whole needs mmdit where it is loaded, as the ops are registered from Python; it then
takes the kernels where they can run. One without them needs only torch, and, as a package of AOTInductor, only
libtorch: that one C++ loads too (torch::inductor::AOTIModelPackageLoader).
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mmdit.deploy.numbers import present
from mmdit.runtime.custom_op import DECOMPOSITIONS
from mmdit.runtime.dispatch import whole_ops


class Present(nn.Module):
    """A module whose outputs are a plain tuple without None, as every format can hold."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        x: Tensor,
        y: Optional[Tensor] = None,
        context: Optional[Tensor] = None,
        attn_mask: Optional[Tensor] = None,
        start_pos: Optional[Tensor] = None,
        residual: Optional[Tensor] = None,
        scale: Optional[Tensor] = None,
        shift: Optional[Tensor] = None,
    ) -> Any:
        named = {"y": y, "context": context, "attn_mask": attn_mask, "start_pos": start_pos}
        named |= {"residual": residual, "scale": scale, "shift": shift}
        outputs = present(self.module(x, **{name: t for name, t in named.items() if t is not None}))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def export(
    module: nn.Module, inputs: Dict[str, Tensor], axes: Dict[str, Any], strict: bool = False, whole: bool = False
) -> ExportedProgram:
    """A program of the module for any sizes of the open axes.

    Args:
        module: its outputs become a plain tuple.
        inputs: by name, of an example's sizes.
        axes: which of their axes are open, as torch.export takes them.
        strict: trace its Python by Dynamo.
        whole: keep the fused ops, mmdit::*, in the graph; decompose takes them apart later.
    """
    with whole_ops() if whole else nullcontext():
        return torch.export.export(Present(module), (), inputs, dynamic_shapes=axes, strict=strict)


def decompose(program: ExportedProgram) -> ExportedProgram:
    """The program with PyTorch's arithmetic in the place of each fused op, and all else as it was."""
    return program.run_decompositions(DECOMPOSITIONS)


def package(program: ExportedProgram, path: Path) -> Path:
    """The program compiled by AOTInductor, for the device of its weights, as a .pt2 file; needs a C++ compiler.

    Whole ops, as an export on a GPU has, are decomposed first: nothing loads them where mmdit is not.
    """
    return Path(torch._inductor.aoti_compile_and_package(decompose(program), package_path=str(path)))
