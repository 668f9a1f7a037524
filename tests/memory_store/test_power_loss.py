"""Power loss after every step: acknowledged data survives; other data is complete or absent.

The steps are recorded once. Then the folder is set to every state that a crash after each of the
steps may leave.
"""

import os
import random
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import DirectoryStore, LogRows, NotFound, Ref, Snapshot, StoreError
from tests.memory_store.crashes import (
    Disk,
    Image,
    Killed,
    Names,
    Recorder,
    Site,
    Step,
    Sync,
    crashes,
)
from tests.support.stores import (
    Stream,
    assert_equal,
    assert_helpful,
    described,
    new_store,
    rows_of,
)

HOME = Path("deep") / "er" / "s.zarr"  # the parents are created, and must be durable as well


@dataclass
class Acknowledged:
    """The operations that the store acknowledged, and the number of steps before each."""

    recorder: Recorder
    created: int | None = None
    refs: dict[str, list[tuple[int, Ref]]] = field(default_factory=dict)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)  # by the commit's name
    logs: dict[str, list[int]] = field(default_factory=dict)
    rows: dict[str, dict[int, Any]] = field(default_factory=dict)  # of the log "keys"

    def create(self, durability: str) -> DirectoryStore:
        store = new_store(Path(self.recorder.root) / HOME, durability=durability)
        self.created = len(self.recorder.steps)
        return store

    def commit(
        self, store: DirectoryStore, stream: Stream, parent: Ref | None, branch: str = "main"
    ) -> Ref:
        stream.read(3, memory=3, compressed=1)
        snapshot = replace(stream.snapshot(), arrays={"usage": np.arange(stream.position)})
        rows = LogRows(stream.position - 3, stream.rng.integers(-9, 9, (3, 40), np.int8))
        if parent is None or parent.seq:  # some commits bring none
            snapshot = replace(snapshot, logs={"keys": rows})
        before = self.logs[parent.commit.name] if parent else []
        ref = store.commit(snapshot, parent=parent, branch=branch)
        self.snapshots[ref.commit.name] = snapshot
        self.logs[ref.commit.name] = [*before, *snapshot.tokens.tolist()]
        self.rows[ref.commit.name] = {
            **(self.rows[parent.commit.name] if parent else {}),
            **{
                log.start + i: described(row)
                for log in snapshot.logs.values()
                for i, row in enumerate(log.data)
            },
        }
        return self.moved(ref)

    def publish(self, store: DirectoryStore, target: Ref, branch: str) -> Ref:
        return self.moved(store.publish(target, branch=branch))

    def promises(self, done: int) -> int:
        """The number of operations that were acknowledged in the first `done` steps."""
        acknowledged = [self.created, *(at for refs in self.refs.values() for at, _ in refs)]
        return sum(at is not None and at <= done for at in acknowledged)

    def moved(self, ref: Ref) -> Ref:
        self.refs.setdefault(ref.branch, []).append((len(self.recorder.steps), ref))
        return ref


