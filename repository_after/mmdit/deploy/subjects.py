"""What is deployed: every public module and op, each as a module with named inputs.

B batch, L x length, C context length, D model dim.
"""

from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from mmdit.attention import RMSNormSelfAttention, RMSNormSelfCrossAttention
from mmdit.block import MMDiTBlock
from mmdit.config import MMDiTConfig
from mmdit.model import MMDiT
from mmdit.norm import RMSNorm, RMSNormWithResidual
from mmdit.ops.norm_adaln.op import layernorm_adaln, rmsnorm_adaln

DIM, HEADS, FORWARD = 64, 4, 128


class Shape(NamedTuple):
    """B, L and C."""

    batch: int
    length: int
    context: int


EXAMPLE = Shape(2, 17, 5)  # what is traced or exported with
OTHERS = (Shape(3, 31, 9), Shape(5, 8, 2))  # what it must run at all the same


class LayernormAdaln(nn.Module):
    """layernorm_adaln as a module."""

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return layernorm_adaln(x, scale, shift)


class RmsnormAdaln(nn.Module):
    """rmsnorm_adaln as a module."""

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return rmsnorm_adaln(x, scale, shift)


class Subject(NamedTuple):
    """A public module or op.

    takes: names of its inputs, of INPUTS.
    """

    name: str
    build: Callable[[], nn.Module]
    takes: Tuple[str, ...]

    def module(self, seed: int = 0) -> nn.Module:
        """In eval mode, with weights away from their initial ones and zeros."""
        rng = torch.Generator().manual_seed(seed)
        module = self.build().eval()
        for p in module.parameters():
            p.data.add_(torch.randn(p.shape, generator=rng) * 0.1)
        return module.requires_grad_(False)

    def inputs(self, shape: Shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> Dict[str, Tensor]:
        rngs = [torch.Generator().manual_seed(seed + i) for i in range(len(self.takes))]
        drawn = {name: INPUTS[name](shape, rng) for name, rng in zip(self.takes, rngs, strict=True)}
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in drawn.items()}

    def axes(self) -> Dict[str, Dict[int, Any]]:
        """Batch, length and context length left open, as torch.export and torch.onnx.export take them."""
        return {name: {at: SIZES[size] for at, size in enumerate(AXES[name]) if size} for name in self.takes}


def _normal(*sizes: int) -> Callable[[Shape, torch.Generator], Tensor]:
    """Values of (B, sizes)."""
    return lambda shape, rng: torch.randn(shape.batch, *sizes, generator=rng)


SIZES = {"B": Dim("batch"), "L": Dim("length", max=4096), "C": Dim("context")}
AXES: Dict[str, List[str]] = {
    "x": ["B", "L", ""],
    "residual": ["B", "L", ""],
    "y": ["B", ""],
    "context": ["B", "C", ""],
    "attn_mask": ["B", "L", "L"],
    "start_pos": ["B"],
    "scale": ["B", ""],
    "shift": ["B", ""],
}
INPUTS: Dict[str, Callable[[Shape, torch.Generator], Tensor]] = {
    "x": lambda s, rng: torch.randn(s.batch, s.length, DIM, generator=rng),
    "residual": lambda s, rng: torch.randn(s.batch, s.length, DIM, generator=rng) + 1,
    "y": _normal(DIM),
    "context": lambda s, rng: torch.randn(s.batch, s.context, DIM, generator=rng),
    "attn_mask": lambda s, rng: torch.rand(s.batch, s.length, s.length, generator=rng) > 0.3,
    "start_pos": lambda s, rng: torch.randint(64, (s.batch,), generator=rng),
    "scale": _normal(DIM),
    "shift": _normal(DIM),
}
WHERE = ("attn_mask", "start_pos")
SUBJECTS = (
    Subject("RMSNorm", lambda: RMSNorm(DIM, bias=True), ("x",)),
    Subject("RMSNormWithResidual", lambda: RMSNormWithResidual(DIM, residual_scale=0.5), ("x", "residual")),
    Subject("layernorm_adaln", LayernormAdaln, ("x", "scale", "shift")),
    Subject("rmsnorm_adaln", RmsnormAdaln, ("x", "scale", "shift")),
    Subject("RMSNormSelfAttention", lambda: RMSNormSelfAttention(DIM, HEADS), ("x", *WHERE)),
    Subject("RMSNormSelfAttention, linear", lambda: RMSNormSelfAttention(DIM, HEADS, linear=True), ("x", *WHERE)),
    Subject(
        "RMSNormSelfCrossAttention",
        lambda: RMSNormSelfCrossAttention(DIM, HEADS, use_context=True),
        ("x", "context", *WHERE),
    ),
    Subject(
        "MMDiTBlock",
        lambda: MMDiTBlock(DIM, HEADS, None, FORWARD, conditioning=True, use_cross_attn=True),
        ("x", "y", "context", *WHERE),
    ),
    Subject(
        "MMDiT",
        lambda: MMDiT(MMDiTConfig(dim_base=DIM, num_layers=2, num_attn_head=HEADS, dim_feedforward=FORWARD)),
        ("x", "y", "context", *WHERE),
    ),
)
BY_NAME = {subject.name: subject for subject in SUBJECTS}
