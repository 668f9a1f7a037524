"""Stores that somebody made to do harm: every id and checksum fits, and the content lies.

Whatever a document claims, it is refused, or it is what an honest store might hold; either way
little memory is taken, nothing outside is touched, and nothing is executed.
"""

import json
import os
import stat
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import Commit, Corrupt, DirectoryStore, Ref, Snapshot, StoreError
from memory_store.canonical import canonical, sealed, sha256
from memory_store.zarrformat import array_document, chunk_shape
from tests.stores import ROOT, Stream, assert_equal, assert_helpful, files, new_store

ENOUGH = 2**22  # bytes that refusing may take
LIES: list[Any] = [
    *(-1, 0, 1, 2**31, 2**53 + 1, 2**63, 10**400, 1e308, -0.5, 3.0, True, None),
    *("", "..", "../../../../etc/passwd", "/etc/passwd", "x" * 5000, "a\0b", "object", "|O", "<f8"),
    *([], {}, [[]], [2**60] * 8, [-1, 1], [1] * 5000, {"a": {}}, {"..": {}}, {"/": 1}),
]


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()  # sees numpy's memory too, touched or not
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < ENOUGH
    finally:
        tracemalloc.stop()


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    store, stream, head = new_store(tmp_path / "s.zarr", attributes={"a": [1]}), Stream(), None
    for _ in range(3):
        stream.read(4, memory=4, compressed=1)
        head = store.commit(stream.snapshot(), parent=head)
    return store


def newest(store: DirectoryStore) -> Ref:
    head = store.head("main")
    assert head is not None
    return head


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def with_lie(document: Any, place: tuple[Any, ...], lie: Any) -> Any:
    document = json.loads(json.dumps(document))
    inside = document
    for key in place[:-1]:
        inside = inside[key]
    if canonical(inside[place[-1]]) == canonical(lie):
        return None  # the truth
    inside[place[-1]] = lie
    return document


