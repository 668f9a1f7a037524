"""The memory store in a folder: the conformance tests, and the properties of folders."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from memory_store import Conflict, Corrupt, DirectoryStore, Locked, NotFound, Snapshot, StoreError
from tests.memory_store.conformance.place import Place
from tests.memory_store.conformance.store import StoreConformance
from tests.support.stores import FINGERPRINTS, ROOT, Stream, assert_equal, files, new_store, where


class Folder(Place):
    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, **options: Any) -> DirectoryStore:
        return DirectoryStore.create(self.path, durability="normal", **options)

    def open(self) -> DirectoryStore:
        return DirectoryStore.open(self.path, durability="normal")

    def files(self) -> dict[str, bytes]:
        return {key: data for key, data in files(self.path).items() if ".lock" not in key}

    def write(self, key: str, data: bytes | None) -> None:
        path = self.path / key
        path.unlink(missing_ok=True)  # overwriting a file in place makes ext4 wait for the disk
        if data is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


class TestFolder(StoreConformance):
    # Histories and damage are the work of the store, which `TestInMemory` tries longer.
    histories: ClassVar[int] = 1
    every: ClassVar[int] = 8

    @pytest.fixture
    def place(self, tmp_path: Path) -> Folder:
        return Folder(tmp_path / "s.zarr")


@pytest.mark.parametrize("damage", ["zeros", "short", "gone"])
def test_the_next_commit_repairs_damage(tmp_path: Path, damage: str) -> None:
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    stream.read(8, memory=8, compressed=2)
    first = store.commit(stream.snapshot(), parent=None)
    path = store.path / "commits" / first.commit.name
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        at = where(data, "memory/c.0.0.0.0")
        path.write_bytes(data[:at] + (bytes(16) + data[at + 16 :] if damage == "zeros" else b""))
    stream.read(4, memory=4, compressed=1)
    snapshot = stream.snapshot()
    second = store.commit(snapshot, parent=first)
    assert_equal(store.load(second), snapshot)
    with pytest.raises(Corrupt, match=first.commit.name):
        store.load(first)


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    store = new_store(tmp_path / "s.zarr")
    first = store.commit(Snapshot(0), parent=None)
    second = store.commit(Snapshot(0), parent=first)
    assert store.refs("main") == [first, second]
    with pytest.raises(Conflict):
        store._refs.publish("main", 1, first.commit, through=store._backend)
    assert store.refs("main") == [first, second]


# --- opening and creating


@pytest.mark.parametrize("name", ["plain", "with space", "Ünïcødé – 日本語", "a'b\"c;$d"])
def test_paths(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = new_store(Path("deep") / name, attributes={"title": name})
    monkeypatch.chdir("/")  # a relative path means what it meant when it was given
    ref = store.commit(Snapshot(0), parent=None)
    again = DirectoryStore.open(str(tmp_path / "deep" / name))
    assert again.head("main") == ref and again.session == store.session
    assert again.attributes == {"title": name} and again.fingerprints == FINGERPRINTS
    again.delete()
    assert list((tmp_path / "deep").iterdir()) == []
    with pytest.raises(NotFound, match="no session here"):
        DirectoryStore.open(tmp_path / "deep" / name)


def test_create_refuses_a_folder_in_use(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="durability = 'some'; allowed: 'full' or 'normal'"):
        new_store(tmp_path / "s.zarr", durability="some")
    new_store(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="a session already"):
        new_store(tmp_path / "s.zarr")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(StoreError, match="'file' already"):
        new_store(tmp_path / "other")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"):
        new_store(tmp_path / "file")
    # The remains of an interrupted creation are accepted.
    for folder in ("refs", "commits"):
        (tmp_path / "cut" / folder).mkdir(parents=True)
    (tmp_path / "cut" / ".tmp-1").touch()
    assert new_store(tmp_path / "cut").branches() == []


def test_two_writers(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.zarr")
    code = """
import sys
import threading
import tracemalloc
from memory_store import DirectoryStore, Locked
store = DirectoryStore.open(sys.argv[1])
with store.writer("main"), store.writer("side"):
    print("holding", flush=True)
    sys.stdin.read()
