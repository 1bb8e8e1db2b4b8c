"""Which kernels a model launches on a GPU that need not be there, found by running it on meta tensors.

B batch, L x length, C context length, D model dim.
"""

from dataclasses import dataclass, field
from typing import Dict, Iterable, Iterator, List, Tuple

import torch
from torch import Tensor

from mmdit.config import MMDiTConfig
from mmdit.deploy.subjects import EXAMPLE, OTHERS, SUBJECTS
from mmdit.model import MMDiT
from mmdit.runtime.architecture import ARCHITECTURES, Architecture
from mmdit.runtime.launch import Planned, planned
from mmdit.runtime.prebuilt import Specialisation

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
Plan = Dict[Specialisation, Planned]


@dataclass(frozen=True)
class Sizes:
    """The calls whose kernels are planned: each dtype with each batch, with and without a mask and with start_pos None
    or a tensor, and, if `training`, the gradients.
    """

    config: MMDiTConfig = field(default_factory=MMDiTConfig)
    length: int = 186
    context: int = 64
    batches: Tuple[int, ...] = (*range(1, 34), *range(40, 257, 8))
    dtypes: Tuple[str, ...] = tuple(DTYPES)
    training: bool = False


def table_entry(arch: int) -> Architecture:
    """The entry of the tuning tables for cuda:ARCH; KeyError where there is none."""
    return {10 * entry.capability[0] + entry.capability[1]: entry for entry in ARCHITECTURES}[arch]


def plan(arch: int, sizes: Sizes) -> Plan:
    """The launches of all calls of these sizes on cuda:ARCH, one of each specialisation, in the order of the first."""
    found: Plan = {}
    with planned(table_entry(arch)) as launches:
        for dtype in sizes.dtypes:
            model = MMDiT(sizes.config).to("meta", DTYPES[dtype])
            for inputs in _calls(sizes, DTYPES[dtype]):
                _run(model, inputs, sizes.training)
                _move(launches, found)
    return found


def plan_modules(arch: int) -> Plan:
    """The launches of each public module and op at the sizes of the table, in bf16."""
    found: Plan = {}
    with planned(table_entry(arch)) as launches, torch.no_grad():
        for subject in SUBJECTS:
            if "linear" in subject.name:
                continue  # launches none, and autocast, which it calls, knows no meta tensors
            module = subject.module().to("meta", torch.bfloat16)
            for shape in (EXAMPLE, *OTHERS):
                module(**{name: t.to("meta") for name, t in subject.inputs(shape, torch.bfloat16).items()})
            _move(launches, found)
    return found


def _move(launches: List[Planned], found: Plan) -> None:
    for launch in launches:
        found.setdefault(launch.specialisation, launch)
    launches.clear()


def _calls(sizes: Sizes, dtype: torch.dtype) -> Iterator[Dict[str, Tensor]]:
    for batch in sizes.batches:
        inputs = {"x": torch.empty(batch, sizes.length, sizes.config.dim_base, dtype=dtype, device="meta")}
        if sizes.config.conditioning:
            inputs["y"] = inputs["x"][:, 0].clone()
        if sizes.config.use_cross_attn:
            inputs["context"] = inputs["x"].new_empty(batch, sizes.context, sizes.config.dim_base)
        mask = inputs["x"].new_empty(batch, sizes.length, sizes.length, dtype=torch.bool)
        for masked in ({}, {"attn_mask": mask}):
            yield {**inputs, **masked}
            yield {**inputs, **masked, "start_pos": inputs["x"].new_empty(batch, dtype=torch.int64)}


def _run(model: MMDiT, inputs: Dict[str, Tensor], training: bool) -> None:
    with torch.set_grad_enabled(training):
        if training:
            inputs = {name: t.requires_grad_(t.is_floating_point()) for name, t in inputs.items()}
        outputs = model.train(training)(**inputs)
        if training:
            _sum(outputs).backward()


def _sum(outputs: Iterable[Tensor]) -> Tensor:
    return torch.stack([out.float().sum() for out in outputs if out is not None]).sum()
