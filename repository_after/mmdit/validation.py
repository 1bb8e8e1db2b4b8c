"""Checks of constructor arguments and inputs. B batch, L x length, C context length, D model dim, H heads."""

from typing import Optional

import torch
from torch import Tensor

from mmdit.errors import (
    ConfigError,
    DeviceError,
    DTypeError,
    MissingInputError,
    PositionError,
    ShapeError,
    UnexpectedInputError,
)


def check_positive_int(argument: str, value: int) -> None:
    """Raise ConfigError unless value is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(argument, "a positive int", repr(value))


def check_eps(eps: float) -> None:
    """Raise ConfigError unless eps is a positive number."""
    if not eps > 0:
        raise ConfigError("eps", "a positive number", repr(eps))


def check_probability(argument: str, value: float) -> None:
    """Raise ConfigError unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise ConfigError(argument, "a probability of at least 0 and below 1", repr(value))


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless value is one of choices."""
    if value not in choices:
        raise ConfigError(argument, f"one of {choices}", repr(value))


def check_heads(dim: int, num_head: int, names: tuple[str, str]) -> None:
    """Raise ConfigError unless dim splits into num_head heads of even size; names are the two arguments'."""
    check_positive_int(names[0], dim)
    check_positive_int(names[1], num_head)
    if dim % num_head:
        raise ConfigError(names[0], f"a multiple of {names[1]} = {num_head}", str(dim))
    if (dim // num_head) % 2:
        raise ConfigError(names[0], f"an even {names[0]} / {names[1]}, for rotary pairs", f"{dim} / {num_head}")


def check_tensor(argument: str, value: Tensor, like: Tensor | None = None) -> None:
    """Raise unless value is a floating-point tensor on the device and, outside autocast, of the dtype of `like`."""
    if not isinstance(value, Tensor):
        raise DTypeError(argument, "a torch.Tensor", type(value).__name__)
    if not value.is_floating_point():
        raise DTypeError(argument, "a floating-point tensor", str(value.dtype))
    if like is None:
        return
    check_device(argument, value, like)
    if value.dtype != like.dtype and not torch.is_autocast_enabled(value.device.type):
        raise DTypeError(argument, f"{like.dtype}, as its companions", str(value.dtype))


def check_device(argument: str, value: Tensor, like: Tensor) -> None:
    """Raise DeviceError unless both tensors are on one device."""
    if value.device != like.device:
        raise DeviceError(argument, f"a tensor on {like.device}, as its companions", str(value.device))


def check_sequence(argument: str, value: Tensor, dim: int, weight: Tensor, batch: int | None = None) -> None:
    """Raise unless value is (B, length, D), of weight's device and dtype, with B = batch where that is given."""
    check_tensor(argument, value, weight)
    fits = value.ndim == 3 and value.shape[2] == dim and batch in (None, value.shape[0])
    if not fits:
        first = "B" if batch is None else str(batch)
        raise ShapeError(argument, f"shape ({first}, length, {dim})", str(tuple(value.shape)))


def check_same_shape(argument: str, value: Tensor, like: Tensor) -> None:
    """Raise unless value has the shape, device and dtype of `like`."""
    check_tensor(argument, value, like)
    if value.shape != like.shape:
        raise ShapeError(argument, f"shape {tuple(like.shape)}, as its companions", str(tuple(value.shape)))


def check_present(argument: str, value: Tensor | None, needed: bool, because: str) -> None:
    """Raise unless value is given exactly where it is needed; `because` names the constructor argument."""
    if needed and value is None:
        raise MissingInputError(argument, f"a tensor, for {because}", "None")
    if not needed and value is not None:
        raise UnexpectedInputError(argument, f"None, for {because}", "a tensor")


def required(value: Optional[Tensor], argument: str) -> Tensor:
    """value, which is there: what TorchScript, which leaves the checks out, needs to be told."""
    if value is None:
        raise ValueError(argument + ": expected a tensor, got None")
    return value


def check_condition(argument: str, value: Tensor, x: Tensor) -> None:
    """Raise unless value is (B, D) or (B, 1, D), for x (B, L, D), of x's device and dtype."""
    check_tensor(argument, value, x)
    batch, _, dim = x.shape
    if tuple(value.shape) not in ((batch, dim), (batch, 1, dim)):
        raise ShapeError(argument, f"shape ({batch}, {dim}) or ({batch}, 1, {dim})", str(tuple(value.shape)))


def check_adaln(x: Tensor, scale: Tensor, shift: Tensor, eps: float, weight: Tensor | None = None) -> None:
    """Raise unless x is (B, L, D), scale and shift are conditions for it, weight None or (D,), and eps positive."""
    check_eps(eps)
    check_tensor("x", x)
    if x.ndim != 3:
        raise ShapeError("x", "shape (B, L, D)", str(tuple(x.shape)))
    check_condition("scale", scale, x)
    check_condition("shift", shift, x)
    if weight is not None:
        check_tensor("weight", weight, x)
        if weight.shape != x.shape[2:]:
            raise ShapeError("weight", f"shape ({x.shape[2]},)", str(tuple(weight.shape)))


def check_mask(attn_mask: Tensor | None, x: Tensor) -> None:
    """Raise unless attn_mask is None or (B, L, L), of any dtype, on x's device."""
    if attn_mask is None:
        return
    if not isinstance(attn_mask, Tensor):
        raise DTypeError("attn_mask", "a torch.Tensor", type(attn_mask).__name__)
    batch, length, _ = x.shape
    if tuple(attn_mask.shape) != (batch, length, length):
        raise ShapeError("attn_mask", f"shape ({batch}, {length}, {length})", str(tuple(attn_mask.shape)))
    check_device("attn_mask", attn_mask, x)


def check_start_pos(start_pos: Tensor | int | None, x: Tensor, max_seq_len: int) -> None:
    """Raise unless start_pos is None, an int or an int tensor (B,) whose positions all lie in the rotary table.

    The values of a tensor are read at once, which waits for its device. Where that cannot be done (under
    torch.compile, and while a CUDA graph is captured) the check is left in the program as an assertion.
    """
    batch, length, _ = x.shape
    last = max_seq_len - length
    if last < 0:
        raise PositionError("x", f"length of at most max_seq_len = {max_seq_len}", str(length))
    if start_pos is None:
        return
    if not isinstance(start_pos, Tensor):
        if isinstance(start_pos, bool) or not isinstance(start_pos, int):
            raise DTypeError("start_pos", "None, an int or an int tensor", type(start_pos).__name__)
        if not 0 <= start_pos <= last:
            raise PositionError("start_pos", _positions(max_seq_len, length), str(start_pos))
        return
    if start_pos.is_floating_point() or start_pos.is_complex() or start_pos.dtype == torch.bool:
        raise DTypeError("start_pos", "an int tensor", str(start_pos.dtype))
    if start_pos.dim() != 1 or start_pos.shape[0] != batch:
        raise ShapeError("start_pos", f"shape ({batch},)", str(tuple(start_pos.shape)))
    check_device("start_pos", start_pos, x)
    inside = ((start_pos >= 0) & (start_pos <= last)).all()
    unread = torch.compiler.is_compiling() or x.is_meta
    if unread or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        # a length in the text would be fixed in the program
        torch._assert_async(inside, f"start_pos: expected positions from 0 to {max_seq_len} - length")
    elif not inside:
        raise PositionError("start_pos", _positions(max_seq_len, length), str(start_pos.tolist()))


def _positions(max_seq_len: int, length: int) -> str:
    return f"positions from 0 to {max_seq_len - length} (max_seq_len {max_seq_len} - length {length})"
