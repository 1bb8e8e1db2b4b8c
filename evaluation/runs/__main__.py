"""Runs that were kept: `python -m evaluation.runs --help`."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from evaluation.report.schema import validate
from evaluation.runs import tables
from evaluation.runs.options import parser
from evaluation.store.catalogue import Catalogue
from evaluation.store.compare import compare
from evaluation.store.errors import StoreError
from evaluation.store.export import export, summary_rows, value_rows
from evaluation.store.files import METRICS
from evaluation.store.gate import gate
from evaluation.store.history import history
from evaluation.store.metrics import summarise
from evaluation.store.store import Store
from evaluation.suite.command import run_guarded
from evaluation.suite.result import Record

GATE_BROKEN = 4
_PIPED_WIDTH = 200


def main(argv: list[str] | None = None, console: Console | None = None) -> int:
    options = parser().parse_args(argv)
    return run_guarded(lambda: _run(options, console or _console()), f"{options.command}: not done")


def _console() -> Console:
    """Wide enough for a metric's name and its numbers where there is no terminal that says how wide it is."""
    found = Console()
    return found if found.is_terminal else Console(width=_PIPED_WIDTH)


def _run(options: argparse.Namespace, console: Console) -> int:
    store = Store(options.store)
    if options.command == "import":
        return _import(options, store, console)
    catalogue = Catalogue(store.reindex() if options.command == "reindex" else store.index())
    try:
        return COMMANDS[options.command](options, store, catalogue, console)
    finally:
        catalogue.index.close()


def _import(options: argparse.Namespace, store: Store, console: Console) -> int:
    """Of a store that may not be there yet. The files before one that is no record are in it."""
    from evaluation.bench.records import read_record
    from evaluation.store.bench_run import keep_bench

    for file in options.files:
        try:
            record = read_record(file)
        except (OSError, ValueError) as error:
            raise StoreError(f"{file} is no record of a benchmark: {error}") from error
        run = keep_bench(store, record, commit=options.commit, tags=tuple(options.tag))
        console.print(f"{file}: {run.id}", soft_wrap=True)
    return 0


def _list(options: argparse.Namespace, _store: Store, catalogue: Catalogue, console: Console) -> int:
    entries = catalogue.entries(kind=options.kind, tag=options.tag, limit=options.limit)
    console.print(tables.runs_table(entries))
    total = catalogue.index.rows("SELECT count(*) FROM runs")[0][0]
    console.print(f"{len(entries)} of {total} runs in {options.store}", soft_wrap=True)
    return 0


def _show(options: argparse.Namespace, store: Store, catalogue: Catalogue, console: Console) -> int:
    entry = catalogue.find(options.run)
    folder = store.folder(entry.id)
    kept = catalogue.summaries(entry.id, options.metric).values()
    partly = entry.state in ("running", "partial")
    tables.print_run(console, entry, folder, summarise(folder / METRICS) if partly else kept)
    return 0


def _compare(options: argparse.Namespace, _store: Store, catalogue: Catalogue, console: Console) -> int:
    found = compare(
        catalogue,
        options.base,
        options.runs,
        metrics=options.metric,
        statistic=options.statistic,
        top=options.top,
        anyway=options.anyway,
    )
    if options.json:
        return _print_json(found)
    console.print(tables.comparison_table(found))
    for reason in found.unlike:
        console.print(f"[yellow]not alike[/] {reason}", soft_wrap=True)
    return 0


def _gate(options: argparse.Namespace, _store: Store, catalogue: Catalogue, console: Console) -> int:
    found = gate(catalogue, options.base, options.run, options.rule, statistic=options.statistic)
    if options.json:
        _print_json(found)
    else:
        console.print(tables.gate_table(found))
        console.print("[green]PASSED[/]" if found.passed else "[red]BROKEN[/]")
    return 0 if found.passed else GATE_BROKEN


def _history(options: argparse.Namespace, _store: Store, catalogue: Catalogue, console: Console) -> int:
    found = history(
        catalogue,
        options.metric,
        statistic=options.statistic,
        like=options.like,
        window=options.window,
        limit=options.limit,
    )
    if options.json:
        return _print_json(found)
    tables.print_history(console, found)
    return 0


def _export(options: argparse.Namespace, store: Store, catalogue: Catalogue, console: Console) -> int:
    runs = options.runs or [entry.id for entry in catalogue.entries() if entry.state == "whole"]
    if options.format in ("mlflow", "tensorboard"):
        from evaluation.store import exporters  # what they need is optional

        send = {"mlflow": exporters.to_mlflow, "tensorboard": exporters.to_tensorboard}[options.format]
        sent = sum(send(store, catalogue.whole(run), options.output) for run in runs)
        console.print(f"{sent} runs to {options.output}, where {len(runs) - sent} were already", soft_wrap=True)
        return 0
    rows = value_rows(store, catalogue, runs) if options.values else summary_rows(catalogue, runs)
    export(rows, options.format, Path(options.output))
    console.print(f"{len(rows)} rows of {len(runs)} runs in {options.output}", soft_wrap=True)
    return 0


def _reindex(_options: argparse.Namespace, _store: Store, catalogue: Catalogue, console: Console) -> int:
    for state, count in catalogue.index.rows("SELECT state, count(*) FROM runs GROUP BY state ORDER BY state"):
        console.print(f"{count} {state}")
    for id, reason in catalogue.index.rows("SELECT id, reason FROM runs WHERE reason IS NOT NULL ORDER BY id"):
        console.print(f"[yellow]{id}[/]: {reason}", soft_wrap=True)
    return 0


def _prune(options: argparse.Namespace, store: Store, catalogue: Catalogue, console: Console) -> int:
    entries = catalogue.entries()
    untagged = [entry for entry in entries if entry.state == "whole" and entry.run and not entry.run.tags]
    broken = [entry for entry in entries if entry.state in ("partial", "damaged")]
    doomed = untagged[options.keep :] + (broken if options.quarantined else [])
    for entry in doomed:
        if not options.dry_run:
            store.remove(entry.id)
        console.print(f"{'would delete' if options.dry_run else 'deleted'} {entry.id}")
    swept = 0 if options.dry_run else store.sweep()
    console.print(f"{len(doomed)} runs; {swept} folders of killed writers")
    return 0


def _tag(options: argparse.Namespace, store: Store, catalogue: Catalogue, console: Console) -> int:
    run = store.tag(catalogue.find(options.run).id, tuple(options.tags), tuple(options.remove))
    console.print(f"{run.id}: {', '.join(run.tags) or 'no tags'}")
    return 0


Command = Callable[[argparse.Namespace, Store, Catalogue, Console], int]
COMMANDS: dict[str, Command] = {
    "list": _list,
    "show": _show,
    "compare": _compare,
    "gate": _gate,
    "history": _history,
    "export": _export,
    "reindex": _reindex,
    "prune": _prune,
    "tag": _tag,
}


def _print_json(record: Record) -> int:
    document = record.model_dump(mode="json")
    validate(type(record), document)
    print(json.dumps(document, indent=2, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
