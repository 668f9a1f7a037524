"""Refusals: invalid snapshots, forged attributes and refs, links and special files.

The file is long because its tables hold a case for each rule.
"""

import json
import math
import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import (
    Commit,
    Corrupt,
    DirectoryStore,
    LogRows,
    Ref,
    Snapshot,
    UnsupportedSchema,
    Window,
)
from memory_store.format.json import canonical, sealed, sha256
from memory_store.format.zip import header_size
from tests.support.stores import (
    ROOT,
    Stream,
    assert_helpful,
    files,
    members,
    new_store,
    repacked,
    where,
)


def ones(*shape: int, dtype: Any = np.uint16) -> np.ndarray:
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("snapshot", "message"),
    [
        (Snapshot(-1), "position = -1"),
        (Snapshot(2.0), "position = 2.0"),  # type: ignore[arg-type]
        (Snapshot(10**12), "position = 10"),
        (Snapshot(0, {"w": Window(ones(2, 3), 2, 3, 3)}), "axis 2"),
        (Snapshot(0, {"w": Window(ones(2, 3), -1, 3, 3)}), "axis -1"),
        (Snapshot(0, {"w": Window(ones(2, 3), 1, 2, 3)}), "3 slots, but end is 2"),
        (Snapshot(0, {"w": Window(ones(2, 3), 1, 9, 2)}), "capacity 2"),
        (Snapshot(0, {"w": Window([[1]], 1, 9, 2)}), "list"),  # type: ignore[arg-type]
        (Snapshot(0, arrays={"../w": ones(1)}), r"'\.\./w'"),
        (Snapshot(0, arrays={"": ones(1)}), "array name ''"),
        (Snapshot(0, arrays={"zarr.json": ones(1)}), "zarr.json"),
        (Snapshot(0, arrays={"tokens": ones(1)}), "'tokens' is taken"),
        (Snapshot(0, {"w": Window(ones(1), 0, 1, 1)}, {"W": ones(1)}), "'W' is taken"),
        (Snapshot(0, arrays={"a": np.array([object()])}), "dtype object"),
        (Snapshot(0, arrays={"a": np.array(["x"])}), "dtype <U1"),
        (Snapshot(0, arrays={"a": np.zeros(2, "c8")}), "dtype complex64"),
        (Snapshot(0, arrays={"a": [1]}), "list"),  # type: ignore[dict-item]
        (Snapshot(1), "0 tokens lead from the parent's position 0 to 0, not to position 1"),
        (Snapshot(1, tokens=np.arange(2)), "2 tokens lead"),
        (Snapshot(1, tokens=np.array([[1]])), "one-dimensional"),
        (Snapshot(1, tokens=np.array([1.0])), "integers"),
        (Snapshot(1, tokens=np.array([2**31])), "int32"),
        (Snapshot(0, logs={"k": LogRows(0, ones(1))}), r"holds the rows \[0, 1\) at position 0"),
        (Snapshot(0, logs={"k": LogRows(-1, ones(1))}), "start = -1"),
        (Snapshot(0, logs={"k": LogRows(np.int64(0), ones(1))}), r"start = np.int64\(0\)"),  # type: ignore[arg-type]
        (Snapshot(0, logs={"k": LogRows(0, ones(0, 3))}), r"shape \(0, 3\); allowed: at least one"),
        (Snapshot(0, logs={"k": LogRows(0, ones(3, 0))}), r"shape \(3, 0\)"),
        (Snapshot(0, logs={"k": LogRows(0, ones())}), r"shape \(\)"),
        (Snapshot(0, logs={"k": LogRows(0, [1])}), "list"),  # type: ignore[arg-type]
        (Snapshot(0, logs={"k": LogRows(0, np.zeros(1, "c8"))}), "dtype complex64"),
        (Snapshot(0, logs={"k": ones(1)}), "ndarray; allowed: LogRows"),  # type: ignore[dict-item]
        (Snapshot(0, logs={"tokens": LogRows(0, ones(1))}), "'tokens' is taken"),
        (Snapshot(0, arrays={"k": ones(1)}, logs={"K": LogRows(0, ones(1))}), "'K' is taken"),
        (Snapshot(0, logs={"a/b": LogRows(0, ones(1))}), "array name 'a/b'"),
        (Snapshot(0, attributes={"x": math.nan}), "nan"),
        (Snapshot(0, attributes={"x": [{"y": math.inf}]}), r"attributes\['x'\]\[0\]\['y'\] is inf"),
        (Snapshot(0, attributes={"x": ones(1)}), "ndarray"),  # type: ignore[dict-item]
        (Snapshot(0, attributes={"x": np.float64(1)}), "float64"),
        (Snapshot(0, attributes={"x": b"1"}), "bytes"),
        (Snapshot(0, attributes={"x": {1: 2}}), "key 1"),  # type: ignore[dict-item]
        (Snapshot(0, attributes={"x": "y" * 9_000_000}), "9000008 bytes"),
    ],
)  # fmt: skip
def test_invalid_snapshots(tmp_path: Path, snapshot: Snapshot, message: str) -> None:
    store = new_store(tmp_path / "s.zarr")
    parent = store.commit(Snapshot(0), parent=None)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=message):
        store.commit(snapshot, parent=parent)
    assert files(tmp_path) == before


