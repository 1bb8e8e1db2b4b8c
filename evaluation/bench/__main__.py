"""python -m evaluation.bench ops, stack, sizes, tune or table: time the fused tree on this GPU.

`--help` says what each does, and what its exit codes mean.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evaluation.bench import grid, sizes_table, stack_table, table, tune_table
from evaluation.bench.options import build_parser, command_line, model_cases
from evaluation.bench.record import BenchRecord
from evaluation.bench.stack_record import StackRecord
from evaluation.bench.tune_record import TuneJob, TuneRecord
from evaluation.report.write import check_writable, write_record
from evaluation.suite.result import GraderError, Record

PAGES = {  # of each command: its record, its tables, and what it says where nothing falls short
    "ops": (BenchRecord, table, "Nowhere slower than torch.compile, nowhere short of the bandwidth target."),
    "stack": (
        StackRecord,
        stack_table,
        "Nowhere slower than torch.compile, nowhere less accurate than vanilla PyTorch.",
    ),
    "sizes": (StackRecord, sizes_table, "Nowhere slower than torch.compile by more than 5 %."),
    "tune": (TuneRecord, tune_table, "Nowhere are other tiles than the tables' faster beyond the spread."),
}


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    try:
        if options.command == "table":
            print(table_of(options.record))
            return 0
        cases = cases_of(options)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    import torch  # here, so that --help and table need no GPU stack

    if not torch.cuda.is_available():
        print("evaluation.bench: expected an NVIDIA GPU, got none; nothing was measured", file=sys.stderr)
        return 3
    try:
        if options.output:
            check_writable(options.output.resolve().parent)
    except GraderError as error:
        parser.error(str(error))
    return finish(options, run(options, cases))


def read_record(file: Path) -> Record:
    """The record of any command. Raises ValueError where it is none."""
    document = json.loads(file.read_text(encoding="utf-8"))
    kind = document.get("benchmark", "ops") if isinstance(document, dict) else "ops"
    model, _, _ = PAGES.get(kind, PAGES["ops"])
    return model.model_validate(document)


def table_of(file: Path) -> str:
    """The table of a record of any command. Raises ValueError where it is none."""
    record = read_record(file)
    _, page, _ = PAGES[getattr(record, "benchmark", "ops")]
    return page.markdown_table(record)


def cases_of(options: argparse.Namespace) -> tuple[Any, ...]:
    """What the command has to go through. Raises ValueError for sizes that no model has."""
    if options.command == "ops":
        return ()
    if options.command == "sizes":
        return grid.cells(options)
    cases = model_cases(options)
    return (
        cases if options.command == "stack" else tuple(TuneJob(op=o, case=case) for o in options.op for case in cases)
    )


def run(options: argparse.Namespace, cases: tuple[Any, ...]) -> Iterable[Record]:
    """The command's record, as it stands after each case."""
    trees, turns, command = (options.before, options.after), (options.rounds, options.rep), command_line(options)
    if options.command == "ops":
        import torch

        from evaluation.bench.run import time_ops

        return [time_ops(*trees, getattr(torch, options.dtype), *turns, command)]
    if options.command == "tune":
        from evaluation.bench.tune import TunePlan, tune

        return tune(TunePlan(*trees, cases, *turns), options.budget_s, command)
    from evaluation.bench.stack import StackPlan, time_stack

    contenders = options.contenders if options.command == "stack" else sizes_table.CONTENDERS
    return time_stack(StackPlan(options.command, *trees, cases, contenders, *turns), options.budget_s, command)


def finish(options: argparse.Namespace, records: Iterable[Record]) -> int:
    """Write each record over the one before; print the last one's table, and where it falls short; the exit code."""
    for record in records:
        if options.output:
            write_record(record, options.output)
    _, page, otherwise = PAGES[options.command]
    print(page.markdown_table(record))
    short = page.shortfalls(record)
    if options.command != "ops" and not any(result.timings for result in record.results):
        return 3
    print("\n".join(short) if short else otherwise)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
