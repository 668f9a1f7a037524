"""Maintenance: retention, pins, garbage collection, recovery, copies."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_store import Corrupt, NotFound, Ref, Retention, Snapshot, StoreError, UnsupportedSchema
from memory_store.backends.memory import MemoryBackend
from memory_store.media import InMemoryStore
from memory_store.store import Store
from memory_store.types import Recovered
from memory_store.upkeep.copying import copy_session
from memory_store.upkeep.export import export_session, import_session
from memory_store.upkeep.recovery import recover_header
from tests.support.stores import Stream, assert_equal, members, where


def grown(store: Store, n: int) -> tuple[list[Ref], list[Snapshot]]:
    """`n` commits of 10 tokens each."""
    stream = Stream(1)
    refs: list[Ref] = []
    snapshots: list[Snapshot] = []
    for _ in range(n):
        stream.read(10, memory=3, compressed=1)
        snapshots.append(stream.snapshot())
        refs.append(store.commit(snapshots[-1], parent=refs[-1] if refs else None))
    return refs, snapshots


def loadable(store: Store, refs: Iterable[Ref]) -> list[int]:
    """The loadable positions; the others must raise NotFound and name gc."""
    found = []
    for ref in refs:
        try:
            store.load(ref)
        except NotFound as error:
            assert "deleted by gc" in str(error) and not store.is_loadable(ref)
        else:
            assert store.is_loadable(ref)
            found.append(ref.position)
    return found


def ids_of(snapshots: Iterable[Snapshot]) -> np.ndarray:
    return np.concatenate([snapshot.tokens for snapshot in snapshots])


class UpkeepConformance:
    """Part of `StoreConformance`."""

    def test_gc_keeps_the_newest_and_the_log(self, place: Any) -> None:
        store = place.new()
        refs, snapshots = grown(store, 40)
        before = store.size()
        report = store.gc(Retention(last=5), dry_run=True)
        assert store.size() == before and report.deleted > 0
        assert store.gc(Retention(last=5)) == report
        for again in (store, place.open()):
            assert loadable(again, refs)[-5:] == [ref.position for ref in refs[-5:]]
            assert len(loadable(again, refs)) < 5 + 16  # and the commits they are loaded from
            for ref, snapshot in zip(refs[-5:], snapshots[-5:], strict=True):
                assert_equal(again.load(ref), snapshot)
            assert np.array_equal(again.tokens(refs[-1], 0, 400), ids_of(snapshots))
            assert again.verify().commits == 40
            near = again.nearest("main", 395)
            assert near.position == 390 and again.is_loadable(near)
            first = again.nearest("main", 20)  # every position can be recomputed
            assert first == refs[0].commit and again.is_loadable(first)
            with pytest.raises(NotFound, match="deleted by gc"):
                again.publish(refs[1], branch="fork")
            assert again.branches() == ["main"]
        assert store.gc(Retention(last=5)).deleted == 0
        stream = Stream(1)
        stream.resume(store.load(refs[-1]))
        stream.read(10, memory=3, compressed=1)
        following = stream.snapshot()
        assert_equal(store.load(store.commit(following, parent=refs[-1])), following)

    def test_deleted_tokens_raise_not_found(self, place: Any) -> None:
        store = place.new()
        refs, snapshots = grown(store, 30)
        store.gc(Retention(last=8))
        report = store.gc(Retention(last=4, log=False), dry_run=True)
        assert store.gc(Retention(last=4, log=False)) == report and report.tokens_deleted
        assert store.verify().commits == 30  # the chain of ids is complete
        oldest = refs[-4].position
        assert np.array_equal(store.tokens(refs[-1], oldest, 300), ids_of(snapshots)[oldest:])
        with pytest.raises(NotFound, match=r"token ids up to \d+ were deleted"):
            store.tokens(refs[-1], 0, 300)
        with pytest.raises(NotFound, match="no snapshot at or before 20 tokens is kept"):
            store.nearest("main", 20)
        assert not store.gc(Retention(last=4, log=False)).tokens_deleted

    def test_gc_keeps_pins_forks_and_heads(self, place: Any) -> None:
        store = place.new()
        refs, snapshots = grown(store, 30)
        store.pin(refs[3], "beginning")
        store.pin(refs[3], "beginning")  # pinning again changes nothing
        fork = store.publish(refs[11], branch="fork")
        store.gc(Retention(last=1))
        for index in (3, 11, 29):
            assert_equal(store.load(refs[index]), snapshots[index])
        assert store.head("fork") == fork
        assert store.pins() == place.open().pins() == {"beginning": refs[3].commit}
        assert store.pinned("beginning") == refs[3].commit
        with pytest.raises(StoreError, match="pins another commit"):
            store.pin(refs[29], "beginning")
        gone = next(ref for ref in refs if not store.is_loadable(ref))
        with pytest.raises(NotFound, match="deleted by gc"):
            store.pin(gone, "too-late")
        with pytest.raises(ValueError, match="a pin name has"):
            store.pin(refs[29], "../out")
        store.unpin("beginning")
        with pytest.raises(NotFound, match="no such pin"):
            store.unpin("beginning")
        with pytest.raises(NotFound, match="no such pin"):
            store.pinned("beginning")
        store.gc(Retention(last=1))
        assert refs[2].position not in loadable(store, refs)
        assert_equal(store.load(fork), snapshots[11])

    def test_thinning_by_age(self, place: Any) -> None:
        store = place.new()
        refs, snapshots = grown(store, 60)
        retention = Retention(last=4, thin=True)
        wanted = {ref.position for ref in retention.kept(refs)}
        assert len(wanted) < 25
        store.gc(retention)
        assert wanted <= set(loadable(store, refs))
        for target in range(min(wanted), 600, 7):
            near = store.nearest("main", target)
            assert target - near.position <= max(20, (600 - target) / 2)
            replay = store.tokens(refs[-1], near.position, target)
            assert np.array_equal(replay, ids_of(snapshots)[near.position : target])

    @pytest.mark.parametrize("kind", ["zarr.json", "memory/c.0.0.0.0", "segment/c.0.0.0.0"])
    def test_recovery_finds_the_newest_loadable_snapshot(self, place: Any, kind: str) -> None:
        store = place.new()
        refs, snapshots = grown(store, 6)
        assert store.recover() == Recovered(refs[-1], ())
        for ref in refs[4:]:
            key = f"commits/{ref.commit.name}"
            data = place.files()[key]
            at = where(data, kind)
            place.write(key, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        store = place.open()
        with pytest.raises(Corrupt):
            store.load(refs[-1])
        found = store.recover()
        said = "JSON" if kind == "zarr.json" else kind
        assert len(found.damage) == 2 and all(said in text for text in found.damage)
        assert found.head == store.head("main") and found.head.commit == refs[3].commit
        assert_equal(store.load(found.head), snapshots[3])
        assert store.refs("main")[:-1] == refs  # the history stays
        stream = Stream(1)
        stream.resume(store.load(found.head))
        stream.read(10, memory=3, compressed=1)
        again = stream.snapshot()
        assert_equal(store.load(store.commit(again, parent=found.head)), again)

    @pytest.mark.parametrize("lost", [(5,), (2, 3), (0,), (0, 1, 5)])
    @pytest.mark.parametrize("damaged", [True, False])
    def test_recovery_replaces_refs(self, place: Any, lost: tuple[int, ...], damaged: bool) -> None:
        store = place.new()
        refs, snapshots = grown(store, 6)
        held = {seq: place.files()[f"refs/main/{seq:012d}.json"] for seq in lost}
        for seq in lost:
            data = held[seq].replace(b'"seq"', b'"sEq"') if damaged else None
            place.write(f"refs/main/{seq:012d}.json", data)
        store = place.open()
        if damaged or lost != (5,):
            with pytest.raises(Corrupt):
                store.refs("main")
        found = store.recover()
        # A missing newest ref shows by its commit alone.
        assert len(found.damage) == len(lost) - (not damaged and 5 in lost)
        assert len(found.found) == (5 in lost)
        assert found.head.commit == refs[5].commit
        assert_equal(store.load(found.head), snapshots[5])
        history = store.refs("main")
        assert [ref.seq for ref in history] == list(range(len(history)))
        assert all(ref == refs[ref.seq] for ref in history[:6] if ref.seq not in lost)
        assert sum(key.startswith("lost/") for key in place.files()) == damaged * len(lost)
        assert store.recover() == Recovered(found.head, ())

    @pytest.mark.parametrize("damage", [None, b"", b"{}", b'{"schema":1}'])
    def test_the_header_is_rebuilt_from_a_commit(self, place: Any, damage: bytes | None) -> None:
        store = place.new()
        assert recover_header(store._backend) is None
        honest = place.files()["session.json"]
        place.write("session.json", damage)
        with pytest.raises((Corrupt, NotFound, UnsupportedSchema)):
            place.open()
        if damage in (None, b"", b'{"schema":1}'):  # no commit contains the header's values
            with pytest.raises((Corrupt, NotFound)):
                recover_header(store._backend)
        place.write("session.json", honest)
        refs, snapshots = grown(store, 2)
        place.write("session.json", damage)
        if damage == b"{}":
            with pytest.raises(UnsupportedSchema):
                recover_header(store._backend)
            return
        assert "session" in str(recover_header(store._backend))
        again = place.open()
        assert (again.session, again.fingerprints) == (store.session, store.fingerprints)
        assert_equal(again.load(refs[-1]), snapshots[-1])
        assert again.verify().commits == 2
        assert ("lost/session-0.json" in place.files()) == (damage is not None)

    def test_recovery_needs_a_loadable_snapshot(self, place: Any) -> None:
        store = place.new()
        with pytest.raises(NotFound, match="no branch"):
            store.recover()
        refs, _ = grown(store, 2)
        for ref in refs:
            place.write(f"commits/{ref.commit.name}", b"{}")
        before = place.files()
        with pytest.raises(NotFound, match="no snapshot of this branch can be loaded"):
            place.open().recover()
        assert place.files() == before

    def test_a_copy_is_complete_and_independent(self, place: Any, tmp_path: Path) -> None:
        store = place.new()
        refs, snapshots = grown(store, 25)
        fork = store.publish(refs[20], branch="fork")
        store.pin(refs[2], "pin")
        store.gc(Retention(last=10, thin=True))
        store.gc(Retention(last=5, log=False))
        export_session(store._backend, tmp_path / "s.zip")
        kept: dict[str, bytes] = {}
        import_session(tmp_path / "s.zip", MemoryBackend(kept))
        assert kept == {k: d for k, d in place.files().items() if not k.startswith("lost/")}
        copy = InMemoryStore.open(kept)
        assert copy.verify() == store.verify()
        assert copy.refs("main") == refs and copy.head("fork") == fork
        assert copy.pins() == store.pins()
        assert_equal(copy.load(refs[-1]), snapshots[-1])
        stream = Stream(1)
        stream.resume(copy.load(refs[-1]))
        stream.read(10, memory=3, compressed=1)
        copy.commit(stream.snapshot(), parent=refs[-1])
        assert store.refs("main") == refs

    def test_a_failed_copy_leaves_nothing(self, place: Any, tmp_path: Path) -> None:
        store = place.new()
        refs, _ = grown(store, 5)
        key = f"commits/{refs[2].commit.name}"
        data = place.files()[key]
        at = where(data, "memory/c.0.0.0.0")
        place.write(key, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        damaged = place.open()._backend
        kept: dict[str, bytes] = {}
        with pytest.raises(Corrupt, match=re.escape(key)):
            copy_session(damaged, MemoryBackend(kept))
        with pytest.raises(Corrupt, match=re.escape(key)):
            export_session(damaged, tmp_path / "s.zip")
        assert not kept and not list(tmp_path.glob("*.zip")) and not list(tmp_path.glob(".tmp-*"))
        place.write(key, data)
        kept["other"] = b"in use"
        with pytest.raises(StoreError, match="in use already"):
            copy_session(damaged, MemoryBackend(kept))
        assert kept == {"other": b"in use"}

    def test_gc_keeps_everything_by_default(self, place: Any) -> None:
        store = place.new()
        refs, _ = grown(store, 20)
        report = store.gc()
        assert (report.kept, report.deleted, report.leftovers, report.bytes) == (20, 0, 0, 0)
        assert len(loadable(store, refs)) == 20

    @pytest.mark.parametrize("after", [0, 1, 2, 5])
    def test_an_interrupted_gc_can_be_repeated(
        self, place: Any, after: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = place.new()
        refs, snapshots = grown(store, 25)
        steps = 0
        kind = type(store._backend)

        def counted(name: str) -> Any:
            real = getattr(kind, name)

            def step(self: Any, *arguments: Any) -> Any:
                nonlocal steps
                steps += 1
                if steps > after:
                    raise KeyboardInterrupt
                return real(self, *arguments)

            return step

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(kind, "create", counted("create"))
            patch.setattr(kind, "discard", counted("discard"))
            store.gc(Retention(last=3))
        for again in (store, place.open()):
            assert again.verify().commits == 25
            assert np.array_equal(again.tokens(refs[-1], 0, 250), ids_of(snapshots))
        store.gc(Retention(last=3))
        assert loadable(store, refs)[-3:] == [230, 240, 250]
        assert np.array_equal(store.tokens(refs[-1], 0, 250), ids_of(snapshots))

    def test_damage_to_logs_is_detected(self, place: Any) -> None:
        store = place.new()
        grown(store, 25)
        store.gc(Retention(last=2))
        logged = sorted(key for key in place.files() if key.startswith("log/"))
        for key in logged[:2]:
            data = place.files()[key]
            assert list(members(data)) == ["record.json", "tokens/c.0"]
            flipped = (
                data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                for at in range(0, len(data), len(data) // 6)
            )
            for changed in (None, data[:-1], data + b"0", *flipped):
                place.write(key, changed)
                with pytest.raises(Corrupt):
                    place.open().verify()
                place.write(key, data)
        assert place.open().verify().commits == 25