GONE = object()  # a value that removes the key


def forge(store: DirectoryStore, ref: Ref, changes: dict[str, Any]) -> Ref:
    """A commit with forged attributes and matching checksums and ids."""
    path = store.path / "commits" / ref.commit.name
    contents = members(path.read_bytes())
    document = json.loads(contents["zarr.json"])
    for key, value in changes.items():
        place: Any = document["attributes"]
        *folders, last = key.split("/")
        for folder in folders:
            place = place[int(folder) if isinstance(place, list) else folder]
        if value is GONE:
            del place[last]
        else:
            place[last] = value
    path.write_bytes(repacked({**contents, "zarr.json": canonical(document)}))
    commit = replace(ref.commit, id=sha256(canonical(document["attributes"])))
    path = store.path / "refs" / ref.branch / f"{ref.seq:012d}.json"
    entry = {**json.loads(path.read_text()), "id": commit.id}
    del entry["crc32c"]
    path.write_bytes(sealed(entry))
    head = store.head(ref.branch)
    assert head is not None and head.commit == commit
    return head


ELSEWHERE = {"commit": "../../../../etc/passwd", "id": "0" * 64, "position": 0}
FOLDER = {"commit": "000000000000-" + "0" * 32, "id": "0" * 64, "position": 0}  # schema 1's
UNKNOWN = {**FOLDER, "commit": f"{FOLDER['commit']}.zip"}
EIGHT = "000000000008-" + "0" * 32
SLOTS = {"first": 0, "end": 8, "crc32c": [1]}
# Claimed offsets of a window's chunks in another commit's file.
STARTS: list[Any] = [
    *(-1, -(2**63), 0, 1, 2**32, 2**53 - 1, 2**53 + 1, 2**63, 2**64, 10**400),
    *(True, False, 3.0, 1e308, None, "", "0", [], [0], {}, GONE),
]


