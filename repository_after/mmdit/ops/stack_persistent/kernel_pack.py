"""The kernel that gathers a stack's weights for the persistent kernel, which takes them all through a few descriptors.

F feed-forward, N layers, M streams. Pointers are p_*, block values b_*, offsets o_*, masks m_*.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait


@triton.jit
def _address(p_row, field, like, ALIGNED: tl.constexpr):
    """The pointers to these fields of a row of addresses, as ones to what `like` points to."""
    pointer = tl.load(p_row + field).to(like.dtype)
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def pack_kernel(
    p_addresses,  # (N M, 11) int64: the addresses of a StreamWeights
    p_square,  # (N M (512 + F), 128), written: Wo, W1, Wqkv of each layer and stream
    p_down,  # (N M 128, F), written: W2
    p_vectors,  # (N M, 1024 + F), written: biases of qkv, norms of q and k, bias and norm of Wo, biases of W2 and W1
    FORWARD: tl.constexpr,
    ALIGNED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Copies. ALIGNED: 16 divides all addresses.

    Grid: (N M * (5 + 2 F / 128),): a program for each 128 x 128 weights of a layer's stream, and one for its vectors.
    Saves nothing for backward. PDL: it may begin before the kernel before it is done, and ends after that.
    """
    ups: tl.constexpr = FORWARD // 128
    squares: tl.constexpr = 4 + ups
    parts: tl.constexpr = squares + ups + 1
    stream, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    p_row = p_addresses + stream * 11
    if part == parts - 1:
        o_row = tl.arange(0, triton.next_power_of_2(8 + ups))
        o_d = tl.arange(0, 128)
        fields = tl.where(o_row < 3, 1, tl.where(o_row < 5, o_row - 1, tl.where(o_row < 7, o_row, 8)))
        fields = tl.where(o_row == 7, 10, fields)
        o_from = tl.where(o_row < 3, o_row, tl.maximum(o_row - 8, 0)) * 128
        m_row = (o_row < 8 + ups)[:, None]
        p_from = tl.load(p_row + fields).to(p_vectors.dtype)
        b_rows = tl.load((p_from + o_from)[:, None] + o_d[None, :], mask=m_row)
        tl.store(p_vectors + stream * (1024 + FORWARD) + o_row[:, None] * 128 + o_d[None, :], b_rows, mask=m_row)
    else:
        o = tl.arange(0, 16384)
        if part < squares:
            index = tl.where(part == 0, 0, tl.where(part <= ups, part - 1, part - 1 - ups))
            field = tl.where(part == 0, 4, tl.where(part <= ups, 7, 0))
            p_to = p_square + (stream * squares + part) * 16384
        else:
            index = part - squares
            field = 9
            p_to = p_down + (stream * ups + index) * 16384
        tl.store(p_to + o, tl.load(_address(p_row, field, p_square, ALIGNED) + index * 16384 + o))
    if PDL:
        gdc_wait()
