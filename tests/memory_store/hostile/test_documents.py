"""Hostile documents: all ids and checksums match, and the content is forged.

A forged document is refused, unless it could be that of a valid store. Either way little memory is
allocated, nothing outside the session is touched, and nothing is executed.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import Corrupt, DirectoryStore, Snapshot, StoreError
from memory_store.format.json import sealed
from tests.memory_store.hostile.lies import (
    ENOUGH,
    LIES,
    little_memory,
    member,
    newest,
    places,
    publish,
    put,
    with_lie,
)
from tests.support.stores import assert_equal, assert_helpful, new_store


@pytest.mark.parametrize("kind", ["store", "old", "indexed"])
def test_forged_commit_attributes(kind: str, request: pytest.FixtureRequest) -> None:
    """Every value of the attributes is forged: refused, or the arrays and rows are unchanged."""
    store = request.getfixturevalue(kind)
    ref = newest(store)
    honest, attributes = store.load(ref), store._commits.read(ref.commit).attributes
    refused = harmless = 0
    for i, place in enumerate(places(attributes)):
        for lie in LIES[i % 12 :: 12]:
            lying = with_lie(attributes, place, lie)
            if lying is None:
                continue
            commit = publish(store, ref, lying)
            try:
                with little_memory():
                    found = DirectoryStore.open(store.path).load(commit)
                    rows = [
                        *DirectoryStore.open(store.path).log(commit, "keys", 0, commit.position)
                    ]
            except StoreError as error:
                assert_helpful(error)
                refused += 1
                continue
            same: dict[str, Any] = {"position": honest.position, "attributes": {}, "windows": {}}
            assert_equal(replace(found, **same), replace(honest, **same))
            for name, window in found.windows.items():
                whole = honest.windows[name].data.tobytes()
                assert all(row.tobytes() in whole for row in window.data)
            assert all(piece.tobytes() in bytes(range(21)) for _, piece in rows)
            harmless += 1
    assert refused > 200 and harmless > 15


@pytest.mark.parametrize("name", ["session.json", "refs/main/000000000002.json"])
def test_forged_sealed_documents(store: DirectoryStore, name: str) -> None:
    path, honest = store.path / name, newest(store)
    document = json.loads(path.read_text())
    del document["crc32c"]
    tried = 0
    with little_memory():
        for i, place in enumerate(places(document)):
            for lie in LIES[i % 3 :: 3]:
                lying = with_lie(document, place, lie)
                if lying is None:
                    continue
                path.write_bytes(sealed(lying))
                tried += 1
                try:
                    found = DirectoryStore.open(store.path)
                    assert newest(found).commit == honest.commit
                    found.load(newest(found))
                except StoreError as error:
                    assert_helpful(error)
                else:
                    # Both schemas have the same headers and refs.
                    schema = place == ("schema",) and type(lie) is int and lie == 1
                    free = place[0] in ("created", "attributes", "fingerprints")
                    assert schema or free, (place, lie)
    assert tried > 50


DOCUMENTS = {
    "nested lists": b'{"schema":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested mappings": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "a huge number": b'{"schema":' + b"9" * 5000 + b"}",
    "a huge exponent": b'{"schema":1e999999}',
    "no number": b'{"schema":NaN}',
    "minus infinity": b'{"schema":1,"created":-Infinity}',
    "not UTF-8": b'{"schema":"\xff"}',
    "UTF-16": '{"schema":1}'.encode("utf-16"),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x93.",
    "nothing": b"",
    "too much": b" " * 2**25,
}


@pytest.mark.parametrize("junk", DOCUMENTS.values(), ids=DOCUMENTS)
def test_junk_in_every_document(either: DirectoryStore, junk: bytes) -> None:
    store, ref = either, newest(either)
    commit = store.path / "commits" / ref.commit.name
    for path, name in (
        (store.path / "session.json", None),
        (store.path / "refs" / "main" / f"{ref.seq:012d}.json", None),
        (commit, "zarr.json"),
        (commit, "tokens/zarr.json"),
    ):
        honest = member(store, ref, name) if name else path.read_bytes()
        put(store, ref, name, junk) if name else path.write_bytes(junk)
        part = "/tokens/zarr.json" if path.is_dir() else ": tokens/zarr.json"
        named = path.name + (part if name == "tokens/zarr.json" else "")
        with little_memory(), pytest.raises(StoreError, match=named) as caught:
            DirectoryStore.open(store.path).verify()
        assert_helpful(caught.value)
        put(store, ref, name, honest) if name else path.write_bytes(honest)
    store.verify()


@pytest.mark.parametrize("name", ["session.json", "ref", "zarr.json", "tokens/zarr.json"])
def test_duplicate_keys(either: DirectoryStore, name: str) -> None:
    """Readers disagree on which of the two is valid, so each could be shown another state."""
    store, ref = either, newest(either)
    path = store.path / (f"refs/main/{ref.seq:012d}.json" if name == "ref" else name)

    def doubled(data: bytes) -> bytes:
        return b'{"%s":{"x":1},' % next(iter(json.loads(data))).encode() + data[1:]

    if name.endswith("zarr.json"):
        put(store, ref, name, doubled(member(store, ref, name)))
    else:
        path.write_bytes(doubled(path.read_bytes()))
    # In a commit's file, the document of an array is compared byte by byte.
    compared = name == "tokens/zarr.json" and store.path.parent.name != "old"
    with pytest.raises(Corrupt, match=f"{name}: damaged" if compared else "twice") as caught:
        DirectoryStore.open(store.path).verify()
    assert_helpful(caught.value)


def test_shapes_larger_than_the_files(either: DirectoryStore) -> None:
    """Memory is allocated only if the files are as large as the shape claims."""
    store, ref = either, newest(either)
    attributes = store._commits.read(ref.commit).attributes
    for name, shape, chunks in (
        ("usage", [3, 1, 2**23], 3),  # would fit in memory; the next one would not
        ("usage", [3, 1, 2**33], 3),
        ("segment", [2**26, 1, 1, 1], 4),
        ("segment", [2**33, 1, 1, 1], 512),
    ):
        lie = {**attributes["arrays"][name], "shape": shape, "crc32c": [0] * chunks}
        arrays = {**attributes["arrays"], name: lie}
        commit = publish(store, ref, {**attributes, "arrays": arrays})
        with little_memory(), pytest.raises(Corrupt, match="bytes where") as caught:
            DirectoryStore.open(store.path).load(commit)
        assert_helpful(caught.value)


def test_the_memory_guard_can_fail(tmp_path: Path) -> None:
    """A valid array of that size exceeds the limit on memory of the tests above."""
    store = new_store(tmp_path / "large.zarr")
    ref = store.commit(Snapshot(0, arrays={"a": np.ones(ENOUGH // 8 + 1)}), parent=None)
    with pytest.raises(AssertionError), little_memory():
        store.load(ref)
