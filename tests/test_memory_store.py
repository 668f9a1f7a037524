"""The memory store: what is committed is loaded, bit for bit, and every rule is enforced."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import (
    Commit,
    Conflict,
    Corrupt,
    DirectoryStore,
    Locked,
    Mismatch,
    NotFound,
    Ref,
    Snapshot,
    StoreError,
    Window,
)
from memory_store.manifest import MAX_WINDOW
from memory_store.zarrformat import FILL
from tests.stores import (
    FINGERPRINTS,
    ROOT,
    Stream,
    assert_equal,
    assert_same_bits,
    files,
    new_store,
)

# --- what is committed is loaded


@pytest.mark.parametrize("seed", range(8))
def test_any_history_loads_bit_for_bit(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    store, stream = new_store(tmp_path / "s.zarr"), Stream(seed)
    heads: dict[str, Ref | None] = {"main": None}
    committed: dict[Commit, Snapshot] = {}
    parents: dict[Commit, Commit | None] = {}
    branch = "main"
    for step in range(45):
        action = rng.choice(["commit", "rewind", "fork", "switch"], p=[0.85, 0.05, 0.05, 0.05])
        parent = heads[branch]
        if action == "commit" or not committed or parent is None:
            tokens = int(rng.integers(0, 9))
            most = int(rng.choice([0, 2, 4, 40]))  # none, a few, or more than the window holds
            stream.read(tokens, memory=most, compressed=most // 4)
            if rng.random() < 0.05:  # a caller that breaks the promise that slots never change
                stream.window["memory"] = stream.window["memory"] ^ 1
            if rng.random() < 0.05:  # and one that takes back slots
                stream.window["compressed"] = stream.window["compressed"][:, :, :-1]
                stream.end["compressed"] = max(0, stream.end["compressed"] - 1)
            snapshot = stream.snapshot()
            if rng.random() < 0.1:
                kept = {"compressed": snapshot.windows["compressed"]}
                snapshot = replace(snapshot, windows=kept)
            ref = store.commit(snapshot, branch=branch, parent=parent)
            committed[ref.commit] = snapshot
            parents[ref.commit] = parent.commit if parent else None
            heads[branch] = ref
        else:
            if action == "switch":
                branch = str(rng.choice(list(heads)))
            else:
                branch = branch if action == "rewind" else f"fork-{step}"
                target = list(committed)[int(rng.integers(len(committed)))]
                heads[branch] = store.publish(target, branch=branch)
            head = heads[branch]
            assert head is not None
            stream.resume(store.load(head))

    fresh = DirectoryStore.open(tmp_path / "s.zarr")
    for name, head in heads.items():
        assert fresh.head(name) == head
    for commit, snapshot in committed.items():
        assert_equal(fresh.load(commit), snapshot)

        line = [commit]
        while (back := parents[line[-1]]) is not None:
            line.append(back)
        log = np.concatenate([committed[each].tokens for each in reversed(line)])
        assert_same_bits(fresh.tokens(commit, 0, commit.position), log)
        start, stop = sorted(int(n) for n in rng.integers(0, commit.position + 1, 2))
        assert_same_bits(fresh.tokens(commit, start, stop), log[start:stop])
        position = int(rng.integers(line[-1].position, commit.position + 1))
        expected = next(each for each in line if each.position <= position)
        assert fresh.nearest(commit, position) == expected
    checked = fresh.verify()
    assert checked.refs == sum(len(fresh.refs(name)) for name in heads)
    assert checked.commits >= len({ref.commit for ref in heads.values() if ref})


@pytest.mark.parametrize("dtype", FILL)
def test_every_dtype_and_layout(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        raw = rng.integers(0, 2 if dtype == "bool" else 256, size, dtype=np.uint8)
        return raw.view(dtype).reshape(shape)  # floats: NaNs with all kinds of payload, −0

    arrays = {
        "scalar": noise(),
        "one": noise(7),
        "none": noise(0, 3),
        "transposed": noise(4, 5).T,
        "strided": noise(9, 6)[::2, ::-1],
        "big-endian": noise(6).view(np.dtype(dtype).newbyteorder(">")),
        "read-only": noise(3),
    }
    arrays["read-only"].flags.writeable = False
    data = noise(6, 20)
    store, ref = new_store(tmp_path / "s.zarr"), None
    for end in (8, 9, 15):
        windows = {
            "first": Window(data.T[end - 8 : end], 0, end, 8),
            "last": Window(data[:, end - 8 : end], 1, end, 8),
            "line": Window(data[0, end - 8 : end], 0, end, 8),
        }
        snapshot = Snapshot(end, windows, arrays, np.zeros(end - (ref.position if ref else 0), int))
        ref = store.commit(snapshot, parent=ref)
        assert_equal(store.load(ref), replace(snapshot, tokens=snapshot.tokens.astype(np.int32)))


def test_large_arrays_are_split(tmp_path: Path) -> None:
    data = np.arange(5 * 2_000_000, dtype=np.float32).reshape(5, 2_000_000)  # 40 MB
    store = new_store(tmp_path / "s.zarr")
    ref = store.commit(Snapshot(0, {"w": Window(data, 1, 2_000_000, 2_000_000)}), parent=None)
    chunks = sorted(path.name for path in (tmp_path / "s.zarr").rglob("w/c.*"))
    assert chunks == ["c.0.0", "c.1.0"]  # three rows each, the last padded
    assert_same_bits(store.load(ref).windows["w"].data, data)
    assert_same_bits(np.asarray(store.group(ref)["w"]), data)
    store.verify()


def test_only_new_slots_are_written(tmp_path: Path) -> None:
    store, stream, ref = new_store(tmp_path / "s.zarr"), Stream(memory=64, compressed=32), None
    written, windows = [], []
    for _ in range(45):
        stream.read(4, memory=4, compressed=1)
        before = store.size()
        ref = store.commit(stream.snapshot(), parent=ref)
        group = store.group(ref)
        assert store.size() > before
        written.append((group["memory"].shape[2], group["compressed"].shape[2]))
        windows.append(len(group.attrs["window"]))
    keyframes = [i for i, count in enumerate(windows) if count == 0]
    assert keyframes == [0, 16, 32]
    assert [written[i] for i in keyframes] == [(4, 1), (64, 17), (64, 32)]
    assert {written[i] for i in range(45) if i not in keyframes} == {(4, 1)}
    assert max(windows) == MAX_WINDOW - 1


def test_commits_without_new_slots_do_not_lengthen_the_window(tmp_path: Path) -> None:
    store, stream, ref = new_store(tmp_path / "s.zarr"), Stream(), None
    stream.read(8, memory=8, compressed=2)
    for _ in range(40):
        ref = store.commit(stream.snapshot(), parent=ref)
        stream.read(1)
    assert len(store.group(ref).attrs["window"]) == 1
    assert store.group(ref)["memory"].shape == (3, 1, 0, 4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slots_are_told_apart_along_any_axis(tmp_path: Path, axis: int) -> None:
    """What the parent has is not written again; what has changed in it is."""
    shape = [3, 5, 4]
    shape[axis] = 20
    stream = np.moveaxis(np.random.default_rng(0).random(shape), axis, 0)
    store, ref = new_store(tmp_path / "s.zarr"), None
    for end, changed, written in (
        (8, None, 8),
        (11, None, 3),
        (13, None, 2),
        (14, 13, 8),  # the slot before the new one: the newest piece
        (15, None, 1),
        (16, 9, 8),  # one that fell to the middle of the keyframe
        (17, 11, 8),
        (18, None, 1),
    ):
        if changed is not None:
            stream[changed - 1] += 1
        data = np.moveaxis(stream[end - 8 : end], 0, axis)
        snapshot = Snapshot(0, {"w": Window(data, axis, end, 8)})
        ref = store.commit(snapshot, parent=ref)
        assert store.group(ref)["w"].shape[axis] == written
        assert_equal(store.load(ref), snapshot)


@pytest.mark.parametrize("damage", ["zeros", "short", "gone"])
def test_damage_ends_at_the_next_commit(tmp_path: Path, damage: str) -> None:
    store, stream = new_store(tmp_path / "s.zarr"), Stream()
    stream.read(8, memory=8, compressed=2)
    first = store.commit(stream.snapshot(), parent=None)
    chunk = next((tmp_path / "s.zarr").glob("commits/*/memory/c.*"))
    size = len(chunk.read_bytes())
    chunk.unlink()
    if damage != "gone":
        chunk.write_bytes(bytes(size if damage == "zeros" else size // 2))
    stream.read(4, memory=4, compressed=1)
    snapshot = stream.snapshot()
    second = store.commit(snapshot, parent=first)
    assert_equal(store.load(second), snapshot)
    with pytest.raises(Corrupt, match="memory"):
        store.load(first)


# --- branches


def test_rewind_and_fork_copy_nothing(tmp_path: Path) -> None:
    store, stream, refs = new_store(tmp_path / "s.zarr"), Stream(), []
    for _ in range(3):
        stream.read(4, memory=4)
        refs.append(store.commit(stream.snapshot(), parent=refs[-1] if refs else None))
    before = files(tmp_path / "s.zarr")
    back = store.publish(refs[0], branch="main")
    fork = store.publish(refs[1].commit, branch="side")
    added = files(tmp_path / "s.zarr").keys() - before.keys()
    assert added == {"refs/main/000000000003.json", "refs/side/000000000000.json"}

    assert [ref.seq for ref in store.refs("main")] == [0, 1, 2, 3]
    assert store.refs("main") == [*refs, back] and back.commit == refs[0].commit
    assert store.head("side") == fork and fork.commit == refs[1].commit
    assert store.branches() == ["main", "side"]
    assert store.nearest("side", 5) == refs[0].commit
    # Both go on from there.
    for branch, parent in (("main", back), ("side", fork)):
        stream.resume(store.load(parent))
        stream.read(2, memory=2)
        snapshot = stream.snapshot()
        assert_equal(store.load(store.commit(snapshot, branch=branch, parent=parent)), snapshot)


def test_a_writer_that_is_behind_gets_a_conflict(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.zarr")
    first = store.commit(Snapshot(0), parent=None)
    second = store.commit(Snapshot(0), parent=first)
    before = files(tmp_path / "s.zarr")
    for stale in (None, first, replace(second, commit=first.commit)):
        with pytest.raises(Conflict, match=r"branch 'main' is at ref 1 .* fork"):
            store.commit(Snapshot(0), parent=stale)
    with pytest.raises(ValueError, match="fork first"):
        store.commit(Snapshot(0), branch="side", parent=second)
    assert files(tmp_path / "s.zarr") == before


def test_a_lost_race_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer publishes between this one's first look and its link."""
    store, rival = new_store(tmp_path / "s.zarr"), DirectoryStore.open(tmp_path / "s.zarr")
    first = store.commit(Snapshot(0), parent=None)
    real, won = os.rename, []

    def rename(source: Any, target: Any) -> None:
        monkeypatch.setattr(os, "rename", real)
        won.append(rival.commit(Snapshot(0), parent=first))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(Conflict):
        store.commit(Snapshot(0), parent=first)
    assert store.refs("main") == [first, *won]
    assert len(list((tmp_path / "s.zarr" / "commits").iterdir())) == 2
    assert not [name for name in files(tmp_path / "s.zarr") if ".tmp" in name]


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


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../x", "a b", "é", "a\n", "x" * 200]
)
def test_branch_names(tmp_path: Path, name: str) -> None:
    store = new_store(tmp_path / "s.zarr")
    ref = store.commit(Snapshot(0), parent=None)
    before = files(tmp_path)
    for use in (
        lambda: store.commit(Snapshot(0), branch=name, parent=None),
        lambda: store.publish(ref, branch=name),
        lambda: store.head(name),
        lambda: store.refs(name),
        lambda: store.writer(name),
    ):
        with pytest.raises(ValueError, match="a branch name has"):
            use()
    assert files(tmp_path) == before


