"""The memory store when things go wrong: never silently wrong, and the last commit stays."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memory_store.files
from memory_store import DirectoryStore, Ref, Snapshot, StoreError, StoreFull, Window
from tests.stores import ROOT, Stream, assert_equal, files, new_store


def test_files_of_another_session(tmp_path: Path) -> None:
    """Sound ones, in the place of this session's own."""
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


# --- errors in the middle of a commit


class Interrupted(BaseException):
    """Like KeyboardInterrupt, without stopping the tests."""


CALLS = ("open", "write", "writev", "fsync", "mkdir", "rename", "link", "close")


def failing(
    monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException, *, after: bool
) -> Callable[[], int]:
    """Have the `at`-th system call raise, before or after it has done its work."""
    count = 0

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count != at + 1:
                return real(*arguments, **options)
            if after:
                real(*arguments, **options)
            raise error

        return call

    for name in CALLS:
        # Whether the disk keeps its word is not tested here, so it need not be kept waiting.
        real = (lambda descriptor: None) if name == "fsync" else getattr(os, name)
        monkeypatch.setattr(os, name, wrapped(real))
    return lambda: count


@pytest.mark.parametrize("kind", ["refused", "full", "interrupted", "interrupted after"])
def test_an_error_anywhere_in_a_commit(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call fails: the branch is at the old commit or at the new one, nothing else."""
    monkeypatch.setattr(memory_store.files, "THREADS", 1)  # so that calls come in one order
    error: BaseException
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
            calls = failing(patch, at, error, after=kind.endswith("after"))
            raised: BaseException | None = None
            try:
                store.commit(new, parent=parent)
            except (StoreError, Interrupted) as caught:
                raised = caught
            done = calls()
        if done <= at:
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
            # What was published stays, though the writer was not told: it will see a conflict.
            shutil.rmtree(store.path / "commits" / head.commit.name)
            (store.path / "refs" / "main" / f"{head.seq:012d}.json").unlink()
        if kind == "full" and head == parent:
            assert isinstance(raised, StoreFull) and "Free some space" in str(raised)
    assert outcomes["old"] > 25 and outcomes["new"] >= 1
    assert raised is None
    store.verify()


def test_the_disk_holds_all_before_the_ref(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published has been synced when complete, and so has every folder on the way."""
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
    folder = path / "commits" / first.commit.name
    ref = path / "refs" / "main" / "000000000000.json"
    assert not missing([folder, *folder.rglob("*"), ref], linked)
    assert not missing([path / "commits", path / "refs", path], linked)
    assert not missing([path / "refs" / "main"], synced)

    at_link.clear()
    store.publish(first, branch="main")
    assert not missing([path / "refs" / "main" / "000000000001.json"], at_link.pop())
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
        (mount / "rest").write_bytes(b"")  # an empty file still fits, or the disk is not ours
        store.commit(Snapshot(0, arrays={"a": np.zeros(2**20)}), parent=ref)
    assert store.head("main") == ref


# --- several processes


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


RACE = """
import sys
import numpy as np
from memory_store import Conflict, DirectoryStore, Snapshot, Window
path, me = sys.argv[1], int(sys.argv[2])
store, made = DirectoryStore.open(path), 0
while made < 12:
    head = store.head("main")
    past = store.load(head)
    window = past.windows["w"]
    data = np.append(window.data, np.int64(me * 1000 + made))[-8:]
    position = past.position + 1
    snapshot = Snapshot(
        position, {"w": Window(data, 0, window.end + 1, 8)}, tokens=np.array([me * 1000 + made])
    )
    try:
        ref = store.commit(snapshot, parent=head)
    except Conflict:
        continue
    made += 1
    print(ref.seq, ref.commit.name, me * 1000 + made - 1, flush=True)
"""


def test_racing_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    store = new_store(path)
    empty = Window(np.zeros(0, np.int64), 0, 0, 8)
    store.commit(Snapshot(0, {"w": empty}), parent=None)
    writers = [run(RACE, path, i) for i in range(4)]
    acknowledged = {}
    for writer in writers:
        out, _ = writer.communicate(timeout=120)
        assert writer.returncode == 0
        for line in out.splitlines():
            seq, name, token = line.split()
            acknowledged[int(seq)] = (name, int(token))
    refs = store.refs("main")
    assert [ref.seq for ref in refs] == list(range(49))
    assert acknowledged.keys() == set(range(1, 49))
    assert {ref.seq: ref.commit.name for ref in refs[1:]} == {
        seq: name for seq, (name, _) in acknowledged.items()
    }
    # Each went on from the one before: the log holds every token, in the order of the refs.
    log = [acknowledged[seq][1] for seq in range(1, 49)]
    assert store.tokens(refs[-1], 0, 48).tolist() == log
    assert store.load(refs[-1]).windows["w"].data.tolist() == log[-8:]
    assert len(list((path / "commits").iterdir())) == 49  # losers leave nothing
    store.verify()


KILLED = """
import os, random, signal, sys, time
import numpy as np
from memory_store import DirectoryStore, Snapshot, Window
path, times = sys.argv[1], int(sys.argv[2])
rng = random.Random(0)

def snapshot(position):
    slots = np.arange(position * 500).reshape(1, -1)[:, -20_000:]
    return Snapshot(
        position,
        {"w": Window(slots, 1, position * 500, 20_000)},
        tokens=np.array([position] if position else [], int),
    )

def work(pipe):
    store = DirectoryStore.open(path)
    head = store.head("main")
    while True:
        head = store.commit(snapshot(head.position + 1 if head else 0), parent=head)
        os.write(pipe, b"%d\\n" % head.position)

for _ in range(times):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        work(write)
    os.close(write)
    time.sleep(rng.uniform(0.002, 0.15))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    acknowledged = open(read).read().split()
    store = DirectoryStore.open(path)
    head = store.head("main")
    last = int(acknowledged[-1]) if acknowledged else -1
    reached = head.position if head else -1
    assert last <= reached, (last, reached)
    if head:
        found, expected = store.load(head), snapshot(head.position)
        assert np.array_equal(found.windows["w"].data, expected.windows["w"].data)
        assert store.tokens(head, 0, reached).tolist() == list(range(1, reached + 1))
    print(last, reached, flush=True)
store.verify()
"""


def test_killed_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    new_store(path, durability="full")
    process = run(KILLED, path, 20)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    rounds = [tuple(map(int, line.split())) for line in out.splitlines()]
    assert len(rounds) == 20
    assert rounds[-1][1] >= 5  # commits were made, and each round went on where one had ended
