"""Copies of a session's files: during writes, in any order, diverged, over another copy."""

import random
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import memory_store.format.json
from memory_store import Conflict, Corrupt, DirectoryStore, Ref, Snapshot, StoreError, Window
from tests.memory_store.crashes import Disk, Image, Recorder, Site, crashes
from tests.support.stores import Stream, assert_equal, assert_helpful, new_store


def snapshot(position: int) -> Snapshot:
    """The snapshot at a position; a function of the position only."""
    slots = np.arange(position * 8)[-64:]
    tokens = np.array([position] if position else [], int)
    return Snapshot(position, {"w": Window(slots, 0, position * 8, 64)}, tokens=tokens)


def write(store: DirectoryStore, commits: int, branch: str = "main") -> list[Ref]:
    made: list[Ref] = []
    for _ in range(commits):
        head = store.head(branch)
        position = head.position + 1 if head else 0
        made.append(store.commit(snapshot(position), branch=branch, parent=head))
    return made


def check(store: DirectoryStore, ref: Ref) -> None:
    assert_equal(store.load(ref), replace(snapshot(ref.position), tokens=store.load(ref).tokens))
    assert store.tokens(ref, 0, ref.position).tolist() == list(range(1, ref.position + 1))


def copy(source: Path, target: Path, part: str) -> None:
    """Copy files as a generic tool does: files that disappear meanwhile are skipped."""
    if (source / part).is_file():
        shutil.copyfile(source / part, target / part)
        return
    (target / part).mkdir(exist_ok=True)
    for path in sorted((source / part).iterdir()):
        try:
            copy(source, target, f"{part}/{path.name}")
        except (FileNotFoundError, NotADirectoryError):
            continue


def test_copies_during_writes(tmp_path: Path) -> None:
    """Refs first, then commits, while another thread writes as fast as it can."""
    store, ended = new_store(tmp_path / "s.zarr"), threading.Event()
    write(store, 1)
    counts: list[int] = []

    def work() -> None:
        while not ended.is_set():
            counts.append(write(store, 1)[-1].seq)

    writer = threading.Thread(target=work)
    writer.start()
    try:
        for i in range(4):
            target = tmp_path / f"{i}.zarr"
            target.mkdir()
            acknowledged = counts[-1] if counts else 0
            for part in ("session.json", "refs", "commits"):
                copy(store.path, target, part)
            found = DirectoryStore.open(target)
            found.verify()
            head = found.head("main")
            assert head is not None and head.seq >= acknowledged
            check(found, head)
            check(found, write(found, 1)[0])
    finally:
        ended.set()
        writer.join()
    assert counts[-1] > 10


