"""System calls that fail within a commit: the branch is at the old commit or at the new one."""

import errno
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import DirectoryStore, Ref, Snapshot, StoreError, StoreFull, Window
from tests.support.stores import Stream, assert_equal, files, new_store


class Interrupted(BaseException):
    """Like KeyboardInterrupt, without stopping the tests."""


CALLS = ("open", "write", "writev", "fsync", "mkdir", "rename", "link", "close")


def failing(
    monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException, *, done: str
) -> Callable[[], int]:
    """Make the `at`-th system call raise before, after or halfway through its work."""
    count = 0

    def wrapped(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count != at + 1:
                return real(*arguments, **options)
            if done == "halfway" and name == "writev":
                descriptor, buffers = arguments
                real(descriptor, [*buffers[: len(buffers) // 2], buffers[len(buffers) // 2][:1]])
            elif done == "after":
                real(*arguments, **options)
            raise error

        return call

    for name in CALLS:
        # fsync is skipped to save time: durability is not tested here.
        real = (lambda descriptor: None) if name == "fsync" else getattr(os, name)
        monkeypatch.setattr(os, name, wrapped(real, name))
    return lambda: count


@pytest.mark.parametrize(
    "kind",
    [
        *("refused", "refused after", "full", "full halfway"),
        *("interrupted", "interrupted halfway", "interrupted after"),
    ],
)
def test_an_error_in_any_call_of_a_commit(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any call fails: the branch is at the old commit or at the new one."""
    error: BaseException
    kind, _, done = kind.partition(" ")
    if kind == "refused":
        error = OSError(errno.EIO, "Input/output error")
    elif kind == "full":
        error = OSError(errno.ENOSPC, "No space left on device")
    else:
        error = Interrupted()
    store, stream = new_store(tmp_path / "s.zarr", durability="full"), Stream()
    stream.read(4, memory=4)
    old = stream.snapshot()
    stream.read(4, memory=4)
    new = stream.snapshot()
    old, new = (replace(each, arrays={}) for each in (old, new))
    parent = store.commit(old, parent=None)
    outcomes = {"old": 0, "new": 0}
    for at in range(1000):
        before = files(store.path)
        with monkeypatch.context() as patch:
            calls = failing(patch, at, error, done=done)
            raised: BaseException | None = None
            try:
                store.commit(new, parent=parent)
            except (StoreError, Interrupted) as caught:
                raised = caught
            count = calls()
        if count <= at:
            break  # the commit needed fewer calls
        head = DirectoryStore.open(store.path).head("main")
        assert head is not None
        store.verify()
        if head == parent:
            outcomes["old"] += 1
            assert raised is not None
            assert_equal(store.load(parent), old)
            assert files(store.path) == before
        else:
            outcomes["new"] += 1
            assert_equal(store.load(head), new)
            left = files(store.path).keys() - before.keys()
            assert not [name for name in left if ".tmp" in name or "partial" in name]
            # A published commit stays, although the call raised: a retry raises Conflict.
            (store.path / "commits" / head.commit.name).unlink()
            (store.path / "refs" / "main" / f"{head.seq:012d}.json").unlink()
        if kind == "full" and head == parent:
            assert isinstance(raised, StoreFull) and "Free some space" in str(raised)
    assert outcomes["old"] >= 11 and outcomes["new"] >= 3
    assert raised is None
    store.verify()


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_short_reads_and_writes(tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """System calls may read and write less than requested."""
    writev, readv = os.writev, os.readv
    calls = {"writev": 0, "readv": 0}

    def short(real: Callable[..., int], name: str) -> Callable[..., int]:
        def call(descriptor: int, buffers: list[memoryview]) -> int:
            calls[name] += 1
            return real(descriptor, [next(filter(len, buffers))[:most]])

        return call

    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    stream.read(4, memory=4)
    snapshot = stream.snapshot()
    monkeypatch.setattr(os, "writev", short(writev, "writev"))
    monkeypatch.setattr(os, "readv", short(readv, "readv"))
    ref = store.commit(snapshot, parent=None)
    assert calls["writev"] >= (store.path / "commits" / ref.commit.name).stat().st_size / most
    assert_equal(DirectoryStore.open(store.path).load(ref), snapshot)
    store.verify()
    monkeypatch.undo()
    assert_equal(store.load(ref), snapshot)
    store.verify()
    assert calls["readv"] > 10


def test_all_is_synced_before_the_ref(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published commit was synced when it was complete, and so were all folders above it."""
    synced: dict[int, int] = {}  # inode → size when it was synced
    at_link: list[dict[int, int]] = []
    link, fsync, rename = os.link, os.fsync, os.rename

    def record(descriptor: int) -> None:
        fsync(descriptor)
        found = os.fstat(descriptor)
        synced[found.st_ino] = found.st_size

    def sealing(real: Callable[..., None]) -> Callable[..., None]:
        def call(source: Any, target: Any) -> None:
            at_link.append(dict(synced))
            real(source, target)
            synced.clear()

        return call

    def missing(paths: list[Path], before: dict[int, int]) -> list[Path]:
        found = {path: path.stat() for path in paths}
        return [
            path
            for path, stat in found.items()
            if stat.st_ino not in before or (path.is_file() and before[stat.st_ino] != stat.st_size)
        ]

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "link", sealing(link))
    monkeypatch.setattr(os, "rename", sealing(rename))
    path = tmp_path / "s.zarr"
    store, stream = new_store(path, durability="full"), Stream()
    assert not missing([path / "session.json", path, tmp_path], at_link.pop())
    assert not missing([path], synced)
    stream.read(4, memory=4)
    first = store.commit(stream.snapshot(), parent=None)
    (linked,) = at_link
    file = path / "commits" / first.commit.name
    ref = path / "refs" / "main" / "000000000000.json"
    assert file.is_file() and not missing([file, ref], linked)
    assert not missing([path / "commits", path / "refs", path], linked)
    assert not missing([path / "refs" / "main"], synced)

    at_link.clear()
    synced.clear()
    second = store.commit(Snapshot(4), parent=first)  # all folders exist
    due = [
        path / "commits" / second.commit.name,
        path / "commits",
        path / "refs" / "main" / "000000000001.json",
    ]
    (linked,) = at_link
    assert not missing(due, linked) and linked.keys() == {each.stat().st_ino for each in due}
    assert synced.keys() == {(path / "refs" / "main").stat().st_ino}  # four in all

    at_link.clear()
    store.publish(first, branch="main")
    assert not missing([path / "refs" / "main" / "000000000002.json"], at_link.pop())
    assert not missing([path / "refs" / "main"], synced)

    quick = DirectoryStore.open(path, durability="normal")
    synced.clear()
    quick.commit(Snapshot(4), parent=store.head("main"))
    assert not synced and not at_link[-1]


def test_full_disk(tmp_path: Path) -> None:
    mount = tmp_path / "small disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk takes root")
    try:
        fill_disk(mount)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def fill_disk(mount: Path) -> None:
    store = new_store(mount / "s.zarr", durability="full")
    ref: Ref | None = None
    made: list[tuple[Ref, Snapshot]] = []
    array = np.random.default_rng(0).random(20_000)
    with pytest.raises(StoreFull, match="no space left") as caught:
        for i in range(100):
            snapshot = Snapshot(0, {"w": Window(array[:1], 0, 1, 9)}, {"a": array + i})
            ref = store.commit(snapshot, parent=ref)
            made.append((ref, snapshot))
    assert str(mount) in str(caught.value)
    assert made and store.head("main") == ref
    names = files(store.path)
    assert len({name.split("/")[1] for name in names if name.startswith("commits/")}) == len(made)
    assert not [name for name in names if ".tmp" in name or "partial" in name]
    for each, snapshot in made:
        assert_equal(store.load(each), snapshot)
    with pytest.raises(StoreFull):
        (mount / "rest").write_bytes(b"")  # an empty file still fits
        store.commit(Snapshot(0, arrays={"a": np.zeros(2**20)}), parent=ref)
    assert store.head("main") == ref
