"""A forward captured in a CUDA graph."""

from typing import List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from mmdit.errors import DeviceError, UnexpectedInputError

NAMES = ("x", "y", "context", "attn_mask", "start_pos")
WARM_UPS = 2


class GraphedForward:
    """A stack's forward as one CUDA graph: no launch costs the host anything, and the GPU does not wait for it.

    Call it as the stack, with inputs of the captured shapes, dtypes and kinds; an int start_pos must be the captured
    one. The outputs are the same memory at each call, overwritten by the next: clone what must outlive it. Weights
    changed in place are seen; weights that moved (`.to`, a new Parameter) need a new capture, and raise.

    Raises DeviceError for inputs that are not on a GPU, and UnexpectedInputError for inputs unlike the captured ones.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Optional[Tensor],
        context: Optional[Tensor],
        attn_mask: Optional[Tensor],
        start_pos: Optional[Union[int, Tensor]],
    ) -> None:
        if not (isinstance(x, Tensor) and x.is_cuda):
            raise DeviceError("x", "a tensor on a CUDA device", str(getattr(x, "device", type(x).__name__)))
        self._inputs = [t.clone() if isinstance(t, Tensor) else t for t in (x, y, context, attn_mask, start_pos)]
        self._weights = [
            (m._parameters, name) for m in model.modules() for name, p in m._parameters.items() if p is not None
        ]
        self._parts = [(m._modules, name, part) for m in model.modules() for name, part in m._modules.items()]
        self._addresses = self._locate()
        side = torch.cuda.Stream(x.device)
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                model(*self._inputs)
        torch.cuda.current_stream(x.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph):
            self._outputs = model(*self._inputs)

    def __call__(
        self,
        x: Tensor,
        y: Optional[Tensor] = None,
        context: Optional[Tensor] = None,
        attn_mask: Optional[Tensor] = None,
        start_pos: Optional[Union[int, Tensor]] = None,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        given = (x, y, context, attn_mask, start_pos)
        for name, value, static in zip(NAMES, given, self._inputs, strict=True):
            if _kind(value) != _kind(static):
                raise UnexpectedInputError(name, f"{_kind(static)}, as captured", _kind(value))
        if self._locate() != self._addresses or [1 for names, name, part in self._parts if names.get(name) is not part]:
            raise UnexpectedInputError("weights", "those that were captured", "others: capture the stack again")
        for value, static in zip(given, self._inputs, strict=True):
            if isinstance(static, Tensor) and value is not static:
                static.copy_(value)
        self._graph.replay()
        return self._outputs

    def _locate(self) -> List[int]:
        return [parameters[name].data_ptr() for parameters, name in self._weights]


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor {tuple(value.shape)} on {value.device}"
    return repr(value)
