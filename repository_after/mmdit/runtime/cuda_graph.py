"""Forwards captured in CUDA graphs: one for inputs of one shape, or one for each of a few batch sizes."""

from collections import OrderedDict
from typing import Any, Callable, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from mmdit.errors import ConfigError, DeviceError, DTypeError, ShapeError, UnexpectedInputError

NAMES = ("x", "y", "context", "attn_mask", "start_pos")
WARM_UPS = 2
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
StartPos = Optional[Union[int, Tensor]]


class GraphedForward:
    """A stack's forward as one CUDA graph: no launch costs the host anything, and the GPU does not wait for it.

    Call it as the stack, with inputs of the captured shapes, dtypes and kinds; an int start_pos must be the captured
    one. The outputs are the same memory at each call, overwritten by the next: clone what must outlive it. Weights
    changed in place are seen; weights that moved (`.to`, a new Parameter) need a new capture, and raise. It may be
    captured and called with gradients on or off and in inference mode, but gives no gradients.

    Raises DeviceError for inputs that are not on a GPU, DTypeError for such as cannot be captured, and
    UnexpectedInputError for inputs unlike the captured ones, or where one wants a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Optional[Tensor],
        context: Optional[Tensor],
        attn_mask: Optional[Tensor],
        start_pos: StartPos,
    ) -> None:
        given = (x, y, context, attn_mask, start_pos)
        check_capturable(given)
        self._weights = [
            (m._parameters, name) for m in model.modules() for name, p in m._parameters.items() if p is not None
        ]
        self._parts = [(m._modules, name, part) for m in model.modules() for name, part in m._modules.items()]
        self._addresses = self._locate()
        # what inference mode made could not be written to outside it
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(x.device):
            self._inputs = [t.clone() if isinstance(t, Tensor) else t for t in given]
            side = torch.cuda.Stream(x.device)
            side.wait_stream(torch.cuda.current_stream(x.device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    model(*self._inputs)
            torch.cuda.current_stream(x.device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=side):  # torch's own is of the first device that captured
                self._outputs = model(*self._inputs)

    def __call__(
        self,
        x: Tensor,
        y: Optional[Tensor] = None,
        context: Optional[Tensor] = None,
        attn_mask: Optional[Tensor] = None,
        start_pos: StartPos = None,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        given = (x, y, context, attn_mask, start_pos)
        check_no_gradient(given)
        for name, value, static in zip(NAMES, given, self._inputs, strict=True):
            if _kind(value) != _kind(static):
                raise UnexpectedInputError(name, f"{_kind(static)}, as captured", _kind(value))
        if self._locate() != self._addresses or [1 for names, name, part in self._parts if names.get(name) is not part]:
            raise UnexpectedInputError("weights", "those that were captured", "others: capture the stack again")
        with torch.no_grad():
            for value, static in zip(given, self._inputs, strict=True):
                if isinstance(static, Tensor) and value is not static:
                    static.copy_(value)
        self._graph.replay()
        return self._outputs

    def _locate(self) -> List[int]:
        return [parameters[name].data_ptr() for parameters, name in self._weights]


class BucketedForward:
    """A stack's forward as CUDA graphs, one for each batch size of `buckets`, length, context length and kind of the
    other inputs, captured at the first call that needs it. A batch is filled up to the next bucket with its own first
    sample; no sample depends on another.

    Call it as the stack, on a GPU. The outputs are views of memory that the next call of their graph overwrites.

    Args:
        model: an MMDiT.
        buckets: batch sizes, ascending.
        most: graphs that are kept; beyond, that which was called the longest ago is dropped.
        capture: what makes a graph, as GraphedForward.

    Raises ConfigError for buckets or most that make no sense, ShapeError for a batch above the last bucket, and as
    GraphedForward does. Weights that moved are captured again.
    """

    def __init__(
        self,
        model: nn.Module,
        buckets: Sequence[int] = BUCKETS,
        most: int = 16,
        capture: Callable[..., Any] = GraphedForward,
    ) -> None:
        if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
            raise ConfigError("buckets", "ascending batch sizes from 1 on", repr(buckets))
        if most < 1:
            raise ConfigError("most", "1 or more", repr(most))
        self.model, self.buckets, self.most, self.capture = model, tuple(buckets), most, capture
        self.graphs: OrderedDict[Tuple[str, ...], Any] = OrderedDict()

    def __call__(
        self,
        x: Tensor,
        y: Optional[Tensor] = None,
        context: Optional[Tensor] = None,
        attn_mask: Optional[Tensor] = None,
        start_pos: StartPos = None,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        given = (x, y, context, attn_mask, start_pos)
        check_no_gradient(given)
        batch = len(x)
        bucket = next((size for size in self.buckets if size >= batch), None)
        if bucket is None:
            raise ShapeError("x", f"a batch of at most {self.buckets[-1]}, the last bucket", str(batch))
        with torch.no_grad():
            filled = [_fill(t, bucket) if isinstance(t, Tensor) else t for t in given]
        key = tuple(map(_kind, filled))
        try:
            outputs = self._graph(key, filled)(*filled)
        except UnexpectedInputError as error:
            if error.argument != "weights":
                raise
            del self.graphs[key]
            outputs = self._graph(key, filled)(*filled)
        x_out, context_out = outputs
        return type(outputs)(x_out[:batch], None if context_out is None else context_out[:batch])

    def _graph(self, key: Tuple[str, ...], filled: Sequence[Any]) -> Any:
        if key not in self.graphs:
            while len(self.graphs) >= self.most:
                self.graphs.popitem(last=False)
            self.graphs[key] = self.capture(self.model, *filled)
        self.graphs.move_to_end(key)
        return self.graphs[key]


def check_capturable(given: Sequence[Any]) -> None:
    """Raise for inputs, in NAMES' order, that no graph can be captured with."""
    x = given[0]
    if not (isinstance(x, Tensor) and x.is_cuda):
        raise DeviceError("x", "a tensor on a CUDA device", str(getattr(x, "device", type(x).__name__)))
    check_no_gradient(given)
    for name, value in zip(NAMES, given, strict=True):
        if not isinstance(value, Tensor):
            if value is not None and (name != "start_pos" or not isinstance(value, int)):
                raise DTypeError(name, "a tensor or None", type(value).__name__)
            continue
        if value.device != x.device:
            raise DeviceError(name, f"x's device {x.device}", str(value.device))
        if value.layout != torch.strided or type(value) not in (Tensor, nn.Parameter):
            raise DTypeError(name, "a plain, strided tensor", f"{type(value).__name__}, {value.layout}")


def check_no_gradient(given: Sequence[Any]) -> None:
    """Raise where gradients are recorded and an input, in NAMES' order, wants one: a graph has none."""
    for name, value in zip(NAMES, given, strict=True):
        if torch.is_grad_enabled() and isinstance(value, Tensor) and value.requires_grad:
            raise UnexpectedInputError(name, "no gradient wanted, or a call under torch.no_grad()", "requires_grad")


def _fill(t: Tensor, bucket: int) -> Tensor:
    missing = bucket - len(t)
    return t if missing == 0 else torch.cat((t, t[:1].expand(missing, *t.shape[1:])))


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor {tuple(value.shape)} on {value.device}"
    return repr(value)
