"""Run the suite on one tree, show what pytest prints, and say whether the tree did exactly what was declared."""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from evaluation.suite.command import EXIT_CODES, SUITE, add_run_options, run_guarded, settings_from, tree_folder
from evaluation.suite.judge import judge_tree
from evaluation.suite.probe import describe_machine
from evaluation.suite.result import SuiteRun, TreeProblem, exit_code
from evaluation.suite.run import Settings, engine_of, prepare, run_suite, with_processes
from evaluation.suite.show import print_failures


def main(argv: list[str] | None = None, *, suite: Path = SUITE) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.suite",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--tree", type=tree_folder, required=True, metavar="FOLDER", help="the folder that holds the package mmdit"
    )
    parser.add_argument(
        "--role",
        choices=("before", "after"),
        required=True,
        help="before: every contract test passes and every upgrade test fails; after: all of them pass",
    )
    add_run_options(parser)
    options = parser.parse_args(argv)
    return run_guarded(lambda: _run(options, settings_from(options, suite)))


def _run(options: argparse.Namespace, settings: Settings) -> int:
    gpus = bool(describe_machine(settings.device).gpus) and settings.device != "cpu"
    run = _run_tree(options, settings, gpus)
    failures = judge_tree(run)
    console = Console()
    if run.evidence:
        console.print(f"(what is in {run.evidence.canary_file} is the grader's own, and must fail)", highlight=False)
    if failures:
        print_failures(console, failures, {case.nodeid: case.message for case in run.cases})
        console.print(f"[bold red]FAILED[/]: {options.role} did not do what was declared")
    else:
        upgrades = "fail" if options.role == "before" else "pass"
        console.print(f"[bold green]OK[/]: on {options.role} the contract tests pass and the upgrade tests {upgrades}")
    return exit_code(failures)


def _run_tree(options: argparse.Namespace, settings: Settings, gpus: bool) -> SuiteRun:
    with ExitStack() as stack:
        try:
            stage = prepare(stack, options.tree, options.role, settings.timeout, engine_of(settings, gpus))
        except TreeProblem as problem:
            return SuiteRun(role=options.role, tree=str(options.tree), failures=(problem.failure(options.role),))
        return run_suite(stage, with_processes(settings, gpus), _show)


def _show(chunk: bytes) -> None:
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
