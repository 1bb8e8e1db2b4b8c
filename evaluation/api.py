"""The grader from Python: grade two trees, write runs, compare them.

from evaluation import api

verdict = api.grade("repository_before", "my_tree", {"quick": True})
with api.open_run("training", flags={"task": "flow"}) as run:
    run.log(step, {"loss": loss})
for each in api.compare("latest~1", "latest").differences:
    print(each.metric, each.change, each.judgement)
"""

import contextlib
import io
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from evaluation import evaluate
from evaluation.config_file import options_of
from evaluation.report.environment import describe_environment
from evaluation.report.explain import read_report
from evaluation.report.models import Environment, Verdict
from evaluation.runs.options import DEFAULT_STORE
from evaluation.store.catalogue import Catalogue
from evaluation.store.compare import compare as compare_runs
from evaluation.store.forms import RunComparison, Statistic
from evaluation.store.models import RunKind, Scalar
from evaluation.store.run import RunWriter
from evaluation.store.store import Store
from evaluation.suite.command import ROOT
from evaluation.suite.probe import Machine
from evaluation.suite.result import GraderError

Config = Mapping[str, object]


def grade(
    before: Path | str, after: Path | str, config: Config | Path | None = None, *, store: Path | None = DEFAULT_STORE
) -> Verdict:
    """The verdict on a tree, as `evaluation/evaluate.py` gives it, and without what that prints.

    `config`: its options by name, {"quick": True, "seed": 7}, or a TOML file of them; `store`: where the run is kept,
    None for nowhere. Raises ValueError for options that it does not take, GraderError where there is no verdict.
    """
    values = tomllib.loads(config.read_text(encoding="utf-8")) if isinstance(config, Path) else dict(config or {})
    kept = ["--no-store"] if store is None else [f"--store={store}"]
    told = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = [*options_of(values), f"--before={before}", f"--after={after}", f"--output={report}", *kept]
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
                evaluate.main(options, reports=Path(folder))
        except SystemExit:
            raise ValueError(f"config: {told.getvalue().strip()}") from None
        if not report.exists():
            raise GraderError(told.getvalue().strip())
        return read_report(report).verdict


def open_run(
    kind: RunKind = "other",
    *,
    tags: Sequence[str] = (),
    config: Mapping[str, Scalar] | None = None,
    flags: Mapping[str, Scalar] | None = None,
    resume: str | None = None,
    store: Path = DEFAULT_STORE,
) -> RunWriter:
    """A new run, or with `resume` the one of that id, whose writer died. A context manager, that ends it.

    `flags`: what makes runs with others incomparable to it. Raises StoreError for a field of the wrong form, and for a
    run that cannot be gone on with.
    """
    if resume is not None:
        return Store(store).resume(resume)
    return Store(store).create(kind, here(), tags=tuple(tags), config=config, flags=flags)


def compare(
    base: str,
    *runs: str,
    metrics: Sequence[str] = (),
    statistic: Statistic = "p50",
    anyway: bool = False,
    store: Path = DEFAULT_STORE,
) -> RunComparison:
    """Runs against a baseline, each named by its id, the beginning of it, a tag, `latest` or `latest~1`.

    Raises StoreError for runs that are not whole and, unless `anyway`, that are not alike.
    """
    index = Store(store).index()
    try:
        return compare_runs(Catalogue(index), base, runs, metrics=metrics, statistic=statistic, anyway=anyway)
    finally:
        index.close()


def here() -> Environment:
    """What this process runs on. GPUs are told where torch has been imported."""
    torch = sys.modules.get("torch")
    usable = torch is not None and torch.cuda.is_available()
    names = tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())) if usable else ()
    machine = Machine(
        torch_version=_version("torch"),
        triton_version=_version("triton"),
        cuda_version=torch.version.cuda if usable else None,
        gpus=names,
    )
    return describe_environment(ROOT, machine)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
