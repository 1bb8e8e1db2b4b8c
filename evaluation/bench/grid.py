"""The grid of `sizes`, and the order in which its cells are taken."""

import argparse
from itertools import product

from evaluation.bench.option_types import make_case
from evaluation.bench.stack_record import StackCase

MASKED = {"no": False, "yes": True}
AXES = {  # the values, among them some that no tile divides, and what they are
    "dim": ((64, 80, 96, 128, 144, 192, 256, 272, 384, 528, 768, 1024), "model dimensions"),
    "head_dim": ((16, 32, 64, 128), "those of a head; a cell's divides its dim"),
    "length": ((7, 64, 100, 186, 512, 1000, 4096), "of x"),
    "context": ((0, 1, 64, 77, 300), "lengths of the context, 0 for a model without"),
    "rows": ((256, 4096, 32768), "of x and context in all, about; they make the batch"),
    "dtype": (("bfloat16", "float16", "float32"), "as those of stack"),
    "masked": (tuple(MASKED), "with a random mask, and a start position for each sample"),
}
EXPANSION = 4  # of the MLPs: F is 4 D
MAX_BATCH = 512
DRAWN = 1024  # points of the Sobol sequence at a time


def cells(options: argparse.Namespace) -> tuple[StackCase, ...]:
    """Up to options.cells different cells of the grid, every beginning of them spread over it.

    Raises ValueError for sizes that no model has.
    """
    from torch.quasirandom import SobolEngine  # here, so that --help and table need no GPU stack

    axes = [getattr(options, name) for name in AXES]
    possible = {cell for values in product(*axes) if (cell := make_cell(values, options.layers))}
    if not possible:
        raise ValueError("expected sizes that a model can have: a head dim that is even and divides dim")
    wanted = min(options.cells, len(possible))
    found: dict[StackCase, None] = {}
    points = SobolEngine(len(axes))
    while len(found) < wanted:
        for point in points.draw(DRAWN).tolist():
            values = [axis[int(share * len(axis))] for axis, share in zip(axes, point, strict=True)]
            if cell := make_cell(values, options.layers):
                found[cell] = None
    return tuple(found)[:wanted]


def make_cell(values: tuple, layers: int) -> StackCase | None:
    """The case of a value from each axis; None where no model has these sizes."""
    dim, head_dim, length, context, rows, dtype, masked = values
    if dim % head_dim or head_dim % 2:
        return None
    return make_case(
        batch=max(1, min(MAX_BATCH, rows // (length + context))),
        dtype=dtype,
        masked=MASKED[masked],
        length=length,
        context=context,
        dim=dim,
        heads=dim // head_dim,
        feed_forward=EXPANSION * dim,
        layers=layers,
    )
