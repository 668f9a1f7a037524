"""Sessions of other versions: older ones are read and continued, later ones are refused."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import (
    DirectoryStore,
    LogRows,
    Ref,
    Retention,
    Snapshot,
    UnsupportedSchema,
    places,
)
from memory_store.format.json import sealed
from memory_store.format.manifest_reader import SUPPORTED
from tests.support.stores import (
    ROOT,
    Stream,
    assert_equal,
    assert_helpful,
    digest,
    files,
    new_store,
    rows_of,
)

DATA = ROOT / "tests" / "data"
OLDER = sorted(path.name for path in DATA.glob("*.zarr"))


def make(path: Path) -> DirectoryStore:
    """A session with every feature of the format: windows of several commits, a fork, a rewind.

    Some of its commits bring rows of logs, late, with gaps and over those of older commits.
    """
    store = new_store(path, attributes={"title": "Märchen"})
    stream, head = Stream(memory=6, compressed=2), None
    logs: list[dict[str, LogRows]] = [
        {},
        {"keys": LogRows(1, np.arange(6, dtype=np.int8).reshape(3, 2))},
        {
            "keys": LogRows(3, np.arange(50, 60, dtype=np.int8).reshape(5, 2)),
            "marks": LogRows(0, np.arange(8) == 3),
        },
        {},
    ]
    for rows in logs:
        stream.read(3, memory=3, compressed=1)
        head = store.commit(replace(stream.snapshot(), logs=rows), parent=head)
    fork = store.publish(store.refs("main")[1], branch="side")
    stream.resume(store.load(fork))
    stream.read(5, memory=2)
    rows = {"keys": LogRows(5, np.array([[0.5, -0.0, np.nan]] * 3, np.float16))}
    store.commit(replace(stream.snapshot(), logs=rows), branch="side", parent=fork)
    store.publish(store.refs("main")[0], branch="main")
    return store


def contents(store: DirectoryStore) -> dict[str, Any]:
    """A digest of everything that a reader can load."""

    def describe(ref: Ref) -> dict[str, Any]:
        snapshot = store.load(ref)
        return {
            "commit": ref.commit.name,
            "id": ref.commit.id,
            "snapshot": digest(snapshot),
            "attributes": snapshot.attributes,
            "tokens": store.tokens(ref, 0, ref.position).tolist(),
            **({"logs": rows} if (rows := logged(store, ref)) else {}),
        }

    return {
        "session": store.session,
        "attributes": store.attributes,
        "fingerprints": store.fingerprints,
        "branches": {
            branch: [describe(ref) for ref in store.refs(branch)] for branch in store.branches()
        },
    }


def logged(store: DirectoryStore, ref: Ref) -> dict[str, Any]:
    """Every row of the logs that `make` writes, in hex, by position."""
    found = {name: rows_of(store, ref, name) for name in ("keys", "marks")}
    return {
        name: {
            str(at): f"{dtype} {shape} {data.hex()}" for at, (dtype, shape, data) in rows.items()
        }
        for name, rows in found.items()
        if rows
    }


def test_every_schema_has_a_stored_session() -> None:
    assert [f"schema-{number}.zarr" for number in SUPPORTED] == OLDER
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 150_000


@pytest.mark.parametrize("name", OLDER)
def test_older_sessions_are_read(name: str) -> None:
    store = DirectoryStore.open(DATA / name)
    expected = json.loads((DATA / name).with_suffix(".json").read_text())
    assert contents(store) == expected
    assert store.verify().commits == 5


@pytest.mark.parametrize("name", OLDER)
def test_older_sessions_are_continued(name: str, tmp_path: Path) -> None:
    shutil.copytree(DATA / name, tmp_path / "s.zarr")
    store, stream = DirectoryStore.open(tmp_path / "s.zarr"), Stream(7)
    for branch in store.branches():
        head = store.head(branch)
        assert head
        stream.resume(store.load(head))
        stream.read(3, memory=3)
        snapshot = stream.snapshot()
        assert_equal(store.load(store.commit(snapshot, branch=branch, parent=head)), snapshot)
    store.verify()


@pytest.mark.parametrize("name", OLDER)
def test_older_sessions_are_collected(name: str, tmp_path: Path) -> None:
    """A deleted commit of schema 1, a folder, leaves a folder."""
    shutil.copytree(DATA / name, tmp_path / "s.zarr")
    store, stream = DirectoryStore.open(tmp_path / "s.zarr"), Stream(7)
    head = store.head("main")
    assert head
    stream.resume(store.load(head))
    before = store.tokens(store.refs("main")[3], 0, 12)
    rows = [logged(store, ref) for branch in ("main", "side") for ref in store.refs(branch)]
    assert any(rows) == ("3" in name)
    for _ in range(20):  # of this version; the last of them need no older commit
        stream.read(3, memory=6, compressed=2)
        head = store.commit(stream.snapshot(), parent=head)
    store.publish(head, branch="side")
    report = store.gc(Retention(last=1))
    assert report.deleted > 4 and store.verify().commits == 25
    store = DirectoryStore.open(tmp_path / "s.zarr")
    assert np.array_equal(store.tokens(store.refs("main")[3], 0, 12), before)
    older = [*store.refs("main")[:5], *store.refs("side")[:2]]
    assert [logged(store, ref) for ref in older] == rows
    assert store.tokens(head, 0, head.position).shape == (head.position,)
    left = [path.name for path in (store.path / "log").iterdir()]
    assert {path.endswith(".zip") for path in left} == ({True, False} if "1" in name else {True})
    copied = tmp_path / "t.zarr"
    places.copy(store.path, copied)
    assert files(copied) == {k: d for k, d in files(store.path).items() if ".lock" not in k}


def later(path: Path) -> Iterator[Path]:
    """Rewrites one document of a store at a time as a later version might have written it."""
    for name in ("session.json", "refs/main/000000000000.json"):
        honest = (path / name).read_bytes()
        document = {**json.loads(honest), "schema": 3, "new": [{"key": "value"}]}
        del document["crc32c"]
        (path / name).write_bytes(sealed(document))
        yield path / name
        (path / name).write_bytes(honest)


def test_later_sessions_are_refused_by_name(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.zarr")
    ref = store.commit(Snapshot(0), parent=None)
    for path in later(store.path):
        before = files(store.path)
        for action in (
            lambda: DirectoryStore.open(store.path).head("main"),
            lambda: DirectoryStore.open(store.path).verify(),
            lambda: DirectoryStore.open(store.path).refs("main"),
            lambda: DirectoryStore.open(store.path).commit(Snapshot(0), parent=ref),
        ):
            with pytest.raises(UnsupportedSchema, match=r"schema 3 .* reads 1, 2\.") as caught:
                action()
            assert str(path) in str(caught.value)
            assert_helpful(caught.value)
        assert files(store.path) == before
    store.verify()


if __name__ == "__main__":
    made = make(Path(sys.argv[1]))
    Path(sys.argv[1]).with_suffix(".json").write_text(json.dumps(contents(made), indent=1) + "\n")
