"""Slot checksums: a writer remembers them, and reads slots back only where they do not suffice."""

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store import DirectoryStore, Ref, Snapshot, Window
from memory_store.backend import Extent
from memory_store.backends import files
from memory_store.format.manifest import WindowSpec
from memory_store.history.checksums import MAX_CHECKSUMS, covers, slot_checksums, unchanged
from tests.support.stores import Stream, assert_equal, new_store


def made(random: np.random.Generator, axis: int, start: int, end: int) -> Window:
    shape = [2, 3, 5]
    shape[axis] = end - start
    return Window(random.integers(0, 2**16, shape, dtype=np.uint16), axis, end, 10**6)


def as_slots(window: Window) -> WindowSpec:
    dtype = window.data.dtype.name
    return WindowSpec(window.data.shape, dtype, window.axis, window.end, window.capacity)


@given(
    seed=st.integers(0, 2**32 - 1),
    axis=st.integers(0, 2),
    start=st.integers(0, 300),
    count=st.integers(0, 200),
    added=st.integers(0, 50),
    data=st.data(),
)
def test_checksums_detect_changed_slots(
    seed: int, axis: int, start: int, count: int, added: int, data: st.DataObject
) -> None:
    random = np.random.default_rng(seed)
    window = made(random, axis, start, start + count)
    before = replace(as_slots(window), end=window.end - added)
    sums = slot_checksums(window, before)
    edges = sorted({number for each in sums for number in each} or {start})
    assert list(sums) == list(pairwise(edges)) and len(sums) <= MAX_CHECKSUMS
    assert (edges[0], edges[-1]) == (start, window.end)
    assert covers(sums, window) and unchanged(window, sums)

    # The next window drops old slots and appends new ones.
    lost = data.draw(st.integers(0, count))
    kept = np.moveaxis(np.moveaxis(window.data, axis, 0)[lost:], 0, axis)
    grown = np.concatenate([kept, made(random, axis, 0, added).data], axis)
    following = Window(grown, axis, window.end + added, window.capacity)
    assert covers(sums, following) == (start + lost in edges)
    if covers(sums, following):
        assert unchanged(following, sums)
        assert unchanged(following, slot_checksums(following, as_slots(window), sums))
        if kept.size:  # a single changed bit is detected
            byte = data.draw(st.integers(0, kept.nbytes - 1))
            kept = kept.copy()
            kept.reshape(-1).view(np.uint8)[byte] ^= 1 << data.draw(st.integers(0, 7))
            grown = np.concatenate([kept, made(random, axis, 0, added).data], axis)
            assert not unchanged(replace(following, data=grown), sums)


@given(steps=st.lists(st.integers(1, 4), min_size=2, max_size=12))
def test_streams_by_segments_stay_covered(steps: list[int]) -> None:
    """Each step appends one to four segments."""
    random, segment, capacity = np.random.default_rng(0), 8, 37
    stream = random.integers(0, 2**16, (2, 1000, 3), dtype=np.uint16)

    def at(end: int) -> Window:
        start = max(0, end - capacity)
        return Window(stream[:, start:end], 1, end, capacity)

    before, end = at(segment * 6), segment * 7
    sums = slot_checksums(at(end), as_slots(before))
    for step in steps:
        before, end = at(end), end + step * segment
        assert covers(sums, at(end)) and unchanged(at(end), sums)
        sums = slot_checksums(at(end), as_slots(before), sums)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the commits that are opened for reading."""
    found: list[str] = []
    open_regular = files.open_regular

    def noted(path: str, extent: Extent) -> int:
        if "/commits/" in path:
            found.append(os.path.basename(path))
        return open_regular(path, extent)

    monkeypatch.setattr("memory_store.backends.directory.open_regular", noted)
    return found


def commits(store: DirectoryStore, stream: Stream, count: int) -> tuple[Ref, Snapshot]:
    ref = store.head("main")
    for _ in range(count):
        stream.read(4, memory=4, compressed=1)
        snapshot = stream.snapshot()
        ref = store.commit(snapshot, parent=ref)
    assert ref is not None
    return ref, snapshot


def test_a_writer_reads_nothing_back(tmp_path: Path, opened: list[str]) -> None:
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    commits(store, stream, 6)
    opened.clear()
    ref, snapshot = commits(store, stream, 20)
    assert opened == []
    assert_equal(DirectoryStore.open(store.path).load(ref), snapshot)


def test_touched_files_are_read_back(tmp_path: Path, opened: list[str]) -> None:
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    ref, _ = commits(store, stream, 6)
    opened.clear()
    os.utime(store.path / "commits" / ref.commit.name)
    commits(store, stream, 1)
    assert ref.commit.name in opened
    opened.clear()
    commits(store, stream, 1)
    assert opened == []


def test_commits_of_other_writers_are_read_back(tmp_path: Path, opened: list[str]) -> None:
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    ref, _ = commits(store, stream, 6)
    opened.clear()
    commits(DirectoryStore.open(store.path), stream, 1)
    assert ref.commit.name in opened


def test_changed_slots_are_rewritten(tmp_path: Path) -> None:
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    commits(store, stream, 6)
    stream.window["memory"] = stream.window["memory"] ^ 1
    ref, snapshot = commits(store, stream, 1)
    assert len(list((store.path / "commits").iterdir())) == len(store.refs("main")) == 7
    assert store.size(ref) > store.size(store.refs("main")[-2])
    assert_equal(DirectoryStore.open(store.path).load(ref), snapshot)
