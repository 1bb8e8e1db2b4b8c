"""Small runs for the tests of the store."""

from collections.abc import Mapping

from evaluation.report.models import Environment
from evaluation.store.models import Run
from evaluation.store.store import Store

HERE = Environment(
    torch_version="2.13.0",
    triton_version="3.7.1",
    python_version="3.11.7",
    platform="Linux",
    cpu_count=2,
    git_commit="c" * 40,
    git_dirty=False,
)


def stored(
    store: Store,
    values: Mapping[str, list[float]],
    *,
    changes: Mapping[str, object] = {},
    artifact: str | None = None,
    **more: object,
) -> Run:
    """A whole run of these metrics, a step for each value; `changes` are to where it ran."""
    run = store.create("bench", HERE.model_copy(update=dict(changes)), **more)
    for name, column in values.items():
        run.log_many([(step, {name: value}) for step, value in enumerate(column)])
    if artifact:
        run.add_artifact("what was found", "other", artifact)
    return run.finish("success")
