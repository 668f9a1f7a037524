"""Damage to files: `verify` detects it anywhere, and a loaded snapshot equals the committed one."""

import io
import random
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memory_store import DirectoryStore, LogRows, Ref, Snapshot, StoreError
from memory_store.format.zip import header_size
from tests.memory_store.conformance.damage import damages, same_json
from tests.support.stores import ROOT, Stream, assert_equal, assert_helpful, files, new_store


def test_files_of_another_session(tmp_path: Path) -> None:
    """Intact files of another session replace this session's own."""
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    stream.read(4, memory=4, compressed=1)
    snapshot = stream.snapshot()
    ref = store.commit(snapshot, parent=None)
    twin = new_store(tmp_path / "twin.zarr")
    other = twin.commit(snapshot, parent=None)
    for one, foreign in (
        (store.path / "session.json", twin.path / "session.json"),
        (
            store.path / "commits" / ref.commit.name,
            twin.path / "commits" / other.commit.name,
        ),
    ):
        swap(one, foreign)
        with pytest.raises(StoreError, match=r"s\.zarr"):
            DirectoryStore.open(store.path).verify()
        try:
            assert_equal(DirectoryStore.open(store.path).load(ref), snapshot)
        except StoreError as error:
            assert str(store.path) in str(error)
        swap(one, foreign)
        DirectoryStore.open(store.path).verify()


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def regions(data: bytes) -> Iterator[tuple[str, int, int]]:
    """The regions of a commit's file: headers, contents, the directory and its end."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            begin = info.header_offset + header_size(info.filename)
            yield f"header of {info.filename}", info.header_offset, begin
            yield info.filename, begin, begin + info.file_size
        end = data.rindex(b"PK\x06\x06")
        yield "directory", archive.start_dir, end
        yield "end", end, len(data)


@pytest.fixture
def two(tmp_path: Path) -> tuple[DirectoryStore, list[tuple[Ref, Snapshot]]]:
    """Two commits; the first holds slots of the second one's windows."""
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    made: list[tuple[Ref, Snapshot]] = []
    for _ in range(2):
        stream.read(4, memory=4, compressed=1)
        rows = {"keys": LogRows(stream.position - 4, stream.rng.integers(0, 9, (4, 16), np.int8))}
        snapshot = replace(stream.snapshot(), arrays={}, logs=rows)
        made.append((store.commit(snapshot, parent=made[-1][0] if made else None), snapshot))
    return store, made


def detected(
    store: DirectoryStore, made: list[tuple[Ref, Snapshot]], name: str, data: bytes | None
) -> list[bool]:
    """Whether each load detects a damaged file, as `verify` must; the damage is repaired again."""
    path, found = store.path / name, []
    honest = path.read_bytes()
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(StoreError) as caught:
        DirectoryStore.open(store.path).verify()
    assert_helpful(caught.value)
    for ref, snapshot in made:
        try:
            assert_equal(DirectoryStore.open(store.path).load(ref), snapshot)
        except StoreError as error:
            assert_helpful(error)
            found.append(True)
        else:
            found.append(False)
    if data is not None:
        path.unlink()
    path.write_bytes(honest)
    return found


def test_bytes_of_every_part_of_a_commit(
    two: tuple[DirectoryStore, list[tuple[Ref, Snapshot]]],
) -> None:
    """A flipped bit is detected anywhere; a snapshot that still loads is the committed one."""
    store, made = two
    name = f"commits/{made[0][0].commit.name}"
    data, chance, end = (store.path / name).read_bytes(), random.Random(0), 0
    seen = 0
    for region, begin, after in regions(data):
        assert begin == end  # the regions have no gaps
        end = after
        step = 3 if after - begin < 120 else 16  # a few bytes of each field of a document
        for at in range(begin, after, step):
            flipped = bytearray(data)
            flipped[at] ^= 1 << chance.randrange(8)
            first, second = detected(store, made, name, bytes(flipped))
            if region == "header of zarr.json":
                assert first or 14 <= at < 18  # the store ignores the crc32 of Zip
            elif region == "zarr.json":
                assert first and not second  # the second manifest repeats what it needs
            elif region in ("memory/c.0.0.0.0", "compressed/c.0.0.0.0", "tokens/c.0"):
                assert first and second == (region != "tokens/c.0")
            else:
                assert not first and not second  # only `verify` reads it
            assert not (first and region == "keys/c.0.0")  # rows are not loaded
            seen += 1
    assert end == len(data) and seen > 350, seen
    store.verify()


def test_truncated_and_missing_parts(
    two: tuple[DirectoryStore, list[tuple[Ref, Snapshot]]],
) -> None:
    """Every part is truncated, removed, duplicated or zeroed, as a whole or from its middle."""
    store, made = two
    tried = 0
    for ref, _ in made:
        name = f"commits/{ref.commit.name}"
        data = (store.path / name).read_bytes()
        for _, begin, end in regions(data):
            half = (begin + end) // 2
            for damaged in (
                data[:begin],
                data[:half],
                data[: end - 1],
                data[:begin] + data[end:],
                data[:half] + data[half + 1 :],
                data[:half] + b"\0" + data[half:],
                data[:end] + data[begin:end] + data[end:],
                data[:begin] + bytes(end - begin) + data[end:],
                data[:begin] + bytes(len(data) - begin),
            ):
                detected(store, made, name, damaged)
                tried += 1
        for other in (data + b"\0", data + data, bytes(len(data)), b"", None):
            detected(store, made, name, other)
            tried += 1
    store.verify()
    assert tried > 250


def test_damage_to_schema_1(tmp_path: Path) -> None:
    """Every file of a session of schema 1 is flipped, truncated, extended or removed."""
    path = tmp_path / "s.zarr"
    shutil.copytree(ROOT / "tests" / "data" / "schema-1.zarr", path)
    store, chance = DirectoryStore.open(path), random.Random(0)
    refs = [ref for branch in store.branches() for ref in store.refs(branch)]
    made = [(ref, store.load(ref)) for ref in refs]
    newest = {
        f"refs/{branch}/{store.refs(branch)[-1].seq:012d}.json" for branch in ("main", "side")
    }
    tried: dict[str, int] = {}
    for name, data in files(path).items():
        some = chance.sample(made, 2)
        for damaged in damages(data, chance):
            if damaged == data or same_json(damaged, data) or (damaged is None and name in newest):
                continue
            detected(store, some, name, damaged)
            kind = re.sub(r"/c\.[0-9.]*$", "/c", re.sub(r"/[^/]*(?=/|\.json$)", "", name))
            tried[kind] = tried.get(kind, 0) + 1
    store.verify()
    assert tried.keys() == {"commits/c", "commits.json", "refs.json", "session.json"}
    assert tried["commits/c"] > 200 and tried["commits.json"] > 250 and tried["refs.json"] > 50
