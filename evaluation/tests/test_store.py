"""The run store: what is written is there, what is not whole is never shown as whole, and what is wrong is said."""

import os
import random
import shutil
import sqlite3
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from evaluation.store.errors import StoreError
from evaluation.store.files import INDEX, QUARANTINE
from evaluation.store.index import MIGRATIONS, Index
from evaluation.store.lines import Lines
from evaluation.store.metrics import read_metrics
from evaluation.store.store import Store
from evaluation.store.verify import examine
from evaluation.tests.store_faults import corrupt_bytes, forked, kill_writers
from evaluation.tests.stored_runs import HERE, stored


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def states(store: Store) -> dict[str, str]:
    return dict(store.index().rows("SELECT id, state FROM runs"))


def test_a_finished_run_has_all_that_was_written(store: Store, tmp_path: Path):
    (tmp_path / "plot.png").write_bytes(b"png")
    with store.create("training", HERE, tags=("nightly",), config={"lr": 0.1}) as run:
        run.log(0, {"loss": 2.0, "accuracy": 0.5})
        run.log(1, {"loss": float("nan")})
        run.add_artifact(tmp_path / "plot.png", "plot")
    found = examine(store.folder(run.id))
    assert (found.state, found.run.status, found.run.tags, found.run.config) == (
        "whole",
        "success",
        ("nightly",),
        {"lr": 0.1},
    )
    assert [(a.name, a.kind, a.size) for a in found.run.seal.artifacts] == [("plot.png", "plot", 3)]
    loss = {metric.name: metric for metric in found.metrics}["loss"]
    assert (loss.count, loss.not_finite, loss.last, loss.mean, loss.p50) == (2, 1, None, 2.0, 2.0)
    assert [line.values for line in read_metrics(store.folder(run.id) / "metrics.jsonl")][1] == {"loss": None}


def test_an_exception_leaves_a_failed_run_that_is_whole(store: Store):
    with pytest.raises(ZeroDivisionError), store.create("training", HERE) as run:
        run.log(0, {"loss": 1 / 0})
    assert store.index().rows("SELECT state, status FROM runs") == [("whole", "failed")]


def test_a_line_is_on_disk_when_log_returns(store: Store):
    run = store.create("training", HERE)
    run.log(3, {"loss": 1})
    assert [line.step for line in read_metrics(run.folder / "metrics.jsonl")] == [3]
    assert states(store) == {run.id: "running"}
    run.close()


def test_a_run_whose_writer_is_gone_is_quarantined_and_can_be_gone_on_with(store: Store):
    run = store.create("training", HERE)
    run.log(0, {"loss": 1})
    run.add_artifact("a", "other", "kept.txt")
    (run.folder / "artifacts" / "unlisted.txt").write_text("its writer was killed")
    with pytest.raises(StoreError, match="is running"):
        store.resume(run.id)
    run.close()
    assert states(store) == {run.id: "partial"}
    assert store.folder(run.id).parent.name == QUARANTINE
    with store.resume(run.id) as again:
        again.log(1, {"loss": 2})
        again.add_artifact("b", "other", "unlisted.txt")
    assert states(store) == {run.id: "whole"}
    assert [line.step for line in read_metrics(store.folder(run.id) / "metrics.jsonl")] == [0, 1]
    with pytest.raises(StoreError, match="is whole"):
        store.resume(run.id)


def test_two_writers_of_one_run_lose_nothing_and_stop_when_it_ends(store: Store):
    one = store.create("training", HERE)
    two = store.join(one.id)
    for step in range(50):
        one.log(step, {"a": step})
        two.log(step, {"b": step})
    one.finish("success")
    with pytest.raises(StoreError, match="is sealed: its run has ended"):
        two.log(50, {"b": 1})
    two.close()
    assert {metric.name: metric.count for metric in examine(store.folder(one.id)).metrics} == {"a": 50, "b": 50}
    with pytest.raises(StoreError, match="written by nobody"):
        store.join(one.id)


def test_a_file_of_lines_cut_at_any_byte_keeps_every_whole_line(tmp_path: Path):
    whole = b'{"n":1}\n{"n":22}\n{"n":333}\n'
    for size in range(len(whole) + 1):
        file = tmp_path / f"{size}.jsonl"
        file.write_bytes(whole[:size])
        lines = Lines(file)
        lines.append(b"new\n")
        lines.close()
        assert file.read_bytes() == whole[: whole[:size].rfind(b"\n") + 1] + b"new\n"


def test_a_run_cut_at_any_byte_of_any_file_is_not_whole(store: Store):
    run = store.create("bench", HERE)
    run.log(0, {"loss": 1})
    run.add_artifact("found", "other", "found.txt")
    run.finish("success")
    for name in ("run.json", "metrics.jsonl", "summary.json", "artifacts/found.txt"):
        file = run.folder / name
        whole, mode = file.read_bytes(), file.stat().st_mode
        file.chmod(0o644)
        for size in range(len(whole)):
            file.write_bytes(whole[:size])
            found = examine(run.folder)
            # the line's end after the document's last brace says nothing
            assert found.state == ("whole" if name == "run.json" and size == len(whole) - 1 else "damaged")
        file.write_bytes(whole)
        file.chmod(mode)
    assert examine(run.folder).state == "whole"


def test_writers_killed_at_any_moment_and_bytes_changed_anywhere_are_borne(store: Store):
    """A sample; `python -m evaluation.tests.store_faults` does 1,000 of each."""
    assert kill_writers(store, 48, random.Random(1)) == []
    assert corrupt_bytes(store, 40, random.Random(2)) == []


