"""Stores that somebody made to do harm: every id and checksum fits, and the content lies.

Whatever a document claims, it is refused, or it is what an honest store might hold; either way
little memory is taken, nothing outside is touched, and nothing is executed.
"""

import io
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import Commit, Corrupt, DirectoryStore, Ref, Snapshot, StoreError
from memory_store.format.json import canonical, sealed, sha256
from memory_store.format.zarr import array_document, chunk_shape
from memory_store.format.zip import HEADER, Member, directory, header_size
from tests.support.stores import (
    ROOT,
    Stream,
    assert_equal,
    assert_helpful,
    files,
    members,
    new_store,
    repacked,
)

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


@pytest.fixture
def old(tmp_path: Path) -> DirectoryStore:
    """A session of the first schema: its commits are folders."""
    shutil.copytree(ROOT / "tests" / "data" / "schema-1.zarr", tmp_path / "old" / "s.zarr")
    return DirectoryStore.open(tmp_path / "old" / "s.zarr")


@pytest.fixture(params=["store", "old"])
def either(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


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


def member(store: DirectoryStore, ref: Ref, name: str = "zarr.json") -> bytes:
    """A part of a commit, be it a file or, as in the first schema, a folder."""
    path = store.path / "commits" / ref.commit.name
    return (path / name).read_bytes() if path.is_dir() else members(path.read_bytes())[name]


def put(store: DirectoryStore, ref: Ref, name: str, data: bytes) -> None:
    """Change a part of a commit; of a file, every size, place and checksum is made to fit."""
    path = store.path / "commits" / ref.commit.name
    if path.is_dir():
        (path / name).write_bytes(data)
    else:
        path.write_bytes(repacked({**members(path.read_bytes()), name: data}))


def publish(store: DirectoryStore, ref: Ref, attributes: dict[str, Any]) -> Commit:
    """Give the newest commit other attributes; its id, its ref and its metadata are made to fit."""
    document = json.loads(member(store, ref))
    document["attributes"] = attributes
    with suppress(ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        document["consolidated_metadata"]["metadata"] = {
            name: array_document(tuple(spec["shape"]), spec["dtype"])
            for name, spec in attributes["arrays"].items()
        }
    chunk_shape.cache_clear()  # 4.0 == 4: it would remember the lie for the truth
    put(store, ref, "zarr.json", canonical(document))
    commit = replace(ref.commit, id=sha256(canonical(attributes)))
    path = store.path / "refs" / ref.branch / f"{ref.seq:012d}.json"
    entry = {**json.loads(path.read_text()), "id": commit.id}
    path.write_bytes(sealed({key: item for key, item in entry.items() if key != "crc32c"}))
    return commit


def test_any_lie_in_a_commit(either: DirectoryStore) -> None:
    """Each value of its attributes, many lies: refused, or the arrays are those that are there."""
    store = either
    ref = newest(store)
    honest, attributes = store.load(ref), store._commits.read(ref.commit).attributes
    refused = harmless = 0
    for i, place in enumerate(places(attributes)):
        for lie in LIES[i % 6 :: 6]:
            lying = with_lie(attributes, place, lie)
            if lying is None:
                continue
            commit = publish(store, ref, lying)
            try:
                with little_memory():
                    found = DirectoryStore.open(store.path).load(commit)
            except StoreError as error:
                assert_helpful(error)
                refused += 1
                continue
            same: dict[str, Any] = {"position": honest.position, "attributes": {}, "windows": {}}
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
                    # Both schemas have the same headers and refs.
                    schema = place == ("schema",) and type(lie) is int and lie == 1
                    free = place[0] in ("created", "attributes", "fingerprints")
                    assert schema or free, (place, lie)
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
        told = path.name + (part if name == "tokens/zarr.json" else "")
        with little_memory(), pytest.raises(StoreError, match=told) as caught:
            DirectoryStore.open(store.path).verify()
        assert_helpful(caught.value)
        put(store, ref, name, honest) if name else path.write_bytes(honest)
    store.verify()


@pytest.mark.parametrize("name", ["session.json", "ref", "zarr.json", "tokens/zarr.json"])
def test_a_key_that_is_there_twice(either: DirectoryStore, name: str) -> None:
    """Readers disagree on which of the two counts, so that each could be shown another state."""
    store, ref = either, newest(either)
    path = store.path / (f"refs/main/{ref.seq:012d}.json" if name == "ref" else name)

    def doubled(data: bytes) -> bytes:
        return b'{"%s":{"x":1},' % next(iter(json.loads(data))).encode() + data[1:]

    if name.endswith("zarr.json"):
        put(store, ref, name, doubled(member(store, ref, name)))
    else:
        path.write_bytes(doubled(path.read_bytes()))
    # An array's document is compared as it stands, if it is part of a file.
    compared = name == "tokens/zarr.json" and store.path.parent.name != "old"
    with pytest.raises(Corrupt, match=f"{name}: damaged" if compared else "twice") as caught:
        DirectoryStore.open(store.path).verify()
    assert_helpful(caught.value)


def test_a_shape_that_no_file_backs(either: DirectoryStore) -> None:
    """Memory is taken only for what is there, and as large as the shape says."""
    store, ref = either, newest(either)
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


# --- a commit's file that is no such archive


def zipped(data: bytes, method: int) -> bytes:
    """The same members, as Python's own module writes them."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members(data).items():
            archive.writestr(name, content)
    return file.getvalue()


def with_size(data: bytes, size: int) -> bytes:
    """The first header promises a document of so many bytes."""
    at = HEADER.size + len("zarr.json")
    return data[: at + 4] + struct.pack("<QQ", size, size) + data[at + 20 :]


def renamed(data: bytes, name: str) -> bytes:
    contents = members(data)
    return repacked({name: contents.pop("zarr.json"), **contents})


def with_bytes(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


# Refused by all who read: where the arrays lie follows from the document.
ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "no bytes": lambda data: b"",
    "half a header": lambda data: data[:30],
    "50 bytes": lambda data: data[:50],
    "a header less a byte": lambda data: data[: header_size("zarr.json") - 1],
    "a header alone": lambda data: data[: header_size("zarr.json")],
    "a document cut off": lambda data: data[: header_size("zarr.json") + 100],
    "a document less a byte": lambda data: data[
        : header_size("zarr.json") + len(members(data)["zarr.json"]) - 1
    ],
    "another magic": lambda data: b"PK\5\6" + data[4:],
    "a byte in front": lambda data: b"\0" + data,
    "a program in front": lambda data: b"#!/bin/sh\nexit\n" + data,
    "a later version": lambda data: with_bytes(data, 4, b"\x3f"),
    "a flag": lambda data: with_bytes(data, 6, b"\x01"),  # encrypted
    "sizes behind": lambda data: with_bytes(data, 6, b"\x08"),
    "a first member that says deflated": lambda data: with_bytes(data, 8, b"\x08"),
    "deflated": lambda data: zipped(data, zipfile.ZIP_DEFLATED),
    "by another tool": lambda data: zipped(data, zipfile.ZIP_STORED),
    "narrow sizes": lambda data: with_bytes(data, 18, b"\xff\0\0\0\xff\0\0\0"),
    "a longer name": lambda data: with_bytes(data, 26, b"\x0a"),
    "no name": lambda data: with_bytes(data, 26, b"\0"),
    "more behind the name": lambda data: with_bytes(data, 28, b"\xff\xff"),
    "another document": lambda data: renamed(data, "zarr.jsom"),
    "capital letters": lambda data: renamed(data, "ZARR.JSON"),
    "a way out": lambda data: renamed(data, "../z.json"),
    "no document": lambda data: repacked({**members(data), "zarr.json": b""}),
    "sizes that differ": lambda data: with_bytes(data, 43, b"\xff"),
    **{
        f"a document of {size} bytes": partial(with_size, size=size)
        for size in (0, 1, 2**16, 2**24, 2**24 + 1, 2**32, 2**53, 2**62, 2**63, 2**64 - 1)
    },
    "the document last": lambda data: repacked(dict(reversed(members(data).items()))),
    "no array": lambda data: repacked({"zarr.json": members(data)["zarr.json"]}),
    "arrays in another order": lambda data: repacked(
        {name: members(data)[name] for name in ["zarr.json", *[*members(data)][:0:-1]]}
    ),
}


@pytest.mark.parametrize("lie", ARCHIVES.values(), ids=ARCHIVES)
def test_archives_that_lie(store: DirectoryStore, lie: Callable[[bytes], bytes]) -> None:
    ref = newest(store)
    path = store.path / "commits" / ref.commit.name
    lying = lie(path.read_bytes())
    assert lying != path.read_bytes()
    path.write_bytes(lying)
    for read in (lambda: DirectoryStore.open(store.path).load(ref), store.verify):
        with little_memory(), pytest.raises(Corrupt, match=path.name) as caught:
            read()
        assert_helpful(caught.value)


def listed(data: bytes) -> tuple[list[tuple[Member, int]], int]:
    """The members of an archive as its directory has them, and where that begins."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [
            (Member(info.filename, info.file_size, info.CRC), info.header_offset)
            for info in archive.infolist()
        ], archive.start_dir


def relisted(
    data: bytes, change: Callable[[list[tuple[Member, int]]], Sequence[tuple[Member, int]]]
) -> bytes:
    """The archive with another directory, in which all else fits."""
    found, start = listed(data)
    return data[:start] + directory(change(found), start)


# Told by `verify`: other tools would find something else than what was committed. `load` reads
# nothing of it.
DIRECTORIES: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data[: listed(data)[1]],
    "cut off": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "a comment": lambda data: data[:-2] + b"\2\0hi",
    "another behind it": lambda data: data + directory([], len(data)),
    "an empty one": lambda data: relisted(data, lambda found: []),
    "a member less": lambda data: relisted(data, lambda found: found[:-1]),
    "a member twice": lambda data: relisted(data, lambda found: [*found, found[0]]),
    "another order": lambda data: relisted(data, lambda found: found[::-1]),
    "a member elsewhere": lambda data: relisted(
        data, lambda found: [*found[:-1], (found[-1][0], found[-2][1])]
    ),
    "other names": lambda data: relisted(
        data,
        lambda found: [(replace(each, name=f"../{each.name}"), at) for each, at in found],
    ),
    "other checksums": lambda data: relisted(
        data, lambda found: [(replace(each, crc32=each.crc32 ^ 1), at) for each, at in found]
    ),
    "other sizes": lambda data: relisted(
        data, lambda found: [(replace(each, size=2**62), at) for each, at in found]
    ),
    "a member more": lambda data: repacked({**members(data), "evil/zarr.json": b"{}"}),
    "an array's document less": lambda data: repacked(
        {name: part for name, part in members(data).items() if name != "usage/zarr.json"}
    ),
    "documents in another order": lambda data: repacked(
        dict(sorted(members(data).items(), key=lambda pair: pair[0] == "memory/zarr.json"))
    ),
    "another array's document": lambda data: repacked(
        {**members(data), "tokens/zarr.json": members(data)["usage/zarr.json"]}
    ),
    "as large as a disk": lambda data: data,
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_directories_that_lie(store: DirectoryStore, name: str) -> None:
    ref = newest(store)
    honest, path = store.load(ref), store.path / "commits" / ref.commit.name
    lying = DIRECTORIES[name](path.read_bytes())
    assert lying != path.read_bytes() or name == "as large as a disk"
    path.write_bytes(lying)
    if name == "as large as a disk":
        os.truncate(path, 2**36)  # of which nothing is on disk
    with little_memory():
        assert_equal(DirectoryStore.open(store.path).load(ref), honest)
        with pytest.raises(Corrupt, match=path.name) as caught:
            DirectoryStore.open(store.path).verify()
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
    "kind",
    ["device", "pipe", "link to a device", "link to itself", "link to nothing", "link to what was"],
)
def test_what_is_no_file_is_not_read(either: DirectoryStore, kind: str) -> None:
    """Every file replaced, one at a time: no waiting, no reading without end."""
    store = either
    if kind == "device" and os.getuid() != 0:
        pytest.skip("making a device takes root")
    began, tried = time.monotonic(), 0
    for path in sorted(store.path.rglob("*")):
        if path.is_dir():
            continue
        aside = store.path.parent / "aside"
        path.rename(aside)
        path.symlink_to(aside) if kind == "link to what was" else special(path, kind)
        refused = rf"{path.name}: ({'a link' if 'link' in kind else 'not a regular file'})\."
        with little_memory(), pytest.raises(Corrupt, match=refused) as caught:
            DirectoryStore.open(store.path).verify()
        assert_helpful(caught.value)
        path.unlink()
        aside.rename(path)
        tried += 1
    store.verify()
    assert tried == (62 if store.path.parent.name == "old" else 7)
    assert time.monotonic() - began < 60


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


