"""Damaged and misplaced files: never silently wrong."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from memory_store import LogRows, Ref, Snapshot, StoreError
from memory_store.store import Store
from tests.memory_store.conformance.place import Place
from tests.support.stores import Stream, assert_equal, members, repacked


class DamageConformance:
    """Part of `StoreConformance`."""

    every: ClassVar[int] = 1  # one in `every` damages to every file is tried

    def test_no_damage_is_silent(self, place: Place) -> None:
        """Every file is damaged in many ways: `load` raises or is correct, `verify` raises."""
        store, made = history(place)
        rng, tried, detected, number = random.Random(0), 0, 0, 0
        newest = {
            "refs/main/000000000003.json": ("main", made[2][0]),
            "refs/side/000000000000.json": ("side", None),
        }
        for name, data in place.files().items():
            for damaged in damages(data, rng):
                number += 1
                if damaged == data or same_json(damaged, data) or number % self.every:
                    continue
                place.write(name, damaged)
                tried += 1
                for ref, snapshot in (made[0], made[-1]):
                    try:
                        found = place.open().load(ref)
                    except StoreError as error:
                        detected += 1
                        assert store.name in str(error)
                    else:
                        assert_equal(found, snapshot)
                    (start, rows), *_ = [(log.start, log.data) for log in snapshot.logs.values()]
                    try:
                        pieces = [*place.open().log(ref, "keys", start, ref.position)]
                    except StoreError as error:
                        assert store.name in str(error)
                    else:
                        assert len(pieces) == 1 and np.array_equal(pieces[0][1], rows)
                if damaged is None and name in newest:
                    # A missing newest ref cannot be detected: the branch is at the one before.
                    assert place.open().head(newest[name][0]) == newest[name][1]
                else:
                    with pytest.raises(StoreError) as caught:
                        place.open().verify()
                    assert store.name in str(caught.value)
            place.write(name, data)
        store.verify()
        assert tried > 150 // self.every and detected > 50 // self.every

    def test_misplaced_files_are_detected(self, place: Place) -> None:
        """Swapped chunks, documents, refs and commits have valid checksums, but wrong ids."""
        store, made = history(place)
        commits = [f"commits/{ref.commit.name}" for ref, _ in made]
        refs = [f"refs/main/{i:012d}.json" for i in range(4)]
        for one, other, part in (
            (commits[2], commits[3], "memory/c.0.0.0.0"),
            (commits[0], commits[1], "compressed/c.0.0.0.0"),
            (commits[2], commits[3], "usage/c.0.0.0"),
            (commits[2], commits[3], "tokens/c.0"),
            (commits[2], commits[3], "keys/c.0.0"),
            (commits[2], commits[3], "zarr.json"),
            (commits[2], commits[3], None),
            (refs[0], refs[3], None),
            (refs[1], "refs/side/000000000000.json", None),
        ):
            files = place.files()
            for key, source in ((one, other), (other, one)):
                data = files[source]
                if part:
                    data = repacked({**members(files[key]), part: members(data)[part]})
                place.write(key, data)
            with pytest.raises(StoreError) as caught:
                place.open().verify()
            assert store.name in str(caught.value)
            for ref, snapshot in made:
                try:
                    assert_equal(place.open().load(ref), snapshot)
                except StoreError as error:
                    assert store.name in str(error)
            for key in (one, other):
                place.write(key, files[key])
            place.open().verify()


def history(place: Place) -> tuple[Store, list[tuple[Ref, Snapshot]]]:
    """Four commits that hold slots of each other's windows."""
    store, stream, made = place.new(), Stream(memory=12, compressed=8), []
    for _ in range(4):
        stream.read(4, memory=4, compressed=1)
        snapshot = stream.snapshot()
        rows = {"keys": LogRows(stream.position - 4, stream.rng.integers(0, 9, (4, 16), np.int8))}
        snapshot = replace(snapshot, arrays={"usage": snapshot.arrays["usage"]}, logs=rows)
        made.append((store.commit(snapshot, parent=made[-1][0] if made else None), snapshot))
    store.publish(made[1][0], branch="side")
    return store, made


def damages(data: bytes, rng: random.Random) -> Iterator[bytes | None]:
    """Damaged versions of a file's content; None is a missing file."""
    yield None
    yield b""
    yield data[: rng.randrange(len(data))]
    yield data[:-1]
    yield data + b"\0"
    yield bytes(len(data))
    for _ in range(48 if data.startswith(b"PK") else 4):  # a commit is one file of many parts
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield bytes(flipped)


def same_json(damaged: bytes | None, data: bytes) -> bool:
    """Whether the damage is harmless: "e" and "E" are equal in a number."""
    try:
        return bool(json.loads(damaged or b"") == json.loads(data))
    except ValueError:
        return False
