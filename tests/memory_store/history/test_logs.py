"""Reading logs: how much memory it takes, and what is remembered between walks."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from memory_store import DirectoryStore, InMemoryStore, LogRows, Ref, Retention, Snapshot
from memory_store.history import logs
from tests.memory_store.conformance.logs import indexed, numbered, rows, spans
from tests.memory_store.conformance.place import manifest
from tests.support.stores import new_store, rows_of


def check_large(store: DirectoryStore, ref: Ref, count: int) -> None:
    """Rows that begin with their position are read a chunk at a time."""
    tracemalloc.start()  # also traces numpy's memory
    try:
        end = 0
        for at, piece in store.log(ref, "keys", 0, count):
            assert at == end
            numbers = np.ascontiguousarray(piece[:, :4]).view("<i4")[:, 0]
            assert np.array_equal(numbers, np.arange(at, at + len(piece)))
            end += len(piece)
        assert end == count and store.log_spans(ref, "keys") == [(0, count)]
        assert tracemalloc.get_traced_memory()[1] < 3 * 2**21
    finally:
        tracemalloc.stop()


def test_reading_takes_little_memory(tmp_path: Path) -> None:
    """A log of 48 MB in one commit, and in what is left of it."""
    count, width = 120_000, 400
    store = new_store(tmp_path / "s.zarr")
    data = np.zeros((count, width), np.int8)
    data[:, :4] = np.arange(count, dtype="<i4").view(np.int8).reshape(count, 4)
    whole = Snapshot(count, tokens=np.zeros(count, np.int32), logs={"keys": LogRows(0, data)})
    large = store.commit(whole, parent=store.commit(Snapshot(0), parent=None))
    ref = store.commit(Snapshot(count), parent=large)
    del data, whole
    check_large(DirectoryStore.open(store.path), ref, count)
    assert store.gc(Retention(last=1)).deleted == 1
    assert [path.name for path in (store.path / "log").iterdir()] == [large.commit.name]
    check_large(DirectoryStore.open(store.path), ref, count)
    store.verify()


@pytest.mark.parametrize("known", [1, 3, 40])
def test_any_number_of_commits_is_remembered(known: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_KNOWN", known)
    store = InMemoryStore.create()
    refs = indexed(store, 20)
    for _ in range(2):
        for ref in (refs[-1], refs[4], refs[11]):
            assert rows_of(store, ref, "keys") == rows(numbered(0, ref.position))
            assert store.log_spans(ref, "keys") == [(0, ref.position)]
    assert len(store._logs._known) == min(known, 20)


def test_a_second_walk_reads_no_manifests(monkeypatch: pytest.MonkeyPatch) -> None:
    files: dict[str, bytes] = {}
    refs = indexed(InMemoryStore.create(files), 100)
    store = InMemoryStore.open(files)
    first = rows_of(store, refs[-1], "keys")
    monkeypatch.setattr(store._commits, "read", None)
    monkeypatch.setattr(store._commits, "manifest", None)
    assert rows_of(store, refs[-1], "keys") == first == rows(numbered(0, 1000))
    assert rows_of(store, refs[50], "keys", 3, 17) == rows(numbered(3, 17))


def test_another_process_collects(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a store remembers of deleted snapshots is read again, once."""
    files: dict[str, bytes] = {}
    refs = indexed(InMemoryStore.create(files), 30)
    store = InMemoryStore.open(files)
    found = rows_of(store, refs[-1], "keys")
    for log in (True, False):
        InMemoryStore.open(files).gc(Retention(last=1, log=log))
        left = {
            at
            for ref in refs
            if manifest(store, ref).retained != "record"
            for at in range(ref.position - 10, ref.position)
        }
        assert (len(left) == 300) == log
        expected = {at: row for at, row in found.items() if at in left}
        assert store.log_spans(refs[-1], "keys") == spans(left)
        assert rows_of(store, refs[-1], "keys") == expected
        with monkeypatch.context() as patch:
            patch.setattr(store._commits, "read", None)
            assert rows_of(store, refs[-1], "keys") == expected


def test_commits_without_rows_are_what_they_were() -> None:
    """Their attributes, and so their ids, have no trace of logs."""
    store = InMemoryStore.create()
    first = store.commit(
        Snapshot(2, tokens=np.arange(2), logs={"keys": numbered(0, 2)}), parent=None
    )
    plain = store.commit(Snapshot(4, tokens=np.arange(2)), parent=first)
    made = manifest(store, plain).attributes
    assert made["schema"] == 2 and "logs" not in made
    assert sorted(made) == [
        *("arrays", "created", "depth", "fingerprints", "jump", "libraries", "parent"),
        *("position", "schema", "session", "slots", "state", "window"),
    ]
    made = manifest(store, first).attributes
    assert made["schema"] == 3 and made["logs"] == {"keys": {"start": 0}}