@pytest.mark.parametrize(
    ("fixture", "depth"),
    [("store", "branch"), ("old", "branch"), ("old", "commit"), ("old", "array")],
)
def test_folders_that_lead_elsewhere(
    fixture: str, depth: str, request: pytest.FixtureRequest
) -> None:
    """Through a link to a folder only what was committed is read, and nothing is written."""
    store: DirectoryStore = request.getfixturevalue(fixture)
    ref = newest(store)
    snapshot, name = store.load(ref), ref.commit.name
    place = {"branch": "refs/main", "commit": f"commits/{name}", "array": f"commits/{name}/tokens"}
    path, outside = store.path / place[depth], store.path.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    before = files(outside)
    found = DirectoryStore.open(store.path)
    assert_equal(found.load(ref), snapshot)
    lost = "c.*" if depth != "branch" else f"{ref.seq:012d}.json"
    next(outside.rglob(lost)).write_bytes(b"other")
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


def test_a_linked_commit_is_left_alone(store: DirectoryStore) -> None:
    """A commit's file that is a link is not followed; what it leads to stays as it is."""
    ref = newest(store)
    snapshot, outside = store.load(ref), store.path.parent / "outside.zip"
    path = store.path / "commits" / ref.commit.name
    path.rename(outside)
    path.symlink_to(outside)
    honest = outside.read_bytes()
    found = DirectoryStore.open(store.path)
    for action in (
        lambda: found.verify(),
        lambda: found.load(ref),
        lambda: found.tokens(ref, 0, ref.position),
        lambda: found.commit(snapshot, parent=ref),
    ):
        with pytest.raises((StoreError, ValueError)) as caught:
            action()
        if isinstance(caught.value, StoreError):
            assert_helpful(caught.value)
    found.delete()
    assert outside.read_bytes() == honest and not store.path.exists()


