"""A benchmark's record as a run of the store."""

import shlex
from collections.abc import Iterator
from hashlib import sha256

from evaluation.bench.record import BenchRecord, Measurement
from evaluation.bench.records import PAGES, AnyRecord, kind_of, outcome
from evaluation.bench.stack_record import StackRecord, StackResult
from evaluation.bench.tune_record import TuneRecord
from evaluation.report.models import Environment
from evaluation.store.models import Run, Scalar
from evaluation.store.store import Store

_STATUS = {0: "success", 1: "failed", 3: "no_verdict"}
_HOW_LONG = ("rounds", "rep")  # what is measured has its sizes in its name; these say how
NOT_RECORDED = "not recorded"

Row = dict[str, float]


def keep_bench(
    store: Store,
    record: AnyRecord,
    *,
    where: Environment | None = None,
    commit: str | None = None,
    broke: bool = False,
    tags: tuple[str, ...] = (),
) -> Run:
    """Store a record with its table, every round's median as a metric. Raises StoreError where it is there already.

    `where`: what else is known of the machine and the commit of a run that has just ended; `commit`: that of another
    one; `broke`: it did not come to its end.
    """
    text = record.model_dump_json(indent=2)
    kind, (_, page, _) = kind_of(record), PAGES[kind_of(record)]
    config = _config(record.command) | {"before": record.before_sha256, "after": record.after_sha256}
    flags = {"benchmark": kind, "driver": record.machine.driver} | {name: config.get(name) for name in _HOW_LONG}
    run = store.create(
        "bench",
        _environment(record, where, commit),
        id=f"bench-{kind}-{sha256(text.encode()).hexdigest()[:12]}",
        started_at=record.started_at,
        tags=tags,
        config=config,
        flags=flags,
    )
    run.log_many(list(enumerate(bench_metrics(record))))
    run.add_artifact(text + "\n", "report", "record.json")
    run.add_artifact(page.markdown_table(record) + "\n", "other", "table.md")
    return run.finish("failed" if broke else _STATUS[outcome(record)[0]])


def bench_metrics(record: AnyRecord) -> list[Row]:
    """A row for each round, named by case, contender and unit. What is measured once is in the first."""
    measured: dict[str, Measurement] = {}
    once: Row = {"machine/copy_GB_per_s": record.machine.copy_gb_s}
    of_kind = {BenchRecord: _ops, StackRecord: _stack, TuneRecord: _tune}[type(record)]
    for name, found in of_kind(record):
        if isinstance(found, Measurement):
            measured[name] = found
            once[f"{name}/error"] = found.error
        else:
            once[name] = found
    rows = [once]
    for name, found in measured.items():
        for number, microseconds in enumerate(found.rounds_us):
            rows += [{}] if number == len(rows) else []
            rows[number][f"{name}/us"] = microseconds
    return rows


def _ops(record: BenchRecord) -> Iterator[tuple[str, Measurement | float]]:
    for each in record.timings:
        case = f"ops/{each.op}/{'x'.join(map(str, each.shape))}-{each.dtype}/{each.direction}"
        yield f"{case}/{each.mode}/{each.contender}", each
        yield f"{case}/floor_bytes", each.floor_bytes


def _stack(record: StackRecord) -> Iterator[tuple[str, Measurement | float]]:
    for result in record.results:
        case = f"{record.benchmark}/{result.case.name}"
        for timing in result.timings:
            yield f"{case}/{timing.contender}", timing
        for name, value in _facts(result).items():
            if value is not None:
                yield f"{case}/{name}", value


def _facts(result: StackResult) -> dict[str, float | None]:
    found: dict[str, float | None] = {"eager/peak_bytes": result.eager_peak_bytes}
    found["floor_us"] = result.floor and result.floor.us
    if result.fused:
        found |= {"fused/peak_bytes": result.fused.peak_bytes, "fused/host_us": result.fused.host_us}
        found["fused/kernels"] = result.fused.total_kernels
    return found


def _tune(record: TuneRecord) -> Iterator[tuple[str, Measurement | float]]:
    for result in record.results:
        if result.timings:
            case = f"tune/{result.job.op}/{result.job.case.name}"
            yield f"{case}/table", result.timings[0]
            yield f"{case}/fastest", result.fastest
            yield f"{case}/tiles_timed", len(result.timings)


def _config(command: str) -> dict[str, Scalar]:
    """The options of a record's command by name; one without a value is true."""
    found: dict[str, Scalar] = {}
    name = ""
    for word in shlex.split(command):
        if word.startswith("--"):
            name = word.removeprefix("--")
            found[name] = True
        elif name:
            found[name], name = word, ""
    return found


def _environment(record: AnyRecord, where: Environment | None, commit: str | None) -> Environment:
    """By the record: of a run that has just ended and of the same record read later, alike."""
    machine = record.machine
    return Environment(
        torch_version=machine.torch_version,
        triton_version=machine.triton_version,
        cuda_version=machine.cuda_version,
        gpus=(machine.gpu,),
        python_version=machine.python_version,
        platform=where.platform if where else NOT_RECORDED,
        cpu_count=None,
        git_commit=where.git_commit if where else commit,
        git_dirty=where.git_dirty if where else None,
    )
