"""Addresses of many tensors for one kernel, which a launch could not take as arguments."""

from typing import Dict, Sequence, Tuple

import torch
from torch import Tensor

_tables: Dict[Tuple[int, ...], Tuple[Tensor, Tensor]] = {}


def addresses(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors' addresses (n,) int64 on their device, copied there once, and anew while a CUDA graph is captured."""
    key = tuple([t.data_ptr() for t in tensors])
    capturing = tensors[0].is_cuda and torch.cuda.is_current_stream_capturing()
    tables = _tables.get(key)
    if tables is None:
        host = torch.tensor(key, dtype=torch.int64)
        if tensors[0].is_cuda:
            host = host.pin_memory()
        tables = host, host.to(tensors[0].device, non_blocking=capturing)
        # what a graph in capture allocates holds nothing before its replay; its source must outlive it all the same
        _tables[(id(tables), *key) if capturing else key] = tables
    return tables[1]
