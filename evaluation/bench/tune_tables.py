"""The tuning tables of the fused tree: who asks them, what runs with their tiles, and which other tiles to try."""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

from evaluation.bench.stack_record import StackCase
from evaluation.bench.tune_cases import (
    Draw,
    draw_attention,
    draw_gated_residual,
    draw_norm,
    draw_norm_backward,
    draw_pack_heads,
    draw_stack,
)
from evaluation.bench.tune_record import TunedOp

MAX_ELEMENTS = 1 << 14  # of a norm's tile: more do not fit the registers
ATTENTION_OP, NORM_OP = "mmdit.ops.joint_attention.op", "mmdit.ops.norm_adaln.op"
ATTENTION = {"queries": (32, 64, 128), "keys": (32, 64, 128), "warps": (2, 4, 8), "stages": (1, 2, 3, 4)}
LATENCY = {
    **{"tile": 16, "qkv_parts": 3, "qkv_warps": 8, "slices": 4, "block_f": 128, "stages": 1, "rows_warps": 8},
    "hopper": False,
}
THROUGHPUT = LATENCY | {"tile": 64, "qkv_warps": 4, "slices": 1, "block_f": 64, "stages": 3, "rows_warps": 4}
ROWS = {"rows": (1, 2, 4, 8, 16, 32, 64), "warps": (1, 2, 4, 8, 16)}


def fits_rows(tiles: Any, case: StackCase) -> bool:
    """Whether the row kernels can run these tiles: the MLP's blocks divide its slices, and for Hopper's kernel D is 128
    and F a power of 2. Of tiles that run alike, one.
    """
    features = case.feed_forward // tiles.slices
    if tiles.hopper:
        unused = ("tile", "slices", "block_f", "stages", "rows_warps")
        takes_sizes = case.dim == 128 <= case.feed_forward and case.feed_forward.bit_count() == 1
        return takes_sizes and all(getattr(tiles, name) == THROUGHPUT[name] for name in unused)
    if case.feed_forward % tiles.slices or features % tiles.block_f:
        return False
    return features != tiles.block_f or tiles.stages == 1


def fits_attention(tiles: Any, case: StackCase) -> bool:
    """Whether the attention kernel can run these tiles: masked, it reads 32 keys at a time."""
    return not case.masked or tiles.keys == 32


def fits_norm(tiles: Any, case: StackCase) -> bool:
    """Whether a tile is one that registers can hold."""
    return tiles.rows * tiles.block <= MAX_ELEMENTS


class Table(NamedTuple):
    """`function` is asked by module `asker`, when what `draw` makes is run. numbers: what to try for each; early: what
    to try first, as it may be far from what the table holds.
    """

    asker: str
    function: str
    draw: Draw
    numbers: dict[str, tuple[bool | int, ...]]
    fits: Callable[[Any, StackCase], bool]
    early: tuple[dict[str, bool | int], ...] = ()

    def others(self, present: Any, case: StackCase) -> list[Any]:
        """All tiles to try beside the present ones: the early, then those first that differ in the fewest numbers."""
        early = [present._replace(**numbers) for numbers in self.early]
        near = [
            present._replace(**dict(zip(self.numbers, values, strict=True)))
            for values in product(*self.numbers.values())
        ]
        near.sort(key=lambda tiles: sum(a != b for a, b in zip(tiles, present, strict=True)))
        return [tiles for tiles in dict.fromkeys(early + near) if tiles != present and self.fits(tiles, case)]


TABLES: dict[TunedOp, Table] = {
    "stack_rows": Table(
        "mmdit.ops.stack_rows.op",
        "row_tiles",
        draw_stack,
        {
            "tile": (16, 32, 64),
            "qkv_parts": (1, 3),
            "qkv_warps": (4, 8),
            "slices": (1, 2, 4, 8),
            "block_f": (32, 64, 128),
            "stages": (1, 2, 3),
            "rows_warps": (4, 8),
            "hopper": (False, True),
        },
        fits_rows,
        early=(THROUGHPUT | {"hopper": True}, THROUGHPUT, LATENCY, LATENCY | {"slices": 8, "block_f": 64}),
    ),
    "stack_attention": Table(ATTENTION_OP, "attention_tiles", draw_stack, ATTENTION, fits_attention),
    "joint_attention": Table(ATTENTION_OP, "attention_tiles", draw_attention, ATTENTION, fits_attention),
    "norm_adaln": Table(NORM_OP, "forward_tiles", draw_norm, ROWS, fits_norm),
    "norm_adaln_backward": Table(
        NORM_OP,
        "backward_tiles",
        draw_norm_backward,
        {**ROWS, "chunks": (1, 2, 3, 4, 6, 8), "stages": (1, 2, 3, 4)},
        fits_norm,
    ),
    "norm_adaln_reduce": Table(
        NORM_OP,
        "reduce_tiles",
        draw_norm_backward,
        {"rows": (8, 16, 32, 64), "block": (16, 32, 64, 128), "warps": (1, 2, 4, 8)},
        fits_norm,
    ),
    "pack_heads": Table("mmdit.ops.pack_heads.op", "norm_tiles", draw_pack_heads, ROWS, fits_norm),
    "gated_residual": Table("mmdit.ops.gated_residual.op", "norm_tiles", draw_gated_residual, ROWS, fits_norm),
}
