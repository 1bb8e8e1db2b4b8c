"""python -m evaluation.bench ops: time the fused ops against vanilla PyTorch, eager and compiled, on this GPU.

Each case is timed with all contenders in turns, called eagerly and replayed from a CUDA graph, and its outputs and
gradients are checked against fp64 first. `table` prints a record's Markdown table, as it stands in the README.

Exit codes of `ops`: 0; 1 the fused op is somewhere slower than torch.compile, or short of the copy bandwidth;
3 nothing could be measured.
"""

import argparse
import sys
from pathlib import Path

from evaluation.bench.record import BenchRecord
from evaluation.bench.table import markdown_table, shortfalls
from evaluation.report.write import write_record

ROOT = Path(__file__).resolve().parents[2]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    ops = commands.add_parser("ops", help="time the fused ops; needs an NVIDIA GPU")
    ops.add_argument("--before", type=Path, default=ROOT / "repository_before", help="the vanilla tree")
    ops.add_argument("--after", type=Path, default=ROOT / "repository_after", help="the fused tree")
    ops.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    ops.add_argument("--rounds", type=int, default=9, help="turns that each contender gets (default 9)")
    ops.add_argument(
        "--rep", type=int, default=20, help="milliseconds that a contender is timed in a turn (default 20)"
    )
    ops.add_argument("--output", type=Path, help="write the record to this JSON file")
    table = commands.add_parser("table", help="print the Markdown table of a record")
    table.add_argument("record", type=Path)
    arguments = parser.parse_args(argv)

    if arguments.command == "table":
        print(markdown_table(BenchRecord.model_validate_json(arguments.record.read_text(encoding="utf-8"))))
        return 0
    import torch  # here, so that --help and table need no GPU stack

    if not torch.cuda.is_available():
        print("evaluation.bench: expected an NVIDIA GPU, got none; nothing was measured", file=sys.stderr)
        return 3
    from evaluation.bench.run import time_ops

    dtype, rounds, rep = arguments.dtype, arguments.rounds, arguments.rep
    command = f"python -m evaluation.bench ops --dtype {dtype} --rounds {rounds} --rep {rep}"
    record = time_ops(arguments.before, arguments.after, getattr(torch, dtype), rounds, rep, command)
    if arguments.output:
        write_record(record, arguments.output)
    print(markdown_table(record))
    short = shortfalls(record)
    print("\n".join(short) if short else "Nowhere slower than torch.compile, nowhere short of the bandwidth target.")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
