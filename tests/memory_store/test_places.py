"""Folders with unusual names, and folders that disappear, are unreadable or are read-only."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import DirectoryStore, Locked, NotFound, Snapshot, StoreError, places
from tests.support.stores import ROOT, Stream, assert_equal, assert_helpful, new_store

NAMES = [
    "two\nlines",
    "tab\tand bell\a",
    "-rf",
    "a: b. Restore",
    "日本語 🐋 e\u0301",
    "'\"`$(x);&|*?[~",
    "not \udcff Unicode",
    "n" * 255,
    ". ",
]


@pytest.mark.parametrize("name", NAMES)
def test_unusual_folder_names(tmp_path: Path, name: str) -> None:
    store, stream = new_store(tmp_path / name, durability="full"), Stream()
    stream.read(4, memory=4)
    first = stream.snapshot()
    stream.read(4, memory=4)
    second = replace(stream.snapshot(), arrays={"A" * 128: np.ones(3)})
    ref = store.commit(first, parent=None)
    store.publish(ref, branch="b" * 128)
    ref = store.commit(second, parent=ref)
    again = DirectoryStore.open(tmp_path / name)
    assert_equal(again.load(ref), second)
    assert again.branches() == ["b" * 128, "main"]
    with again.writer(), pytest.raises(StoreError) as caught:
        again.writer().__enter__()
    assert_helpful(caught.value)
    again.verify()
    next((tmp_path / name).rglob("*.zip")).unlink()
    with pytest.raises(StoreError) as caught:
        again.verify()
    assert str(tmp_path / name) in str(caught.value)
    assert_helpful(caught.value)
    again.delete()
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_too_long(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="too long") as caught:
        new_store(tmp_path / ("n" * 256))
    assert_helpful(caught.value)


@pytest.mark.parametrize(
    ("length", "branch"),
    [
        (4045, "main"),  # a ref's temporary name fits, a commit's does not
        (4000, "b" * 128),  # the branch's folder does not
        (3940, "b" * 128),  # nor a ref's temporary name in it
    ],
)
def test_paths_that_are_too_long(tmp_path: Path, length: int, branch: str) -> None:
    """A commit with a path that is too long leaves nothing."""
    deep = tmp_path
    while len(str(deep)) < length - 300:
        deep = deep / ("d" * 200)
    while len(str(deep)) < length:
        deep = deep / ("d" * min(200, length - len(str(deep)) - 1))
    assert len(str(deep)) == length
    store = new_store(deep)  # short enough, but the paths in it are too long
    with pytest.raises(StoreError, match="too long") as caught:
        store.commit(Snapshot(0, arrays={"a": np.ones(3)}), parent=None, branch=branch)
    assert_helpful(caught.value)
    left = [path for path in deep.rglob("*") if path.is_file()]
    assert left == [deep / "session.json"]
    if branch == "main":
        return
    ref = store.commit(Snapshot(0, arrays={"a" * 100: np.ones(3)}), parent=None)
    assert store.load(ref).arrays.keys() == {"a" * 100}  # array names are not paths


def test_a_deleted_folder(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.zarr")
    ref = store.commit(Snapshot(0), parent=None)
    shutil.rmtree(store.path)
    for action in (
        lambda: store.load(ref),
        lambda: store.head("main"),
        lambda: store.refs("main"),
        lambda: store.branches(),
        lambda: store.commit(Snapshot(0), parent=ref),
        lambda: store.commit(Snapshot(0), parent=None),
        lambda: store.publish(ref, branch="main"),
        lambda: store.writer().__enter__(),
        lambda: store.verify(),
        lambda: store.nearest("main", 0),
        lambda: store.delete(),
    ):
        with pytest.raises(StoreError) as caught:
            action()
        assert_helpful(caught.value)
    assert list(tmp_path.iterdir()) == []


def vanishing(monkeypatch: pytest.MonkeyPatch, at: int, vanish: Callable[[], None]) -> list[int]:
    """Call `vanish` before the `at`-th call that writes; returns the number of calls so far."""
    calls = [0]

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                vanish()
            return real(*arguments, **options)

        return call

    for name in ("open", "write", "writev", "mkdir", "link", "rename", "unlink"):
        monkeypatch.setattr(os, name, wrapped(getattr(os, name)))
    return calls


def test_a_folder_that_disappears_during_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder disappears and returns: the branch is at the old commit or at the new one."""
    path, away, move = tmp_path / "s.zarr", tmp_path / "away", os.rename
    store, stream = new_store(path), Stream()
    stream.read(4, memory=4)
    parent = store.commit(stream.snapshot(), parent=None)
    stream.read(4, memory=4)
    snapshot = replace(stream.snapshot(), arrays={})
    refused = done = 0
    for at in range(1, 1000):
        error: StoreError | None = None
        with monkeypatch.context() as patch:
            calls = vanishing(patch, at, lambda: move(path, away))
            try:
                ref = store.commit(snapshot, parent=parent)
            except StoreError as caught:
                error = caught
        if calls[0] < at:
            break
        shutil.rmtree(path, ignore_errors=True)
        move(away, path)
        store = DirectoryStore.open(path)
        head = store.head("main")
        store.verify()
        if error:
            assert_helpful(error)
            refused += 1
        if head == parent:
            assert error
            continue
        done += 1
        assert head and head.seq == 1 and (error or head == ref)
        assert_equal(store.load(head), snapshot)
        (path / "refs" / "main" / "000000000001.json").unlink()
    assert refused >= 11 and done >= 2 and not error
    assert_equal(store.load(ref), snapshot)