def test_copies_at_any_two_moments(tmp_path: Path) -> None:
    """Refs before commits: every copy is complete. Commits before refs: damage is detected."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "site").mkdir()
    recorder, site = Recorder(tmp_path / "disk"), Site(tmp_path / "site")
    with recorder.recording():
        store = new_store(tmp_path / "disk" / "s.zarr")
        begun = len(recorder.steps)
        write(store, 3)
        store.publish(store.refs("main")[1], branch="side")
        write(store, 2, "side")
    disk, images = Disk(), []
    for step in recorder.steps:
        disk.do(step)
        images.append(disk.left(*crashes(random.Random(0))["killed"]))
    chance, refused, later = random.Random(0), 0, 0

    def part(image: Image, folder: str) -> Image:
        return {path: content for path, content in image.items() if f"{path}/".startswith(folder)}

    moments = range(begun, len(images))
    pairs = [(moment, moment) for moment in moments]
    pairs += [(chance.choice(moments), chance.choice(moments)) for _ in range(150)]
    for first, second in pairs:
        site.lay(
            {
                "s.zarr": None,
                **part(images[0], "s.zarr/session.json"),
                **part(images[begun], "s.zarr/session.json"),
                **part(images[first], "s.zarr/refs/"),
                **part(images[second], "s.zarr/commits/"),
            }
        )
        found = DirectoryStore.open(site.path / "s.zarr")
        if first <= second:
            found.verify()
        for branch in found.branches():
            for ref in found.refs(branch):
                try:
                    check(found, ref)
                    later += first < second
                except Corrupt as error:
                    assert first > second
                    assert_helpful(error)
                    with pytest.raises(Corrupt):
                        found.verify()
                    refused += 1
    assert refused > 30 and later > 50


@pytest.mark.parametrize("now", [0.0, -5.5, 2e9, 1e11])
def test_nothing_depends_on_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: float
) -> None:
    """The clock is set back, before 1970, or far into the future between commits."""
    store, times = new_store(tmp_path / "s.zarr"), [1.7e9, 1.7e9, now, now, 1.6e9, 1.6e9]
    made = []
    for time in times:
        monkeypatch.setattr(memory_store.format.json.time, "time", lambda time=time: time)
        made += write(DirectoryStore.open(store.path), 1)
    made.append(store.publish(made[2], branch="main"))
    store = DirectoryStore.open(store.path)
    assert store.refs("main") == made and store.head("main") == made[-1]
    assert [store.nearest(made[5], i) for i in range(6)] == [ref.commit for ref in made[:6]]
    for ref in made:
        check(store, ref)
    monkeypatch.setattr(memory_store.format.json.time, "time", lambda: now)
    new_store(tmp_path / "t.zarr")
    DirectoryStore.open(tmp_path / "t.zarr").verify()
    store.verify()


@pytest.fixture
def diverged(tmp_path: Path) -> tuple[DirectoryStore, DirectoryStore]:
    """A store and its diverged copy: same session, same ref numbers, other commits."""
    store = new_store(tmp_path / "a.zarr")
    stream = Stream()
    stream.read(4, memory=4)
    store.commit(stream.snapshot(), parent=None)
    shutil.copytree(store.path, tmp_path / "b.zarr")
    copy = DirectoryStore.open(tmp_path / "b.zarr")
    for seed, each in enumerate((store, copy)):
        stream = Stream(seed)
        for _ in range(2):
            head = each.head("main")
            assert head
            stream.resume(each.load(head))
            stream.read(4, memory=4)
            each.commit(stream.snapshot(), parent=head)
    return store, copy


def heads(*stores: DirectoryStore) -> list[Ref]:
    refs = [store.head("main") for store in stores]
    return [ref for ref in refs if ref is not None]


def test_diverged_copies(diverged: tuple[DirectoryStore, DirectoryStore]) -> None:
    one, other = diverged
    mine, theirs = heads(one, other)
    assert one.session == other.session and mine.seq == theirs.seq and mine != theirs
    for action in (
        lambda: one.load(theirs),
        lambda: one.tokens(theirs, 0, 12),
        lambda: one.publish(theirs, branch="main"),
        lambda: one.verify(theirs),
        lambda: one.nearest(theirs, 5),
    ):
        with pytest.raises(Corrupt, match=r"missing") as caught:
            action()
        assert_helpful(caught.value)
    with pytest.raises(Conflict) as conflict:
        one.commit(replace(one.load(mine), tokens=np.zeros(0, int)), parent=theirs)
    assert_helpful(conflict.value)
    assert one.head("main") == mine
    one.verify(), other.verify()


@pytest.mark.parametrize("parts", [("refs", "commits"), ("refs",), ("commits",)])
def test_a_copy_written_over_another(
    diverged: tuple[DirectoryStore, DirectoryStore], parts: tuple[str, ...]
) -> None:
    """The copied refs win; the commits that they name load as committed, or raise."""
    one, other = diverged
    mine, theirs = heads(one, other)
    known = {ref.commit: each.load(ref) for each, ref in ((one, mine), (other, theirs))}
    for part in parts:
        shutil.copytree(other.path / part, one.path / part, dirs_exist_ok=True)
    found = DirectoryStore.open(one.path)
    assert heads(found) == [theirs if "refs" in parts else mine]
    for ref in (mine, theirs):
        if ref is theirs and "commits" not in parts:
            with pytest.raises(Corrupt, match="missing"):
                found.load(ref)
        else:
            assert_equal(found.load(ref), known[ref.commit])
    if "commits" in parts:
        found.verify()
    else:
        with pytest.raises(StoreError, match="missing"):
            found.verify()