@pytest.mark.parametrize(
    "changes",
    [
        {"arrays/segment/shape": [3, 1, 2**46, 4]},
        {"arrays/segment/shape": [2**70]},
        {"arrays/segment/shape": [-1, 1, 3, 4]},
        {"arrays/segment/shape": [0, 2**47, 2**47]},
        {"arrays/segment/shape": [3, 1, 3, 10**9], "arrays/segment/crc32c": list(range(3))},
        {"arrays/segment/shape": [1] * 40},
        {"arrays/segment/shape": "3"},
        {"arrays/segment/shape": [3.0, 1, 3, 4]},
        {"arrays/segment/dtype": "object"},
        {"arrays/segment/dtype": "|O"},
        {"arrays/segment/dtype": "uint8"},
        {"arrays/segment/crc32c": []},
        {"arrays/segment/sha256": 5},
        {"arrays/..": {"shape": [1], "dtype": "uint8", "crc32c": [0], "sha256": "0" * 64}},
        {"arrays/a\\b": {"shape": [1], "dtype": "uint8", "crc32c": [0], "sha256": "0" * 64}},
        {"arrays/tokens/shape": [99]},
        {"arrays": {}},
        {"slots/memory/shape": [3, 1, 2**44, 4]},
        {"slots/memory/shape": [3, 1, 2**30, 4], "slots/memory/end": 2**30},
        {"slots/memory/shape": [3, 1, 10**9, 4], "slots/memory/end": 10**9,
         "slots/memory/capacity": 10**9},
        {"slots/memory/shape": [3, 1, 10**9, 4], "slots/memory/end": 10**9 + 12,
         "slots/memory/capacity": 10**9, "arrays/memory/shape": [3, 1, 10**9, 4],
         "arrays/memory/crc32c": [1, 2, 3]},
        {"slots/memory/shape": [3, 1, 10**9, 4], "slots/memory/end": 10**9 + 12,
         "slots/memory/capacity": 10**9,
         "window": [
             {**FOLDER, "slots": {"memory": {"first": 0, "end": 10**9 + 8, "crc32c": [1, 2, 3]}}}
         ]},
        {"slots/memory/shape": [3, 1, 10**9, 4], "slots/memory/end": 10**9 + 12,
         "slots/memory/capacity": 10**9,
         "window": [
             {**UNKNOWN,
              "slots": {"memory": {"first": 0, "end": 10**9 + 8, "crc32c": [1, 2, 3], "start": 0}}}
         ]},
        {"slots/memory/axis": 9},
        {"slots/memory/end": -4},
        {"slots/memory/end": 10**6},
        {"slots/memory/capacity": 1},
        {"slots/memory/dtype": "float32"},
        {"slots/ghost": {"shape": [1], "dtype": "uint8", "axis": 0, "end": 1, "capacity": 1}},
        {"window": [{**ELSEWHERE, "slots": {}}]},
        {"window": [{**FOLDER, "slots": {"memory": {"first": 0, "end": 10**12, "crc32c": [1]}}}]},
        {"window": [
            {**UNKNOWN, "slots": {"memory": {"first": 0, "end": 10**12, "crc32c": [1], "start": 0}}}
        ]},
        {"window": [{**FOLDER, "slots": {"x": {"first": 0, "end": 1, "crc32c": [1]}}}]},
        {"window": [
            {**UNKNOWN, "slots": {"x": {"first": 0, "end": 1, "crc32c": [1], "start": 0}}}
        ]},
        {"window": [{**FOLDER, "slots": {"memory": {"first": 5, "end": 1, "crc32c": [1]}}}]},
        {"window": [
            {**UNKNOWN, "slots": {"memory": {"first": 5, "end": 1, "crc32c": [1], "start": 0}}}
        ]},
        {"window": [{**FOLDER, "slots": {"memory": {**SLOTS, "start": 0}}}]},
        {"window": [{**FOLDER, "slots": {"memory": {**SLOTS, "start": None}}}]},
        {"window": [{**UNKNOWN, "slots": {"memory": {**SLOTS, "start": 0}}}]},
        {"window": [{**UNKNOWN, "slots": {"memory": SLOTS}}]},
        *({"window/0/slots/memory/start": start} for start in STARTS),
        {"window/0/commit": EIGHT},
        {"window/0/commit": EIGHT, "window/0/slots/memory/start": GONE},
        {"window/0/commit": f"{EIGHT}.zip"},
        {"window/0/commit": f"{EIGHT}.ZIP"},
        {"window/0/commit": f"{EIGHT}.zip.zip"},
        {"window/0/commit": f"{EIGHT}.zip\n"},
        {"window/0/commit": f"{EIGHT}.zip/../x.zip"},
        {"window": []},
        {"window": [{**UNKNOWN, "slots": {}}] * 999},
        {"window": None},
        {"parent": ELSEWHERE},
        {"parent": {**UNKNOWN, "position": 5}},
        {"parent": {"commit": "000000000099-" + "0" * 32, "id": "0" * 64, "position": 99}},
        {"parent": None},
        {"jump": None},
        {"jump/depth": 10**6},
        {"depth": -1},
        {"depth": True},
        {"position": 10**13},
        {"position": 9},
        {"session": "../x"},
        {"session": "0" * 32},
        {"state": []},
        {"fingerprints": {"model": 1}},
        {"created": "now"},
    ],
    ids=lambda changes: " ".join(changes),
)  # fmt: skip
def test_hostile_attributes(tmp_path: Path, changes: dict[str, Any]) -> None:
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    stream.read(8, memory=8)
    parent = store.commit(stream.snapshot(), parent=None)
    stream.read(4, memory=4)
    head = store.commit(stream.snapshot(), parent=parent)
    lie = forge(store, head, changes)
    store = DirectoryStore.open(store.path)
    tracemalloc.start()  # also traces numpy's memory, touched or not
    try:
        with pytest.raises(Corrupt, match=r"\.zarr|window"):
            store.load(lie)
        with pytest.raises(Corrupt):
            store.verify()
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