def live(acked: Acknowledged, durability: str) -> None:
    """Commits, a fork, a rewind, and another process that continues."""
    store, stream = acked.create(durability), Stream(memory=6, compressed=2)
    with store.writer():
        first = acked.commit(store, stream, None)
        second = acked.commit(store, stream, first)
    store = DirectoryStore.open(store.path, durability=durability)  # type: ignore[arg-type]
    third = acked.commit(store, stream, second)
    fork = acked.publish(store, second, "side")
    fourth = acked.publish(store, first, "main")
    other = Stream(1)
    other.resume(store.load(fork))
    acked.commit(store, other, fork, "side")
    stream.resume(store.load(fourth))
    assert third.seq + 1 == fourth.seq
    acked.commit(store, stream, fourth)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where possible: thousands of files are created and deleted."""
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() and os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=where) as name:
        yield Path(name)


@pytest.fixture
def recorder(folder: Path) -> Recorder:
    (folder / "disk").mkdir()
    return Recorder(folder / "disk")


@pytest.fixture
def site(folder: Path) -> Site:
    (folder / "site").mkdir()
    return Site(folder / "site")


def images(
    steps: list[Step], acked: Acknowledged, *, since: int = 0, seed: int = 0
) -> Iterator[tuple[int, str, Image]]:
    """The distinct states that crashes after each step may leave, per acknowledged operation."""
    disk, seen = Disk(), set()
    for done, step in enumerate([None, *steps]):
        if step is not None:
            disk.do(step)
        if done < since:
            continue
        for name, (names, data) in crashes(random.Random(seed + done)).items():
            image = disk.left(names, data)
            key = hash(frozenset(image.items())), acked.promises(done)
            if key not in seen:
                seen.add(key)
                yield done, name, image


def check(site: Site, acked: Acknowledged, done: int) -> None:
    """All operations acknowledged in the first `done` steps survive; others are all or nothing."""
    path = site.path / HOME
    acknowledged = {
        branch: [ref for at, ref in refs if at <= done] for branch, refs in acked.refs.items()
    }
    try:
        store = DirectoryStore.open(path)
    except NotFound as error:
        assert_helpful(error)
        assert acked.created is None or done < acked.created
        return
    found = {branch: store.refs(branch) for branch in store.branches()}
    for branch, refs in acknowledged.items():
        there = found.pop(branch, [])
        # One more ref may exist before its acknowledgement: then its commit is complete.
        assert len(refs) <= len(there) <= len(refs) + 1
        assert there == [ref for _, ref in acked.refs[branch]][: len(there)]
        for commit in {ref.commit for ref in there}:
            assert_equal(store.load(commit), acked.snapshots[commit.name])
        if there:
            log = store.tokens(there[-1], 0, there[-1].position)
            assert log.tolist() == acked.logs[there[-1].commit.name]
            assert rows_of(store, there[-1], "keys") == acked.rows[there[-1].commit.name]
    assert not found


def check_continues(site: Site) -> None:
    """The next writer can continue from any state that a crash leaves."""
    path, stream = site.path / HOME, Stream(2)
    try:
        store = DirectoryStore.open(path)
    except NotFound:
        store = new_store(path)
    store.verify()
    head = store.head("main")
    if head:
        stream.resume(store.load(head))
    stream.read(2, memory=2)
    snapshot = stream.snapshot()
    assert_equal(store.load(store.commit(snapshot, parent=head)), snapshot)
    store.verify()
    site.clear()


def test_the_recording_is_complete(recorder: Recorder) -> None:
    """Replaying all steps reproduces the folder."""
    with recorder.recording():
        live(Acknowledged(recorder), "full")
        new_store(Path(recorder.root) / "gone.zarr").delete()
    disk = Disk()
    for step in recorder.steps:
        disk.do(step)
    root = Path(recorder.root)
    real = {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }
    assert len(real) == 21
    assert disk.left(*crashes(random.Random(0))["killed"]) == real


def test_power_loss_after_every_step(recorder: Recorder, site: Site) -> None:
    acked = Acknowledged(recorder)
    with recorder.recording():
        live(acked, "full")
    tried = 0
    for done, name, image in images(recorder.steps, acked):
        site.lay(image)
        try:
            check(site, acked, done)
        except (AssertionError, StoreError) as error:
            pytest.fail(f"{name} after {done} steps, the last {recorder.steps[done - 1]}: {error}")
        if tried % 16 == 0:
            check_continues(site)
        tried += 1
    assert tried > 800


# Each of these fsyncs is necessary: without it the tests above must detect a loss.
SYNCS = {
    "header": r"s\.zarr/\.tmp-.*",
    "session's folder": r"s\.zarr",
    "folder on the way": r"\./deep",
    "refs": r"s\.zarr/refs",
    "branch": r"s\.zarr/refs/main",
    "ref": r"s\.zarr/refs/.*/\.tmp-.*",
    "commits": r"s\.zarr/commits",
    "commit": r"s\.zarr/commits/[^/]*\.zip",
}


@pytest.mark.parametrize("skipped", SYNCS.values(), ids=SYNCS)
def test_every_fsync_matters(recorder: Recorder, site: Site, skipped: str) -> None:
    acked, pattern = Acknowledged(recorder), re.compile(rf"(\./deep/er/)?{skipped}")
    with recorder.recording():
        live(acked, "full")
    steps = [
        step
        for step in recorder.steps
        if not (isinstance(step, Sync) and pattern.fullmatch(step.path))
    ]
    assert len(steps) < len(recorder.steps)
    for kept, lost in ((recorder.steps, False), (steps, True)):
        disk = Disk()
        for step in kept:
            disk.do(step)
        site.lay(disk.left(*crashes(random.Random(0))["nothing"]))
        if lost:
            with pytest.raises((AssertionError, StoreError)):
                check(site, acked, len(recorder.steps))
        else:
            check(site, acked, len(recorder.steps))


def test_damage_without_fsync_is_detected(recorder: Recorder, site: Site) -> None:
    """Durability "normal": commits are lost, but a loaded snapshot equals the committed one."""
    acked = Acknowledged(recorder)
    with recorder.recording():
        live(acked, "normal")
    assert not any(isinstance(step, Sync) for step in recorder.steps)
    lost = right = 0
    for done, _, image in images(recorder.steps, acked):
        site.lay(image)
        for commit in {
            ref.commit for refs in acked.refs.values() for at, ref in refs if at <= done
        }:
            try:
                found = DirectoryStore.open(site.path / HOME).load(commit)
            except StoreError as error:
                assert_helpful(error)
                lost += 1
            else:
                assert_equal(found, acked.snapshots[commit.name])
                right += 1
    assert lost > 800 and right > 500


def begin(path: Path) -> None:
    """A session with two commits and a fork that continues."""
    store, stream = new_store(path, durability="full"), Stream(memory=6, compressed=2)
    for branch, target in (("main", None), ("main", None), ("side", "main")):
        if target and (head := store.head(target)):
            store.publish(head, branch=branch)
        stream.read(3, memory=3)
        store.commit(stream.snapshot(), branch=branch, parent=store.head(branch))


def continue_(path: Path) -> dict[Ref, tuple[Snapshot, list[int]]]:
    """Another process commits to every branch; returns the content of the session."""
    if not (path / "session.json").exists():
        new_store(path, durability="full")
    store, stream = DirectoryStore.open(path, durability="full"), Stream(2)
    for branch in store.branches() or ["main"]:
        if head := store.head(branch):
            stream.resume(store.load(head))
        stream.read(2, memory=2)
        store.commit(stream.snapshot(), branch=branch, parent=head)
    return contents(store)


def contents(store: DirectoryStore) -> dict[Ref, tuple[Snapshot, list[int]]]:
    refs = [ref for branch in store.branches() for ref in store.refs(branch)]
    return {ref: (store.load(ref), store.tokens(ref, 0, ref.position).tolist()) for ref in refs}


def test_power_loss_after_a_kill(folder: Path, site: Site) -> None:
    """A writer makes the volatile changes of a killed writer durable before it continues."""

    def record(kill_at: int | None) -> tuple[Recorder, dict[Ref, tuple[Snapshot, list[int]]]]:
        root = folder / f"disk-{kill_at}"
        root.mkdir()
        recorder = Recorder(root)
        with recorder.recording():
            recorder.kill_at = kill_at
            with suppress(Killed):
                begin(root / HOME)
            recorder.kill_at = None
            known = continue_(root / HOME)
        shutil.rmtree(root)
        return recorder, known

    # After every other change of a name, and after some of the other steps.
    names = [isinstance(step, Names) for step in record(None)[0].steps]
    kills = [i for i in range(1, len(names)) if names[i - 1] or i % 8 == 0][::2]
    assert len(kills) > 30
    for kill_at in kills:
        recorder, known = record(kill_at)
        disk = Disk()
        for step in recorder.steps:
            disk.do(step)
        left = crashes(random.Random(kill_at))
        for name in ("nothing", "newest names", "some"):
            site.lay(disk.left(*left[name]))
            try:
                found = contents(DirectoryStore.open(site.path / HOME))
                assert found.keys() == known.keys()
                for ref, (snapshot, log) in known.items():
                    assert_equal(found[ref][0], snapshot)
                    assert found[ref][1] == log
            except (AssertionError, StoreError) as error:
                pytest.fail(f"{name}, killed after {kill_at} steps: {error}")


def test_power_loss_during_deletion(recorder: Recorder, site: Site) -> None:
    """The session is complete, or it is no session any more."""
    acked = Acknowledged(recorder)
    with recorder.recording():
        live(acked, "full")
        begun = len(recorder.steps)
        DirectoryStore.open(Path(recorder.root) / HOME).delete()
    there = gone = 0
    for done, _, image in images(recorder.steps, acked, since=begun):
        site.lay(image)
        try:
            DirectoryStore.open(site.path / HOME)
        except NotFound as error:
            assert_helpful(error)
            assert done > begun
            gone += 1
        else:
            check(site, acked, begun)
            there += 1
    assert there > 8 and gone > 80
