"""python -m evaluation.bench ops, stack or table: time the fused tree against vanilla PyTorch on this GPU.

`--help` says what each does, and what its exit codes mean.
"""

import argparse
import json
import sys
from pathlib import Path

from evaluation.bench import stack_table, table
from evaluation.bench.options import build_parser, command_line, stack_cases
from evaluation.bench.record import BenchRecord
from evaluation.bench.stack_record import StackCase, StackRecord
from evaluation.report.write import check_writable, write_record
from evaluation.suite.result import GraderError


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    try:
        if options.command == "table":
            print(table_of(options.record))
            return 0
        cases = stack_cases(options) if options.command == "stack" else ()
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
    return run_stack(options, cases) if options.command == "stack" else run_ops(options)


def table_of(file: Path) -> str:
    """The table of a record of either command. Raises ValueError where it is neither."""
    text = file.read_text(encoding="utf-8")
    document = json.loads(text)
    if isinstance(document, dict) and document.get("benchmark") == "stack":
        return stack_table.markdown_table(StackRecord.model_validate(document))
    return table.markdown_table(BenchRecord.model_validate(document))


def run_ops(options: argparse.Namespace) -> int:
    import torch

    from evaluation.bench.run import time_ops

    dtype = getattr(torch, options.dtype)
    record = time_ops(options.before, options.after, dtype, options.rounds, options.rep, command_line(options))
    if options.output:
        write_record(record, options.output)
    print(table.markdown_table(record))
    return print_shortfalls(
        table.shortfalls(record), "Nowhere slower than torch.compile, nowhere short of the bandwidth target."
    )


def run_stack(options: argparse.Namespace, cases: tuple[StackCase, ...]) -> int:
    from evaluation.bench.stack import StackPlan, time_stack

    plan = StackPlan(options.before, options.after, cases, options.contenders, options.rounds, options.rep)
    for record in time_stack(plan, options.budget_s, command_line(options)):
        if options.output:
            write_record(record, options.output)
    print(stack_table.markdown_table(record))
    if not any(result.timings for result in record.results):
        return 3
    return print_shortfalls(
        stack_table.shortfalls(record), "Nowhere slower than torch.compile, nowhere less accurate than vanilla PyTorch."
    )


def print_shortfalls(short: list[str], otherwise: str) -> int:
    """Say what falls short, or that nothing does; the exit code."""
    print("\n".join(short) if short else otherwise)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