def publish(store: DirectoryStore, ref: Ref, attributes: dict[str, Any]) -> Commit:
    """Give the newest commit other attributes; its id, its ref and its metadata are made to fit."""
    path = store.path / "commits" / ref.commit.name / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"] = attributes
    with suppress(ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        document["consolidated_metadata"]["metadata"] = {
            name: array_document(tuple(spec["shape"]), spec["dtype"])
            for name, spec in attributes["arrays"].items()
        }
    chunk_shape.cache_clear()  # 4.0 == 4: it would remember the lie for the truth
    path.write_bytes(canonical(document))
    commit = replace(ref.commit, id=sha256(canonical(attributes)))
    path = store.path / "refs" / ref.branch / f"{ref.seq:012d}.json"
    entry = {**json.loads(path.read_text()), "id": commit.id}
    path.write_bytes(sealed({key: item for key, item in entry.items() if key != "crc32c"}))
    return commit


def test_any_lie_in_a_commit(store: DirectoryStore) -> None:
    """Each value of its attributes, many lies: refused, or the arrays are those that are there."""
    ref = newest(store)
    honest, attributes = store.load(ref), store._commits.read(ref.commit).attributes
    refused = harmless = 0
    with little_memory():
        for i, place in enumerate(places(attributes)):
            for lie in LIES[i % 6 :: 6]:
                lying = with_lie(attributes, place, lie)
                if lying is None:
                    continue
                commit = publish(store, ref, lying)
                try:
                    found = DirectoryStore.open(store.path).load(commit)
                except StoreError as error:
                    assert_helpful(error)
                    refused += 1
                    continue
                same = {"position": honest.position, "attributes": {}, "windows": {}}
                assert_equal(replace(found, **same), replace(honest, **same))
                for name, window in found.windows.items():
                    whole = honest.windows[name].data.tobytes()
                    assert all(row.tobytes() in whole for row in window.data)
                harmless += 1
    assert refused > 400 and harmless > 30


@pytest.mark.parametrize("name", ["session.json", "refs/main/000000000002.json"])
def test_any_lie_in_a_sealed_document(store: DirectoryStore, name: str) -> None:
    path, honest = store.path / name, newest(store)
    document = json.loads(path.read_text())
    del document["crc32c"]
    tried = 0
    with little_memory():
        for place in places(document):
            for lie in LIES:
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
                    assert place[0] in ("created", "attributes", "fingerprints"), (place, lie)
    assert tried > 150


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
def test_junk_in_every_document(store: DirectoryStore, junk: bytes) -> None:
    ref = newest(store)
    for name in (
        "session.json",
        "refs/main/000000000002.json",
        f"commits/{ref.commit.name}/zarr.json",
        f"commits/{ref.commit.name}/tokens/zarr.json",
    ):
        path = store.path / name
        honest = path.read_bytes()
        path.write_bytes(junk)
        with little_memory(), pytest.raises(StoreError, match=path.name) as caught:
            DirectoryStore.open(store.path).verify()
        assert_helpful(caught.value)
        path.write_bytes(honest)
    store.verify()


@pytest.mark.parametrize("name", ["session.json", "refs/main/000000000002.json", "commit", "array"])
def test_a_key_that_is_there_twice(store: DirectoryStore, name: str) -> None:
    """Readers disagree on which of the two counts, so that each could be shown another state."""
    name = {
        "commit": f"commits/{newest(store).commit.name}/zarr.json",
        "array": f"commits/{newest(store).commit.name}/tokens/zarr.json",
    }.get(name, name)
    path = store.path / name
    first = next(iter(json.loads(path.read_text())))
    path.write_bytes(b'{"%s":{"x":1},' % first.encode() + path.read_bytes()[1:])
    with pytest.raises(Corrupt, match="twice") as caught:
        DirectoryStore.open(store.path).verify()
    assert_helpful(caught.value)


def test_a_shape_that_no_file_backs(store: DirectoryStore) -> None:
    """Memory is taken only for what is there, and as large as the shape says."""
    ref = newest(store)
    attributes = store._commits.read(ref.commit).attributes
    for name, shape, chunks in (
        ("usage", [3, 1, 2**23], 3),  # fits in memory, and does not
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


def special(path: Path, kind: str) -> None:
    if kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero has no end
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path)
    else:
        path.symlink_to("/no/where")


@pytest.mark.parametrize(
    "kind", ["device", "pipe", "link to a device", "link to itself", "link to nothing"]
)
def test_what_is_no_file_is_not_read(store: DirectoryStore, kind: str) -> None:
    """Every file replaced, one at a time: no waiting, no reading without end."""
    if kind == "device" and os.getuid() != 0:
        pytest.skip("making a device takes root")
    began, tried = time.monotonic(), 0
    for path in sorted(store.path.rglob("*")):
        if path.is_dir():
            continue
        aside = store.path.parent / "aside"
        path.rename(aside)
        special(path, kind)
        refused = rf"{path.name}: ({'a link' if 'link' in kind else 'not a regular file'})\."
        with little_memory(), pytest.raises(Corrupt, match=refused) as caught:
            DirectoryStore.open(store.path).verify()
        assert_helpful(caught.value)
        path.unlink()
        aside.rename(path)
        tried += 1
    store.verify()
    assert tried > 25 and time.monotonic() - began < 60


@pytest.mark.parametrize("kind", ["device", "pipe", "link to a device", "link out"])
@pytest.mark.parametrize("name", [".lock", ".publish", "000000000003.json"])
def test_what_is_planted_where_a_writer_writes(
    store: DirectoryStore, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "device" and os.getuid() != 0:
        pytest.skip("making a device takes root")

    def no_links(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    outside = store.path.parent / "outside"
    outside.write_text("mine")
    path = store.path / "refs" / "main" / name
    path.symlink_to(outside) if kind == "link out" else special(path, kind)
    before, ref = files(store.path / "commits"), newest_before(store, name)
    monkeypatch.setattr(os, "link", no_links)
    try:
        with store.writer():
            store.commit(Snapshot(ref.position), parent=ref)
    except StoreError as error:
        assert_helpful(error)
        assert files(store.path / "commits") == before
    else:
        assert name == ".publish" and kind in ("device", "pipe")  # they can be locked as well
    assert outside.read_text() == "mine"
    assert sorted(p.name for p in store.path.parent.iterdir()) == ["outside", "s.zarr"]


def newest_before(store: DirectoryStore, name: str) -> Ref:
    return store._refs.read("main", 2) if name.endswith("json") else newest(store)


@pytest.mark.parametrize("depth", ["branch", "commit", "array"])
def test_folders_that_lead_elsewhere(store: DirectoryStore, depth: str) -> None:
    """Through a link to a folder only what was committed is read, and nothing is written."""
    ref = newest(store)
    snapshot, name = store.load(ref), ref.commit.name
    place = {"branch": "refs/main", "commit": f"commits/{name}", "array": f"commits/{name}/tokens"}
    path, outside = store.path / place[depth], store.path.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    before = files(outside)
    found = DirectoryStore.open(store.path)
    assert_equal(found.load(ref), snapshot)
    next(outside.rglob("c.*" if depth != "branch" else "*2.json")).write_bytes(b"other")
    for action in (
        lambda: found.verify(),
        lambda: found.load(newest(found)),
        lambda: found.commit(snapshot, parent=ref),
    ):
        with pytest.raises((StoreError, ValueError)):
            action()
    assert files(outside).keys() == before.keys()
    with suppress(Corrupt):  # or it is deleted: but what a link leads to is not the store's
        found.delete()
    assert files(outside).keys() == before.keys()


EXECUTED = """
import sys, warnings
import numpy, json
from memory_store import DirectoryStore, StoreError
import memory_store.directory, memory_store.verify
from tests.stores import assert_helpful
store = DirectoryStore.open(sys.argv[1])
head = store.head("main")
store.load(head), store.verify()
seen = []
WATCHED = ("exec", "compile", "import", "pickle.", "marshal.", "os.system", "os.exec", "subprocess",
           "ctypes.", "socket.", "os.posix_spawn", "os.fork", "shutil.", "os.remove", "os.rename")
sys.addaudithook(lambda event, _: event.startswith(WATCHED) and seen.append(event))
import os
for folder, _, names in list(os.walk(sys.argv[1])):
    for name in names:
        path = os.path.join(folder, name)
        honest = open(path, "rb").read()
        for junk in (b"cos\\nsystem\\n(S'ls'\\ntR.", b"\\x80\\x04N.", b"import os", b"\\x93NUMPY"):
            junk = junk.ljust(len(honest), b"\\n")[: len(honest)]
            open(path, "wb").write(junk)
            try:
                again = DirectoryStore.open(sys.argv[1])
                again.verify(), again.load(head)
            except StoreError as error:
                assert_helpful(error)
            else:
                raise AssertionError(path)
        open(path, "wb").write(honest)
assert not seen, sorted(set(seen))
DirectoryStore.open(sys.argv[1]).verify()
exec("1")
assert seen, "the hook does not work"
"""


def test_nothing_is_executed(store: DirectoryStore) -> None:
    subprocess.run([sys.executable, "-c", EXECUTED, str(store.path)], cwd=ROOT, check=True)


def test_absurd_arrays_are_told_from_large_ones(tmp_path: Path) -> None:
    """The guard on memory above can fail: an honest array of that size goes over it."""
    store = new_store(tmp_path / "large.zarr")
    ref = store.commit(Snapshot(0, arrays={"a": np.ones(ENOUGH // 8 + 1)}), parent=None)
    with pytest.raises(AssertionError), little_memory():
        store.load(ref)
