"""The memory store when things go wrong: never silently wrong, and the last commit stays."""

import errno
import io
import os
import random
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import DirectoryStore, Ref, Snapshot, StoreError, StoreFull, Window
from memory_store.format.zip import header_size
from tests.memory_store.conformance import damages, same_json
from tests.support.stores import ROOT, Stream, assert_equal, assert_helpful, files, new_store


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


# --- damage to a commit's file


def regions(data: bytes) -> Iterator[tuple[str, int, int]]:
    """The parts of a commit's file: header and content of each member, the directory, its end."""
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
    """Two commits, of which the second needs the first for its window."""
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    made: list[tuple[Ref, Snapshot]] = []
    for _ in range(2):
        stream.read(4, memory=4, compressed=1)
        snapshot = replace(stream.snapshot(), arrays={})
        made.append((store.commit(snapshot, parent=made[-1][0] if made else None), snapshot))
    return store, made


def noticed(
    store: DirectoryStore, made: list[tuple[Ref, Snapshot]], name: str, data: bytes | None
) -> list[bool]:
    """Whether loading each notices a damaged file, which `verify` must; that is undone again."""
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


def test_every_byte_of_a_commit(two: tuple[DirectoryStore, list[tuple[Ref, Snapshot]]]) -> None:
    """A flipped bit is told wherever it is; what is loaded nevertheless is what was committed."""
    store, made = two
    name = f"commits/{made[0][0].commit.name}"
    data, chance, end = (store.path / name).read_bytes(), random.Random(0), 0
    seen = 0
    for region, begin, after in regions(data):
        assert begin == end  # nothing lies between the parts
        end = after
        step = 1 if after - begin < 120 else 5  # of documents, some
        for at in range(begin, after, step):
            flipped = bytearray(data)
            flipped[at] ^= 1 << chance.randrange(8)
            first, second = noticed(store, made, name, bytes(flipped))
            if region == "header of zarr.json":
                assert first or 14 <= at < 18  # its crc32 is for others
            elif region == "zarr.json":
                assert first and not second  # it has in its own all that it needs of this one
            elif region in ("memory/c.0.0.0.0", "compressed/c.0.0.0.0", "tokens/c.0"):
                assert first and second == (region != "tokens/c.0")
            else:
                assert not first and not second  # told by `verify` alone
            seen += 1
    assert end == len(data) and seen > 1200, seen
    store.verify()


def test_every_part_of_a_commit_cut_off_or_lost(
    two: tuple[DirectoryStore, list[tuple[Ref, Snapshot]]],
) -> None:
    """Cut off, lost, there twice, or full of zeros, from each part on or within."""
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
                noticed(store, made, name, damaged)
                tried += 1
        for other in (data + b"\0", data + data, bytes(len(data)), b"", None):
            noticed(store, made, name, other)
            tried += 1
    store.verify()
    assert tried > 250


def test_damage_to_a_session_of_folders(tmp_path: Path) -> None:
    """The first schema's guards: every file flipped, cut off, made longer or removed."""
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
            noticed(store, some, name, damaged)
            kind = re.sub(r"/c\.[0-9.]*$", "/c", re.sub(r"/[^/]*(?=/|\.json$)", "", name))
            tried[kind] = tried.get(kind, 0) + 1
    store.verify()
    assert tried.keys() == {"commits/c", "commits.json", "refs.json", "session.json"}
    assert tried["commits/c"] > 200 and tried["commits.json"] > 250 and tried["refs.json"] > 50


# --- errors in the middle of a commit


class Interrupted(BaseException):
    """Like KeyboardInterrupt, without stopping the tests."""


CALLS = ("open", "write", "writev", "fsync", "mkdir", "rename", "link", "close")


def failing(
    monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException, *, done: str
) -> Callable[[], int]:
    """Have the `at`-th system call raise before it has done its work, after it, or halfway."""
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
        # Whether the disk keeps its word is not tested here, so it need not be kept waiting.
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
def test_an_error_anywhere_in_a_commit(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call fails: the branch is at the old commit or at the new one, nothing else."""
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
            # What was published stays, though the writer was not told: it will see a conflict.
            (store.path / "commits" / head.commit.name).unlink()
            (store.path / "refs" / "main" / f"{head.seq:012d}.json").unlink()
        if kind == "full" and head == parent:
            assert isinstance(raised, StoreFull) and "Free some space" in str(raised)
    assert outcomes["old"] >= 11 and outcomes["new"] >= 3
    assert raised is None
    store.verify()


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_a_disk_that_takes_and_gives_little_at_a_time(
    tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Systems may write, and read, less than they were asked to."""
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
    file = path / "commits" / first.commit.name
    ref = path / "refs" / "main" / "000000000000.json"
    assert file.is_file() and not missing([file, ref], linked)
    assert not missing([path / "commits", path / "refs", path], linked)
    assert not missing([path / "refs" / "main"], synced)

    at_link.clear()
    synced.clear()
    second = store.commit(Snapshot(4), parent=first)  # where all folders are there already
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