EXECUTED = """
import sys, warnings
import numpy, json
from memory_store import DirectoryStore, StoreError
import memory_store.backends.directory, memory_store.upkeep.verify
from tests.support.stores import assert_helpful
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
        # The whole file, and what each part of a commit's file begins with.
        parts = [i + 59 for i in range(1, len(honest)) if honest.startswith(b"PK\\3\\4", i)]
        for junk in (b"cos\\nsystem\\n(S'ls'\\ntR.", b"\\x80\\x04N.", b"import os", b"\\x93NUMPY"):
            whole = junk.ljust(len(honest), b"\\n")[: len(honest)]
            within = [honest[:i] + junk + honest[i + len(junk) :] for i in parts]
            for lie in (whole, *within):
                open(path, "wb").write(lie)
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


def test_nothing_is_executed(either: DirectoryStore) -> None:
    subprocess.run([sys.executable, "-c", EXECUTED, str(either.path)], cwd=ROOT, check=True)


def test_absurd_arrays_are_told_from_large_ones(tmp_path: Path) -> None:
    """The guard on memory above can fail: an honest array of that size goes over it."""
    store = new_store(tmp_path / "large.zarr")
    ref = store.commit(Snapshot(0, arrays={"a": np.ones(ENOUGH // 8 + 1)}), parent=None)
    with pytest.raises(AssertionError), little_memory():
        store.load(ref)
