"""The ways to deploy a module, each a function that does it and gives its worst relative error at several sizes."""

from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional

import torch
from torch import Tensor, nn

from mmdit.deploy.elsewhere import Elsewhere
from mmdit.deploy.export import Present, export, package
from mmdit.deploy.numbers import present, worst_error
from mmdit.deploy.onnx import export_onnx, onnx_outputs
from mmdit.deploy.subjects import EXAMPLE, OTHERS, Subject
from mmdit.runtime.cuda_graph import NAMES, GraphedForward
from mmdit.runtime.prebuilt import FOLDER

Outputs = List[List[Tensor]]
Calls = List[Dict[str, Tensor]]


class Job(NamedTuple):
    """One cell of the table: a module on a device, its calls, the first of which is the example, and where artifacts
    run that must not need mmdit.
    """

    subject: Subject
    module: nn.Module
    calls: Calls
    elsewhere: Elsewhere

    @property
    def file(self) -> Path:
        return self.elsewhere.folder / "artifact.pt2"

    def here(self, run: Callable[..., object]) -> Outputs:
        with torch.no_grad():
            return [present(run(**inputs)) for inputs in self.calls]

    def there(self, kind: str) -> Outputs:
        return [present(out) for out in self.elsewhere.run(kind, self.file, self.calls)]


class Column(NamedTuple):
    """cuda: it runs on a GPU. tolerance: the largest relative error that is right."""

    name: str
    run: Callable[[Job], Outputs]
    cuda: bool = False
    dtype: torch.dtype = torch.float32
    tolerance: float = 1e-5


def _compiled(job: Job) -> Outputs:
    torch._dynamo.reset()
    return job.here(torch.compile(job.module, fullgraph=True))


def _scripted(job: Job) -> Outputs:
    torch.jit.script(job.module).save(job.file)
    return job.there("torchscript")


def _traced(job: Job) -> Outputs:
    module = Present(job.module)  # a trace has no None to give
    torch.jit.trace(module, example_kwarg_inputs=job.calls[0], check_trace=False).save(job.file)
    return job.there("torchscript")


def _onnx(opset: int) -> Callable[[Job], Outputs]:
    def run(job: Job) -> Outputs:
        import onnxruntime

        program = export_onnx(job.module, job.calls[0], job.subject.axes(), opset, {"module": job.subject.name})
        path = job.file.with_suffix(".onnx")
        program.save(str(path))
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return [onnx_outputs(session, inputs) for inputs in job.calls]

    return run


def _exported(strict: bool) -> Callable[[Job], Outputs]:
    def run(job: Job) -> Outputs:
        torch.export.save(export(job.module, job.calls[0], job.subject.axes(), strict), job.file)
        return job.there("export")

    return run


def _packaged(job: Job) -> Outputs:
    package(export(job.module, job.calls[0], job.subject.axes()), job.file)
    return job.there("aoti")


def _cubins(job: Job) -> Outputs:
    if FOLDER is None:
        raise RuntimeError("MMDIT_KERNELS: expected the folder of kernels for this GPU, got none")
    return job.here(job.module)


def _graphed(job: Job) -> Outputs:
    inputs = [*job.calls[0].values(), *[None] * (len(NAMES) - len(job.calls[0]))]
    return [present(GraphedForward(_Positional(job.module, list(job.calls[0])), *inputs)(*inputs))]


class _Positional(nn.Module):
    """A module that takes its inputs in the places of a stack's."""

    def __init__(self, module: nn.Module, names: List[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *inputs: Optional[Tensor]) -> object:
        return self.module(**dict(zip(self.names, inputs, strict=False)))


COLUMNS = (
    Column("eager", lambda job: job.here(job.module)),
    Column("compile fullgraph", _compiled),
    Column("script", _scripted),
    Column("trace", _traced),
    Column("ONNX 18", _onnx(18)),
    Column("ONNX 23", _onnx(23)),
    Column("export strict", _exported(True)),
    Column("export non-strict", _exported(False)),
    Column("AOTInductor CPU", _packaged),
    Column("AOTInductor GPU", _packaged, cuda=True),
    Column("cubins", _cubins, cuda=True, dtype=torch.bfloat16, tolerance=2e-2),
    Column("CUDA graph", _graphed, cuda=True, dtype=torch.bfloat16, tolerance=2e-2),
)
BY_NAME = {column.name: column for column in COLUMNS}


@contextmanager
def jobs() -> Iterator[Callable[[Subject, Column], float]]:
    """cell(subject, column): the worst relative error against the module itself in fp64, of every output, at the
    example's sizes and at OTHERS; what cannot be done raises.
    """
    with Elsewhere() as elsewhere:

        def cell(subject: Subject, column: Column) -> float:
            device = "cuda" if column.cuda else "cpu"
            module = subject.module().to(device, column.dtype)
            calls = [
                {name: t.to(device) for name, t in subject.inputs(shape, column.dtype).items()}
                for shape in (EXAMPLE, *OTHERS)
            ]
            with torch.no_grad():
                got = column.run(Job(subject, module, calls, elsewhere))
                wide = module.double()
                errors = []
                for found, inputs in zip(got, calls, strict=False):
                    exact = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
                    errors.append(worst_error(found, present(wide(**exact))))
            return max(errors)

        yield cell