"""
    arguments = [sys.executable, "-c", code, str(tmp_path / "s.zarr")]
    holder = subprocess.Popen(
        arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        with pytest.raises(Locked, match=rf"'main' is being written by process {holder.pid} on "):
            store.writer().__enter__()
        store.commit(Snapshot(0), parent=None)  # the lock is advisory
        with pytest.raises(Locked):
            store.delete()
        holder.kill()
    with store.writer(), pytest.raises(Locked, match=str(os.getpid())):
        store.writer().__enter__()
    with store.writer():
        assert store.branches() == ["main"]


def test_reading_writes_nothing(tmp_path: Path) -> None:
    """Opening, loading and verifying change no file and no time stamp."""
    path = tmp_path / "s.zarr"
    store, stream = new_store(path), Stream()
    stream.read(8, memory=8)
    snapshot = stream.snapshot()
    ref = store.commit(snapshot, parent=None)
    before = {str(p): p.stat().st_mtime_ns for p in path.rglob("*")}
    reader = DirectoryStore.open(path)
    assert_equal(reader.load(reader.head("main") or ref), snapshot)
    reader.tokens(ref, 0, 8), reader.nearest("main", 8), reader.verify(), reader.size()
    assert {str(p): p.stat().st_mtime_ns for p in path.rglob("*")} == before


def test_a_user_with_read_permission_only(tmp_path_factory: pytest.TempPathFactory) -> None:
    code = """
import os, sys
import numpy
from memory_store import DirectoryStore, Snapshot, StoreError
if os.getuid() == 0:  # drop the privileges of root
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
store = DirectoryStore.open(sys.argv[1])
head = store.head("main")
assert store.load(head).tokens.tolist() == [1, 2, 3]
assert store.verify().commits == 1
def enter():
    with store.writer():
        pass
for write in (
    lambda: store.commit(Snapshot(3), parent=head),
    lambda: store.publish(head, branch="main"),
    lambda: store.publish(head, branch="side"),
    lambda: DirectoryStore.create(sys.argv[1] + "/new"),
    store.delete,
    enter,
):
    try:
        write()
    except StoreError as error:
        assert "not permitted" in str(error), error
    else:
        raise AssertionError("written")
"""
    base = tmp_path_factory.mktemp("read-only")
    path = base / "s.zarr"
    new_store(path).commit(Snapshot(3, tokens=np.array([1, 2, 3])), parent=None)
    before = files(path)
    for folder in [base, path, *(p for p in path.rglob("*") if p.is_dir())]:
        folder.chmod(0o555)
    for parent in base.parents:  # pytest's own folders are private to the user
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o111)
    try:
        arguments = [sys.executable, "-c", code, str(path)]
        subprocess.run(arguments, cwd=ROOT, check=True)
    finally:
        for folder in [base, path, *(p for p in path.rglob("*") if p.is_dir())]:
            folder.chmod(0o755)
    assert files(path) == before


def test_old_leftovers_are_removed(tmp_path: Path) -> None:
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    stream.read(4, memory=4)
    ref = store.commit(stream.snapshot(), parent=None)
    orphan = store.path / "commits" / f"{7:012d}-{'a' * 32}.zip"
    shutil.copy(store.path / "commits" / ref.commit.name, orphan)
    older = orphan.with_name(f"{7:012d}-{'b' * 32}")  # a folder of schema 1
    older.mkdir()
    (older / "zarr.json").write_bytes(b"{}")
    going_on = orphan.with_name(f"{7:012d}-{'c' * 32}")
    shutil.copytree(older, going_on)
    temporary = store.path / "refs" / "main" / ".tmp-1"
    temporary.write_bytes(b"half")
    assert store.gc().leftovers == 0  # another writer may still be writing them
    for path in [orphan, older, going_on, temporary]:
        for each in [path, *path.rglob("*")]:
            os.utime(each, (0, 0))
    (going_on / "late").write_bytes(b"")
    assert store.gc(dry_run=True).leftovers == store.gc().leftovers == 3
    assert not orphan.exists() and not older.exists() and not temporary.exists()
    assert going_on.exists()
    assert store.verify().commits == 1


def test_forks_wait_for_garbage_collection(tmp_path: Path) -> None:
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    stream.read(4, memory=4)
    ref = store.commit(stream.snapshot(), parent=None)
    other = DirectoryStore.open(store.path)
    with store._backend.commits_lock(exclusive=True):
        thread = threading.Thread(target=other.publish, args=(ref,), kwargs={"branch": "fork"})
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and store.branches() == ["main"]
    thread.join(10)
    assert not thread.is_alive() and store.branches() == ["fork", "main"]
    with store._backend.commits_lock(exclusive=False), other._backend.commits_lock(exclusive=False):
        pass
