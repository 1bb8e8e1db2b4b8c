"""python -m evaluation.bench ops, stack, sizes, tune or table: time the fused tree on this GPU.

`--help` says what each does, and what its exit codes mean.
"""

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from evaluation.bench import grid, sizes_table
from evaluation.bench.options import build_parser, command_line, model_cases
from evaluation.bench.records import PAGES, AnyRecord, outcome, table_of
from evaluation.bench.tune_record import TuneJob
from evaluation.report.environment import describe_environment
from evaluation.report.write import check_writable, write_record
from evaluation.store.bench_run import keep_bench
from evaluation.store.store import Store
from evaluation.suite.command import ROOT
from evaluation.suite.probe import Machine
from evaluation.suite.result import GraderError


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
        for folder in (options.output and options.output.resolve().parent, options.store):
            if folder:
                check_writable(folder)
    except GraderError as error:
        parser.error(str(error))
    return finish(options, run(options, cases))


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


def run(options: argparse.Namespace, cases: tuple[Any, ...]) -> Iterable[AnyRecord]:
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


def finish(options: argparse.Namespace, records: Iterable[AnyRecord]) -> int:
    """Write each record over the one before; keep the last, of a run that breaks too; print its table, and where it
    falls short; the exit code.
    """
    record = None
    try:
        for record in records:
            if options.output:
                write_record(record, options.output)
    except BaseException:
        if record is not None:
            keep(options, record, broke=True)
        raise
    keep(options, record)
    _, page, _ = PAGES[options.command]
    print(page.markdown_table(record))
    code, said = outcome(record)
    print(said)
    return code


def keep(options: argparse.Namespace, record: AnyRecord, broke: bool = False) -> None:
    """Put the record into the store that was asked for."""
    if options.store:
        where = describe_environment(ROOT, Machine())
        print(f"run: {keep_bench(Store(options.store), record, where=where, broke=broke, tags=tuple(options.tag)).id}")


if __name__ == "__main__":
    sys.exit(main())