def test_the_fault_test_notices_what_it_is_for(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("evaluation.store.verify._problem", lambda *_: None)
    stored(store, {"loss": [1.0]}, artifact="found.txt")
    assert corrupt_bytes(store, 20, random.Random(2)) != []


def test_a_damaged_run_is_told_with_its_reason_and_hides_no_other(store: Store):
    good, bad = stored(store, {"loss": [1.0]}), stored(store, {"loss": [2.0]})
    store.index().close()
    (store.root / bad.id / "summary.json").write_text("{}")
    (store.root / "no_run").mkdir()
    found = {id: (state, reason) for id, state, reason in store.reindex().rows("SELECT id, state, reason FROM runs")}
    assert found[good.id] == ("whole", None)
    assert found[bad.id][0] == "damaged"
    assert found[bad.id][1].startswith("summary.json has 2 bytes, and had")
    assert found["no_run"][0] == "damaged"


def test_a_run_put_right_leaves_the_quarantine(store: Store):
    run = stored(store, {"loss": [1.0]})
    file = store.root / run.id / "run.json"
    text = file.read_text()
    file.write_text(text.replace('"bench"', '"other"'))
    assert states(store) == {run.id: "damaged"}
    (store.root / QUARANTINE / run.id / "run.json").write_text(text)
    assert states(store) == {run.id: "whole"}
    assert store.folder(run.id) == store.root / run.id


def test_readers_at_once_make_the_same_index_and_move_each_run_once(store: Store):
    for _ in range(6):
        stored(store, {"loss": [1.0]})
        store.create("bench", HERE).close()
    readers = [forked(partial(_read, store)) for _ in range(6)]
    assert [os.read(heard, 1) for _, heard in readers] == [b"f"] * 6
    for process, heard in readers:
        os.waitpid(process, 0)
        os.close(heard)


def _read(store: Store, told: int) -> None:
    counts = store.index().rows("SELECT state, count(*) FROM runs GROUP BY state ORDER BY state")
    assert counts == [("partial", 6), ("whole", 6)]
    os.write(told, b"f")


def test_the_index_follows_new_changed_and_removed_runs(store: Store):
    one, two = stored(store, {"loss": [1.0]}), stored(store, {"loss": [2.0]})
    assert states(store) == {one.id: "whole", two.id: "whole"}
    store.tag(one.id, ("kept", "base"), ("absent",))
    store.remove(two.id)
    index = store.index()
    assert index.rows("SELECT id, document ->> 'tags' FROM runs") == [(one.id, '["kept","base"]')]
    assert index.rows("SELECT count(*) FROM metrics") == [(1,)]
    kept = index.dump()
    index.close()
    assert store.reindex().dump() == kept


def test_an_older_index_is_brought_up_and_a_newer_or_broken_one_refused(store: Store):
    stored(store, {"loss": [1.0]})
    file = store.root / INDEX
    with sqlite3.connect(file) as old:
        old.executescript(MIGRATIONS[0] + "; PRAGMA user_version = 1")
    index = store.index()
    assert index.rows("PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert index.rows("SELECT count(*) FROM sqlite_master WHERE name = 'metrics_by_name'") == [(1,)]
    index.close()
    with sqlite3.connect(file) as newer:
        newer.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="or older, got 99: reindex"):
        store.index()
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="reindex"):
        Index(file)
    assert len(store.reindex().rows("SELECT id FROM runs")) == 1


def test_bad_input_is_named(store: Store, tmp_path: Path):
    with pytest.raises(StoreError, match="id"):
        store.create("bench", HERE, id="../up")
    run = store.create("bench", HERE, id="taken")
    for values in ({}, {"": 1.0}, {"loss": "much"}, {"loss": [1.0, 2.0]}, {"x" * 201: 1.0}):
        with pytest.raises(StoreError, match="expected a step and numbers by name"):
            run.log(0, values)
    with pytest.raises(StoreError, match="expected a step"):
        run.log(0.5, {"loss": 1.0})
    for name in ("../up.txt", "a/b", ".hidden", ""):
        with pytest.raises(StoreError, match="artifact"):
            run.add_artifact("text", "other", name)
    run.add_artifact("text", "other", "once.txt")
    with pytest.raises(StoreError, match="already"):
        run.add_artifact("text", "other", "once.txt")
    with pytest.raises(StoreError, match="already there"):
        store.create("bench", HERE, id="taken")
    with pytest.raises(StoreError, match="being written"):
        store.remove("taken")
    with pytest.raises(StoreError, match="no run 'absent'"):
        store.resume("absent")
    with pytest.raises(StoreError, match="no run was stored"):
        Store(tmp_path / "nowhere").index()
    run.close()


def test_what_a_writer_left_before_its_run_began_is_swept_only_when_old(store: Store, monkeypatch: pytest.MonkeyPatch):
    stored(store, {"loss": [1.0]})
    (store.root / ".new-x-1").mkdir()
    assert len(states(store)) == 1
    assert store.sweep() == 0
    monkeypatch.setattr("evaluation.store.store._STALE_STAGING_SECONDS", -1.0)
    assert store.sweep() == 1


def test_a_copied_store_is_the_same_store(store: Store, tmp_path: Path):
    stored(store, {"loss": [1.0, 2.0]})
    dump = store.index().dump()
    shutil.copytree(store.root, tmp_path / "copy")
    assert Store(tmp_path / "copy").reindex().dump() == dump
    assert list(islice(dump["runs"], 1))
