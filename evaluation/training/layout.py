"""How a tensor lies in memory, and what is wrong with it."""

from collections.abc import Iterable, Mapping

from torch import Tensor


def describe(t: Tensor) -> str:
    """As "float32 (2, 3), strides (3, 1)", with what is odd about it."""
    return f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}, strides {t.stride()}" + "".join(
        f", {oddity}" for oddity in oddities(t)
    )


def oddities(t: Tensor) -> list[str]:
    """What a kernel must not take for granted of this tensor; empty for a dense one of its own."""
    found = []
    if overlaps(t):
        found.append("elements share memory")
    elif not t.is_contiguous():
        found.append("not contiguous")
    if t.numel() and t.data_ptr() % t.element_size():
        found.append("not aligned to its elements")
    return found


def overlaps(t: Tensor) -> bool:
    """Whether two elements may lie at one address: certain where this says False, and for expanded tensors."""
    reach = 0  # of what the smaller strides cover
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return t.numel() > 0
            reach += stride * (size - 1)
    return False


def shared(tensors: Mapping[str, Tensor]) -> list[str]:
    """A line for every two different tensors of which some bytes are the same memory."""
    ranges = sorted((*_range(t), name) for name, t in tensors.items() if t.numel())
    lines, furthest, holder = [], -1, ""
    for begin, end, name in ranges:
        if begin < furthest:
            lines.append(f"{name} lies in the memory of {holder}")
        if end > furthest:
            furthest, holder = end, name
    return lines


def weight_problems(weights: Iterable[tuple[str, Tensor]]) -> list[str]:
    """What keeps weights from being trained: an update in place must change each element once, and no other."""
    named = dict(weights)
    own = [f"{name}: elements share memory: {describe(t)}" for name, t in named.items() if overlaps(t)]
    return own + shared(named)


def _range(t: Tensor) -> tuple[int, int]:
    last = sum(stride * (size - 1) for stride, size in zip(t.stride(), t.shape, strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()