ARRAY = {"shape": [4, 2], "dtype": "int8", "crc32c": [1], "sha256": "0" * 64}


@pytest.mark.parametrize(
    "changes",
    [
        {"logs": {}},
        {"logs": None},
        {"logs": GONE},
        {"logs": []},
        {"schema": 2},
        {"logs/keys": 3},
        {"logs/keys/start": GONE},
        *({"logs/keys/start": start} for start in (-1, 5, 8, 10**12, 1.0, True, "0", None, [0])),
        {"logs/ghost": {"start": 0}},
        {"logs/tokens": {"start": 0}},
        {"logs/memory": {"start": 0}},
        {"logs/..": {"start": 0}},
        {"arrays/keys": GONE},
        {"arrays/keys/shape": []},
        {"arrays/keys/shape": [0, 2], "arrays/keys/crc32c": []},
        {"arrays/keys/shape": [4, 0], "arrays/keys/crc32c": []},
        {"arrays/keys/shape": [9, 2]},
        {"arrays/keys/shape": [4, 2**45]},
        {"arrays/keys/shape": [4, 2**23]},  # in chunks of 2 MiB, it would have four checksums
        {"arrays/keys/shape": [4, 2**23], "arrays/keys/crc32c": [1] * 4},
        {"arrays/keys/dtype": "object"},
        {"arrays/x": ARRAY, "logs/x": {"start": 5}},
        {"arrays/zarr.json": ARRAY, "logs/zarr.json": {"start": 0}},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_hostile_logs(tmp_path: Path, changes: dict[str, Any]) -> None:
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    stream.read(8, memory=8)
    rows = {"keys": LogRows(2, ones(4, 2, dtype=np.int8))}
    head = store.commit(replace(stream.snapshot(), logs=rows), parent=None)
    lie = forge(store, head, changes)
    store = DirectoryStore.open(store.path)
    tracemalloc.start()  # also traces numpy's memory, touched or not
    try:
        for read in (
            lambda: list(store.log(lie, "keys", 0, 8)),
            lambda: store.log_spans(lie, "keys"),
            lambda: store.load(lie),
            lambda: store.verify(),
        ):
            with pytest.raises(Corrupt, match=r"\.zarr") as caught:
                read()
            assert_helpful(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_rows_at_another_position(tmp_path: Path) -> None:
    """With a forged id, a log reads where its manifest says: the id is what authenticates it."""
    store = new_store(tmp_path / "s.zarr")
    rows = {"keys": LogRows(2, ones(4, 2, dtype=np.int8))}
    head = store.commit(Snapshot(8, tokens=np.arange(8), logs=rows), parent=None)
    path = store.path / "commits" / head.commit.name
    honest = path.read_bytes()
    lie = forge(store, head, {"logs/keys/start": 3})
    assert DirectoryStore.open(store.path).log_spans(lie, "keys") == [(3, 7)]
    with pytest.raises(Corrupt, match="not the commit that was published") as caught:
        DirectoryStore.open(store.path).log_spans(head, "keys")
    assert_helpful(caught.value)
    path.write_bytes(honest)
    assert DirectoryStore.open(store.path).log_spans(head, "keys") == [(2, 6)]


def test_verify_goes_beyond_crc32c(tmp_path: Path) -> None:
    """A crc32c can be forged; a sha256 and the chain of ids cannot."""
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    stream.read(8, memory=8)
    parent = store.commit(stream.snapshot(), parent=None)
    stream.read(4, memory=4)
    head = store.commit(stream.snapshot(), parent=parent)
    for changes, message in (
        ({"arrays/segment/sha256": "0" * 64}, "segment.*sha256"),
        ({"depth": 7}, "another depth"),
        ({"window/0/slots/memory/end": 9}, "does not hold"),
    ):
        file = store.path / "commits" / head.commit.name
        entry = store.path / "refs" / "main" / "000000000001.json"
        honest = file.read_bytes(), entry.read_bytes()
        lie = forge(store, head, changes)
        for refs in ((), (lie,)):
            with pytest.raises(Corrupt, match=message) as caught:
                store.verify(*refs)
            assert_helpful(caught.value)
        file.write_bytes(honest[0]), entry.write_bytes(honest[1])
    assert store.verify(head) == replace(store.verify(), refs=0)


def test_slots_of_another_array_are_detected(tmp_path: Path) -> None:
    """Intact bytes of the right commit and of the right size, but of another array."""
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    stream.read(3, memory=3, compressed=3)
    parent = store.commit(stream.snapshot(), parent=None)
    stream.read(4, memory=4)
    head = store.commit(stream.snapshot(), parent=parent)
    data = (store.path / "commits" / parent.commit.name).read_bytes()
    path = store.path / "commits" / head.commit.name
    entry = store.path / "refs" / "main" / "000000000001.json"
    for other in ("compressed", "segment"):
        chunk = f"{other}/c.0.0.0.0"
        assert len(members(data)[chunk]) == len(members(data)["memory/c.0.0.0.0"])
        crc = int.from_bytes(members(data)[chunk][-4:], "little")
        for distance in (0, -1, 1, len(members(data)[chunk])):
            # Corrected for the length of the other member's header, so that it hits the content.
            start = where(data, chunk) - header_size("memory/c.0.0.0.0") + distance
            honest = path.read_bytes(), entry.read_bytes()
            lie = forge(store, head, {"window/0/slots/memory/start": start})
            what = "damaged" if distance else "an intact chunk, but not the one"
            with pytest.raises(Corrupt, match=f"{parent.commit.name}: memory/.*: {what}") as caught:
                DirectoryStore.open(store.path).load(lie)
            assert_helpful(caught.value)
            with pytest.raises(Corrupt, match="does not hold") as caught:
                DirectoryStore.open(store.path).verify()
            assert_helpful(caught.value)
            if not distance:  # with a forged crc32c too, `load` returns what the ids authenticate
                lie = forge(store, lie, {"window/0/slots/memory/crc32c": [crc]})
                DirectoryStore.open(store.path).load(lie)
                with pytest.raises(Corrupt, match="does not hold") as caught:
                    DirectoryStore.open(store.path).verify()
                assert_helpful(caught.value)
            path.write_bytes(honest[0]), entry.write_bytes(honest[1])
    store.verify()


def test_hostile_refs(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.zarr")
    store.commit(Snapshot(0), parent=None)
    path = tmp_path / "s.zarr" / "refs" / "main" / "000000000000.json"
    honest = json.loads(path.read_text())
    honest.pop("crc32c")
    for change in (
        {"commit": "../../../etc"},
        {"commit": "000000000007-" + "0" * 32},
        {"commit": "000000000007-" + "0" * 32 + ".zip"},
        {"commit": honest["commit"] + "\n"},
        {"commit": honest["commit"] + ".zip"},
        {"commit": honest["commit"] + "/zarr.json"},
        {"commit": honest["commit"].replace(".zip", ".ZIP")},
        {"commit": honest["commit"].replace(".zip", "zip")},
        {"id": "x"},
        {"seq": 1},
        {"branch": "side"},
        {"position": -1},
        {"created": None},
    ):
        path.write_bytes(sealed({**honest, **change}))
        with pytest.raises(Corrupt, match=r"refs/main/000000000000\.json"):
            store.head("main")
    path.write_bytes(sealed({**honest, "commit": honest["commit"].removesuffix(".zip")}))
    for action in (lambda: store.load(store.refs("main")[0]), lambda: store.verify()):
        with pytest.raises(Corrupt, match=r"[0-9a-f]{32}/zarr\.json: missing") as caught:
            action()
        assert_helpful(caught.value)
    for junk in (
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"null",
        b"[" * 100_000,
        b'{"schema":1e999}',
        b" " * 2**25,
    ):
        path.write_bytes(junk)
        with pytest.raises((Corrupt, UnsupportedSchema), match=r"refs/main/000000000000\.json"):
            store.head("main")
    for name in ("../../x", "../../x.zip", f"{EIGHT}.zip/", f"{EIGHT}.zip/x", f"{EIGHT}.zip\n"):
        with pytest.raises(ValueError, match="commit's name"):
            store.load(Commit(name, "0" * 64, 0))


@pytest.mark.parametrize("what", ["link", "pipe", "folder"])
@pytest.mark.parametrize("old", [False, True], ids=["file", "folder"])
def test_special_files_are_refused(tmp_path: Path, what: str, old: bool) -> None:
    """Also in commits of schema 1, which are folders."""
    store = new_store(tmp_path / "s.zarr")
    store.commit(Snapshot(3, tokens=np.arange(3)), parent=None)
    if old:
        shutil.rmtree(store.path)
        shutil.copytree(ROOT / "tests" / "data" / "schema-1.zarr", store.path)
        store = DirectoryStore.open(store.path)
    ref, tried = store.refs("main")[-1], 0
    for path in sorted((tmp_path / "s.zarr").rglob("*")):
        if path.is_dir() or path.name == ".lock":
            continue
        aside = tmp_path / "aside"
        path.rename(aside)
        if what == "link":
            path.symlink_to(aside)
        elif what == "pipe":
            os.mkfifo(path)  # opening it without O_NONBLOCK waits for a writer
        else:
            path.mkdir()
        with pytest.raises(Corrupt, match=path.name) as caught:
            DirectoryStore.open(tmp_path / "s.zarr").verify(
                ref if not old and "commits" in str(path) else None
            )
        assert_helpful(caught.value)
        path.rmdir() if what == "folder" else path.unlink()
        aside.rename(path)
        tried += 1
    assert tried == (62 if old else 3)
    store.verify()


def test_linked_folders_are_not_written_through(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.zarr")
    (tmp_path / "outside").mkdir()
    (tmp_path / "s.zarr" / "refs" / "main").symlink_to(tmp_path / "outside")
    with pytest.raises(Corrupt, match="a link"):
        store.commit(Snapshot(0), parent=None)
    with pytest.raises(Corrupt, match="a link"):
        store.writer().__enter__()
    assert list((tmp_path / "outside").iterdir()) == []
    assert list((tmp_path / "s.zarr" / "commits").iterdir()) == []
    (tmp_path / "s.zarr" / "refs").rename(tmp_path / "refs")
    (tmp_path / "s.zarr" / "refs").symlink_to(tmp_path / "refs")
    with pytest.raises(Corrupt, match="refs"):
        DirectoryStore.open(tmp_path / "s.zarr")


def test_unknown_schema_of_a_commit(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.zarr")
    ref = forge(store, store.commit(Snapshot(0), parent=None), {"schema": 7})
    with pytest.raises(UnsupportedSchema, match=r"schema 7 is not supported; .* reads 1, 2, 3\."):
        DirectoryStore.open(tmp_path / "s.zarr").load(ref)
    others = [(schema, UnsupportedSchema) for schema in (0, True, 2.0, "2", None)]
    for schema, kind in ((1, Corrupt), *others):  # schema 2 is a file, schema 1 a folder
        ref = forge(store, ref, {"schema": schema})
        with pytest.raises(kind, match="schema") as caught:
            DirectoryStore.open(tmp_path / "s.zarr").load(ref)
        assert_helpful(caught.value)