NOBODY = """
import os, sys
sys.path.insert(0, sys.argv[2])
import numpy
from memory_store import DirectoryStore, NotFound, StoreError
from tests.support.stores import assert_helpful
if os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    store = DirectoryStore.open(sys.argv[1])
    store.branches(), store.head("main"), store.verify()
except StoreError as error:
    assert "not permitted" in str(error), error
    assert str(error).endswith("to a folder you own."), error
else:
    raise AssertionError("read")
"""


@pytest.mark.parametrize(
    ("old", "closed"),
    [
        *((False, name) for name in ("..", ".", "session.json", "refs", "refs/main", "commits")),
        *((False, name) for name in ("refs/main/*0.json", "commits/*.zip")),
        *((True, f"commits/*{name}") for name in ("", "/zarr.json", "/tokens", "/tokens/c.0")),
        (True, "commits/*/tokens/zarr.json"),
    ],
)
def test_unreadable_folders_and_files(old: bool, closed: str) -> None:
    """A missing permission is reported as such, not as a missing file."""
    with tempfile.TemporaryDirectory() as base:  # pytest's folders are private to the user
        os.chmod(base, 0o755)
        store = new_store(Path(base) / "home" / "s.zarr")
        store.commit(Snapshot(3, tokens=np.arange(3)), parent=None)
        if old:  # commits of schema 1 are folders
            shutil.rmtree(store.path)
            shutil.copytree(ROOT / "tests" / "data" / "schema-1.zarr", store.path)
        path = next(store.path.glob(closed)) if "*" in closed else store.path / closed
        os.chmod(path, 0)
        try:
            command = [sys.executable, "-c", NOBODY, str(store.path), str(ROOT)]
            subprocess.run(command, cwd=ROOT, check=True)
        finally:
            os.chmod(path, 0o755)


def test_a_read_only_filesystem(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk takes root")
    try:
        store = new_store(mount / "s.zarr")
        ref = store.commit(Snapshot(3, tokens=np.arange(3)), parent=None)
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        store = DirectoryStore.open(mount / "s.zarr")
        assert store.load(ref).position == 3
        store.verify()
        for action in (
            lambda: store.commit(Snapshot(3), parent=ref),
            lambda: store.publish(ref, branch="side"),
            lambda: store.writer().__enter__(),
            lambda: store.delete(),
            lambda: new_store(mount / "t.zarr"),
        ):
            with pytest.raises(StoreError, match="not permitted") as caught:
                action()
            assert_helpful(caught.value)
        assert store.head("main") == ref
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_paths_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotFound) as caught:
        DirectoryStore.open(tmp_path / "file" / "s.zarr")
    assert_helpful(caught.value)


def test_rename(tmp_path: Path) -> None:
    store, stream = new_store(tmp_path / "a.zarr"), Stream()
    stream.read(4, memory=4)
    snapshot = stream.snapshot()
    ref = store.commit(snapshot, parent=None)
    store.publish(ref, branch="side")
    with store.writer("side"), pytest.raises(Locked):
        places.rename(tmp_path / "a.zarr", tmp_path / "b.zarr")
    (tmp_path / "c.zarr").mkdir()
    (tmp_path / "c.zarr" / "notes.txt").touch()  # an empty folder is free
    with pytest.raises(StoreError, match="already") as caught:
        places.rename(tmp_path / "a.zarr", tmp_path / "c.zarr")
    assert_helpful(caught.value)
    places.rename(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert places.session_names(tmp_path) == ["b", "c"]
    again = places.open_store(tmp_path / "b.zarr")
    assert again.session == store.session and again.branches() == ["main", "side"]
    assert_equal(again.load(ref), snapshot)
    again.verify()
    with pytest.raises(NotFound):
        places.rename(tmp_path / "a.zarr", tmp_path / "d.zarr")