def test_walks_are_short(tmp_path: Path) -> None:
    store, ref = new_store(tmp_path / "s.zarr"), None
    refs = []
    for i in range(200):
        begin = ref.position if ref else 0
        position = begin + i % 3
        tokens = np.arange(begin, position, dtype=np.int32)
        ref = store.commit(Snapshot(position, tokens=tokens), parent=ref)
        refs.append(ref)
    assert ref is not None
    fresh, reads = DirectoryStore.open(tmp_path / "s.zarr"), 0
    real = fresh._commits.manifest

    def counted(commit: Commit) -> Any:
        nonlocal reads
        reads += 1
        return real(commit)

    fresh._commits.manifest = counted  # type: ignore[assignment]
    for position in range(0, ref.position, 7):
        reads = 0
        expected = next(r for r in reversed(refs) if r.position <= position)
        assert fresh.nearest("main", position) == expected.commit
        assert fresh.tokens(ref, position, position + 1).tolist() == [position]
        assert reads <= 2 * 3 * math.log2(200)
    assert fresh.tokens(ref, 0, ref.position).tolist() == list(range(ref.position))


def test_what_is_not_there(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.zarr")
    assert store.branches() == [] and store.head("main") is None and store.refs("main") == []
    with pytest.raises(NotFound, match="no branch 'main'"):
        store.nearest("main", 3)
    late = store.commit(
        Snapshot(10, tokens=np.arange(4)), parent=None
    )  # read 6 before it was bound
    assert store.tokens(late, 6, 10).tolist() == [0, 1, 2, 3]
    with pytest.raises(NotFound, match="begins at 6"):
        store.tokens(late, 5, 10)
    with pytest.raises(NotFound, match="the first is at 10"):
        store.nearest(late, 9)
    for start, stop in ((-1, 2), (3, 2), (0, 11)):
        with pytest.raises(ValueError, match="read 10"):
            store.tokens(late, start, stop)


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


def test_create_takes_no_folder_that_is_in_use(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'full' or 'normal', not 'some'"):
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
    # What a creation that was cut short has left is no hindrance.
    for folder in ("refs", "commits"):
        (tmp_path / "cut" / folder).mkdir(parents=True)
    (tmp_path / "cut" / ".tmp-1").touch()
    assert new_store(tmp_path / "cut").branches() == []


def test_fingerprints(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.zarr")
    first = store.commit(Snapshot(0), parent=None)
    other = {**FINGERPRINTS, "model": "x" * 64}
    second = store.commit(Snapshot(0), parent=first, fingerprints=other)
    assert store.fingerprints_of(first) == FINGERPRINTS
    assert store.fingerprints_of(second) == other
    store.load(first, fingerprints=FINGERPRINTS)
    store.load(first, fingerprints={"model": "m" * 64})
    store.load(second, fingerprints=FINGERPRINTS, allow_mismatch=True)
    with pytest.raises(Mismatch, match=r"model is m+, but x+ is recorded") as caught:
        store.load(second, fingerprints=FINGERPRINTS)
    assert caught.value.differing == {"model": ("x" * 64, "m" * 64)}
    with pytest.raises(Mismatch, match="adapter is a, but nothing is recorded"):
        store.load(first, fingerprints={"adapter": "a"})
    with pytest.raises(ValueError, match="text to text"):
        store.load(first, fingerprints={"model": 3})  # type: ignore[dict-item]


def test_two_writers(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s.zarr")
    code = """
import sys
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
        store.commit(Snapshot(0), parent=None)  # a courtesy, no guard
        with pytest.raises(Locked):
            store.delete()
        holder.kill()
    with store.writer(), pytest.raises(Locked, match=str(os.getpid())):
        store.writer().__enter__()
    with store.writer():
        assert store.branches() == ["main"]


def test_reading_writes_nothing(tmp_path: Path) -> None:
    """Nor does a user who may only read have to."""
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


def test_a_user_who_may_only_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    code = """
import os, sys
import numpy
from memory_store import DirectoryStore, Snapshot, StoreError
if os.getuid() == 0:  # may do anything: become nobody
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
