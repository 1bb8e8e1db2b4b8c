"""The cases of layernorm_adaln and rmsnorm_adaln: inputs, fp64 oracle, bytes that must move."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from types import ModuleType

import torch
from torch import Tensor

from evaluation.bench.case import Outputs, worst_error
from evaluation.bench.record import Contender, Direction

OPS = ("layernorm_adaln", "rmsnorm_adaln")
SHAPES = ((1, 186, 128), (32, 186, 128), (128, 186, 128), (8, 4096, 3072))
EPS = 1e-6


@dataclass(frozen=True)
class NormCase:
    """x and the output's gradient (B, L, D); scale and shift (B, 1, D), views of a modulation (B, 1, 6 D)."""

    op: str
    x: Tensor
    scale: Tensor
    shift: Tensor
    grad: Tensor
    directions: tuple[Direction, ...] = ("forward", "forward+backward")

    @classmethod
    def draw(cls, op: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str = "cuda") -> "NormCase":
        """Fresh random values."""
        batch, _, dim = shape
        x, grad = torch.randn(2, *shape, device=device, dtype=dtype)
        scale, shift, *_ = torch.randn(batch, 1, 6 * dim, device=device, dtype=dtype).chunk(6, dim=-1)
        leaves = (t.detach().requires_grad_() for t in (x, scale, shift))
        return cls(op, *leaves, grad)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    def functions(self, vanilla: ModuleType, fused: ModuleType) -> dict[Contender, Callable[..., Tensor]]:
        eager = getattr(vanilla, self.op)
        return {"eager": eager, "compiled": torch.compile(eager, dynamic=False), "fused": getattr(fused, self.op)}

    def call(self, function: Callable[..., Tensor], direction: Direction) -> Callable[[], Outputs]:
        """A call that gives the output, or the output and the gradients of x, scale and shift."""
        inputs = self.x, self.scale, self.shift

        def forward() -> Outputs:
            with torch.no_grad():
                return (function(*inputs, EPS),)

        def forward_backward() -> Outputs:
            out = function(*inputs, EPS)
            return out, *torch.autograd.grad(out, inputs, self.grad)

        return forward if direction == "forward" else forward_backward

    def floor_bytes(self, direction: Direction) -> int:
        """Read x and write the output; backward reads x and the gradient and writes x's; conditions either way."""
        rows, conditions = self.x.numel(), 2 * self.scale.numel()
        elements = 2 * rows + conditions if direction == "forward" else 5 * rows + 2.5 * conditions
        return int(elements * self.x.element_size())

    def error(self, outputs: Outputs) -> float:
        x, scale, shift = (t.detach().double().requires_grad_() for t in (self.x, self.scale, self.shift))
        centred = x - x.mean(-1, keepdim=True) if self.op == "layernorm_adaln" else x
        oracle = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() * (1 + scale) + shift
        expected = (oracle, *torch.autograd.grad(oracle, (x, scale, shift), self.grad.double()))
        return worst_error(outputs, expected)


def norm_cases(dtype: torch.dtype) -> Iterator[NormCase]:
    return (NormCase.draw(op, shape, dtype) for op, shape in product(OPS, SHAPES))
