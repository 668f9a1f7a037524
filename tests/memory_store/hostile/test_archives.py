"""Forged archives: commit files with a malformed beginning or a false directory."""

import io
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest

from memory_store import Corrupt, DirectoryStore
from memory_store.format.zip import HEADER, Member, directory, header_size
from tests.memory_store.hostile.lies import little_memory, newest
from tests.support.stores import assert_equal, assert_helpful, members, repacked


def zipped(data: bytes, method: int) -> bytes:
    """The same members, written by Python's zipfile module."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members(data).items():
            archive.writestr(name, content)
    return file.getvalue()


def with_size(data: bytes, size: int) -> bytes:
    """The first header claims a document of `size` bytes."""
    at = HEADER.size + len("zarr.json")
    return data[: at + 4] + struct.pack("<QQ", size, size) + data[at + 20 :]


def renamed(data: bytes, name: str) -> bytes:
    contents = members(data)
    return repacked({name: contents.pop("zarr.json"), **contents})


def with_bytes(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


# Refused by every read: the offsets of the arrays follow from the document.
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
def test_forged_archives(store: DirectoryStore, lie: Callable[[bytes], bytes]) -> None:
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
    """The members in an archive's directory, and the offset of the directory."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [
            (Member(info.filename, info.file_size, info.CRC), info.header_offset)
            for info in archive.infolist()
        ], archive.start_dir


def relisted(
    data: bytes, change: Callable[[list[tuple[Member, int]]], Sequence[tuple[Member, int]]]
) -> bytes:
    """The archive with another directory that is otherwise consistent."""
    found, start = listed(data)
    return data[:start] + directory(change(found), start)


# Detected by `verify`, because other tools would read something else than what was committed.
# `load` ignores the directory.
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
def test_forged_directories(store: DirectoryStore, name: str) -> None:
    ref = newest(store)
    honest, path = store.load(ref), store.path / "commits" / ref.commit.name
    lying = DIRECTORIES[name](path.read_bytes())
    assert lying != path.read_bytes() or name == "as large as a disk"
    path.write_bytes(lying)
    if name == "as large as a disk":
        os.truncate(path, 2**36)  # a sparse file
    with little_memory():
        assert_equal(DirectoryStore.open(store.path).load(ref), honest)
        with pytest.raises(Corrupt, match=path.name) as caught:
            DirectoryStore.open(store.path).verify()
    assert_helpful(caught.value)
