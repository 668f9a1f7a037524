"""Logs: rows by position, from any commit on the way back, kept as long as token ids.

The file is long because one class holds what every medium must keep of a log.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from memory_store import Commit, Corrupt, LogRows, Ref, Retention, Snapshot
from memory_store.backends.memory import MemoryBackend
from memory_store.format.names import TOKENS
from memory_store.media import InMemoryStore
from memory_store.store import Store
from memory_store.upkeep.copying import copy_session
from memory_store.upkeep.export import export_session, import_session
from tests.memory_store.conformance.place import Place, manifest
from tests.support.stores import Stream, assert_equal, described, members, rows_of, where

Rows = dict[int, tuple[str, tuple[int, ...], bytes]]
ROW_BYTES = 4  # of `numbered`


def numbered(start: int, stop: int, *, base: int = 0) -> LogRows:
    """Rows [start, stop) that hold `base` and their own position."""
    positions = np.arange(start, stop)
    return LogRows(start, np.stack([np.full_like(positions, base), positions], 1).astype(np.int16))


def rows(*parts: LogRows) -> Rows:
    """What a reader finds of these rows; of several for one position, the last."""
    return {each.start + i: described(row) for each in parts for i, row in enumerate(each.data)}


def spans(positions: Iterable[int]) -> list[tuple[int, int]]:
    """The ranges of positions, ascending."""
    found: list[tuple[int, int]] = []
    for position in sorted(positions):
        if found and found[-1][1] == position:
            found[-1] = found[-1][0], position + 1
        else:
            found.append((position, position + 1))
    return found


def flip(place: Place, key: str, member: str) -> None:
    """Flip a bit of a member's content."""
    data = place.files()[key]
    at = where(data, member)
    place.write(key, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def indexed(store: Store, n: int, size: int = 10) -> list[Ref]:
    """`n` commits of `size` tokens each, with their rows."""
    stream, refs = Stream(1), list[Ref]()
    for i in range(n):
        stream.read(size, memory=3, compressed=1)
        snapshot = stream.snapshot()
        logs = {"keys": numbered(i * size, (i + 1) * size)}
        snapshot = Snapshot(**{**vars(snapshot), "logs": logs})
        refs.append(store.commit(snapshot, parent=refs[-1] if refs else None))
    return refs


class Model:
    """The logs of a session as dicts."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.parents: dict[Commit, Commit | None] = {}
        self.brought: dict[Commit, dict[str, Rows]] = {}

    def rows(self, commit: Commit, name: str) -> Rows:
        """The rows at a commit, of the commits that exist in some file besides `past`."""
        keys = (key.split("/") for key in self.place.files())
        names = {name for folder, *rest in keys if folder in ("commits", "log") for name in rest}
        line: list[Commit] = []
        at: Commit | None = commit
        while at is not None:
            line.append(at)
            at = self.parents[at]
        found: Rows = {}
        for each in reversed(line):
            if each.name in names:
                found |= self.brought[each].get(name, {})
        return found

    def check(self, store: Store, commit: Commit, rng: np.random.Generator) -> None:
        for name in ("keys", "marks", "none"):
            expected = self.rows(commit, name)
            assert rows_of(store, commit, name) == expected
            assert store.log_spans(commit, name) == spans(expected)
            start, stop = sorted(int(n) for n in rng.integers(0, commit.position + 1, 2))
            inside = {at: row for at, row in expected.items() if start <= at < stop}
            assert rows_of(store, commit, name, start, stop) == inside


class LogConformance:
    """Part of `StoreConformance`."""

    histories: ClassVar[int]
    steps: ClassVar[int]

    def test_any_history_of_rows(self, place: Place, seed: int) -> None:
        """Rows at random positions, backfills, forks, rewinds and collections against dicts."""
        rng = np.random.default_rng(seed)
        store, model, branch = place.new(), Model(place), "main"
        heads: dict[str, Ref | None] = {"main": None}

        def data(count: int) -> np.ndarray:
            shape = (count, *([], [3], [2, 2])[int(rng.integers(3))])
            dtype = str(rng.choice(["int8", "uint16", "bool"]))
            return rng.integers(0, 2, shape).astype(dtype)

        def some(position: int) -> LogRows:
            start = int(rng.integers(0, position))
            longest = min(position - start, int(rng.choice([1, 8, position])))
            return LogRows(start, data(int(rng.integers(1, longest + 1))))

        for step in range(self.steps):
            chance, parent = rng.random(), heads[branch]
            if chance < 0.85 or parent is None:
                begin = parent.position if parent else 0
                count = 0 if rng.random() < 0.3 else int(rng.integers(0, 9))
                position = begin + count
                logs = {}
                for name, odds in (("keys", 0.8), ("marks", 0.3)):
                    if position and rng.random() < odds:
                        new = LogRows(begin, data(count)) if count else some(position)
                        logs[name] = new if rng.random() < 0.5 else some(position)
                snapshot = Snapshot(position, tokens=np.arange(count), logs=logs)
                ref = store.commit(snapshot, branch=branch, parent=parent)
                heads[branch] = ref
                model.parents[ref.commit] = parent.commit if parent else None
                model.brought[ref.commit] = {name: rows(each) for name, each in logs.items()}
                assert manifest(store, ref).schema == (3 if logs else 2)
                assert_equal(
                    store.load(ref), Snapshot(position, tokens=np.arange(count, dtype="i4"))
                )
            elif chance < 0.9:
                branch = str(rng.choice(list(heads)))
            elif chance < 0.97:
                branch = branch if chance < 0.93 else f"fork-{step}"
                kept = [commit for commit in model.parents if store.is_loadable(commit)]
                heads[branch] = store.publish(kept[int(rng.integers(len(kept)))], branch=branch)
            else:
                store.gc(Retention(last=4, log=rng.random() < 0.7))
            if step % 5 == 0 and (head := heads[branch]) is not None:
                model.check(store, head.commit, rng)
        fresh = place.open()
        for commit in model.parents:
            model.check(fresh, commit, rng)
        fresh.verify()
        store.gc(Retention(last=1))
        fresh.gc(Retention(last=1, log=False))
        for commit in model.parents:
            model.check(store, commit, rng)  # its cache is older than the collection
        fresh.verify()

    def test_gaps_late_beginnings_and_backfills(self, place: Place) -> None:
        store = place.new()
        first = store.commit(Snapshot(10, tokens=np.arange(10)), parent=None)
        late = store.commit(
            Snapshot(20, tokens=np.arange(10), logs={"keys": numbered(14, 18)}), parent=first
        )
        assert store.log_spans(late, "keys") == [(14, 18)]
        assert store.log_spans(first, "keys") == store.log_spans(late, "other") == []
        assert store.logs(first) == {} and store.logs(late) == {"keys": ROW_BYTES}
        assert list(store.log(late, "other", 0, 20)) == list(store.log(late, "keys", 3, 3)) == []
        # Indexed later, in pieces; the commits have no tokens of their own.
        ref = late
        for piece in (numbered(5, 14), numbered(0, 5), numbered(16, 20, base=1)):
            ref = store.commit(Snapshot(20, logs={"keys": piece}), parent=ref)
            assert ref.position == 20 and ref.commit.name in place.commits()
        assert store.log_spans(ref, "keys") == [(0, 20)]
        expected = rows(numbered(0, 18), numbered(16, 20, base=1))
        assert rows_of(store, ref, "keys") == expected  # the newest rows count
        assert rows_of(store, late, "keys") == rows(numbered(14, 18))
        assert store.tokens(ref, 0, 20).tolist() == [*range(10)] * 2
        assert store.nearest("main", 20) == ref.commit
        assert store.nearest("main", 19) == first.commit
        (_, found), *_ = store.log(ref, "keys", 2, 4)
        found[:] = 0  # the caller's own
        assert rows_of(store, ref, "keys") == expected
        for start, stop in ((-1, 2), (3, 2), (0, 21)):
            with pytest.raises(ValueError, match="read 20"):
                store.log(ref, "keys", start, stop)

    def test_forks_and_rewinds_have_rows_of_their_own(self, place: Place) -> None:
        store = place.new()
        refs = indexed(store, 3)
        fork = store.publish(refs[1], branch="side")
        side = store.commit(
            Snapshot(25, tokens=np.arange(5), logs={"keys": numbered(18, 25, base=1)}),
            branch="side",
            parent=fork,
        )
        back = store.publish(refs[0], branch="main")
        head = store.commit(
            Snapshot(30, tokens=np.arange(20), logs={"keys": numbered(12, 30, base=2)}), parent=back
        )
        for each in (store, place.open()):
            assert rows_of(each, refs[2], "keys") == rows(numbered(0, 30))
            assert rows_of(each, side, "keys") == rows(numbered(0, 18), numbered(18, 25, base=1))
            assert rows_of(each, head, "keys") == rows(numbered(0, 10), numbered(12, 30, base=2))
            assert each.log_spans(head, "keys") == [(0, 10), (12, 30)]

    def test_spans_and_snapshots_read_no_rows(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = place.new()
        refs = indexed(store, 4)
        snapshot = store.load(refs[-1])
        for ref in refs:
            flip(place, f"commits/{ref.commit.name}", "keys/c.0.0")
        fresh = place.open()
        assert_equal(fresh.load(refs[-1]), snapshot)
        assert fresh.recover().damage == ()
        with monkeypatch.context() as patch:
            patch.setattr(type(fresh._backend), "open", None)
            assert fresh.log_spans(refs[-1], "keys") == [(0, 40)]
            assert fresh.logs(refs[-1]) == {"keys": ROW_BYTES}
            with pytest.raises(TypeError):
                next(fresh.log(refs[-1], "keys", 0, 40))

    def test_a_log_of_several_chunks(self, place: Place) -> None:
        """Only the chunks of a range are read, and each is checked."""
        count, width = 2500, 2048
        data = np.random.default_rng(0).integers(-128, 128, (count, width), np.int8)
        store = place.new()
        first = store.commit(
            Snapshot(count, tokens=np.arange(count), logs={"keys": LogRows(0, data)}), parent=None
        )
        newer = np.ones((7, width), np.int8)
        ref = store.commit(Snapshot(count, logs={"keys": LogRows(900, newer)}), parent=first)
        data[900:907] = newer
        key = f"commits/{first.commit.name}"
        chunks = [name for name in members(place.files()[key]) if name.startswith("keys/c.")]
        assert chunks == [f"keys/c.{i}.0" for i in range(3)]  # of 834 rows, the last padded
        found = list(place.open().log(ref, "keys", 0, count))
        assert [at for at, _ in found] == [0, 834, 900, 907, 1668]
        assert np.array_equal(np.concatenate([each for _, each in found]), data)
        narrow = numbered(0, 140_000)
        last = store.commit(
            Snapshot(140_000, tokens=np.arange(140_000 - count), logs={"n": narrow}), parent=ref
        )
        assert [len(each) for _, each in store.log(last, "n", 0, 140_000)] == [65536, 65536, 8928]
        store.verify()

        flip(place, key, "keys/c.1.0")
        damaged = place.open()
        (start, inside), *_ = damaged.log(ref, "keys", 1700, 1710)
        assert start == 1700 and np.array_equal(inside, data[1700:1710])
        pieces = damaged.log(ref, "keys", 0, count)
        assert next(pieces)[0] == 0
        with pytest.raises(Corrupt, match=rf"{first.commit.name}: keys/c\.1\.0: damaged"):
            next(pieces)
        with pytest.raises(Corrupt, match=first.commit.name):
            damaged.verify()

    @pytest.mark.parametrize("log", [True, False])
    def test_gc_keeps_rows_with_token_ids(self, place: Place, log: bool) -> None:
        store = place.new()
        refs = indexed(store, 30)
        extra = Snapshot(300, logs={"keys": numbered(40, 45, base=1)})
        refs.append(store.commit(extra, parent=refs[-1]))
        before, sizes = store.size(), [store.size(ref) for ref in refs]
        arrays = [manifest(store, ref).arrays for ref in refs]
        report = store.gc(Retention(last=4, log=log), dry_run=True)
        assert store.size() == before and report.deleted > 10
        assert store.gc(Retention(last=4, log=log)) == report
        retained = [manifest(store, ref).retained for ref in refs]
        assert set(retained) == {"all", "log" if log else "record"}
        freed = 0
        for ref, state, size, specs in zip(refs, retained, sizes, arrays, strict=True):
            left = specs[TOKENS].nbytes + specs["keys"].nbytes if state == "log" else 0
            left = size if state == "all" else left
            assert store.size(ref) == left
            freed += size - left
        assert report.bytes == freed > 0
        assert (report.tokens_deleted == report.deleted) == (not log)
        gone = {
            refs.index(ref) for ref, state in zip(refs, retained, strict=True) if state != "all"
        }
        expected = rows(numbered(0, 300), numbered(40, 45, base=1))
        if not log:
            kept = [numbered(i * 10, i * 10 + 10) for i in range(30) if i not in gone]
            expected = rows(*kept, numbered(40, 45, base=1))
        for each in (store, place.open()):
            assert rows_of(each, refs[-1], "keys") == expected
            assert each.log_spans(refs[-1], "keys") == spans(expected)
            assert each.verify().commits == 31
        logged = [data for key, data in place.files().items() if key.startswith("log/")]
        assert all(
            [*members(data)] == ["record.json", "keys/c.0.0", "tokens/c.0"] for data in logged
        )
        assert len(logged) == (report.deleted if log else 0)
        # Kept before, deleted by a later collection.
        report = store.gc(Retention(last=1, log=False))
        assert not [key for key in place.files() if key.startswith("log/")]
        positions = rows_of(store, refs[-1], "keys").keys()
        assert positions >= {*range(40, 45)} and 0 not in positions

    def test_damage_to_rows_of_deleted_snapshots(self, place: Place) -> None:
        store = place.new()
        refs = indexed(store, 20)
        store.gc(Retention(last=1))
        key = next(key for key in sorted(place.files()) if key.startswith("log/"))
        data = place.files()[key]
        begin, end = (where(data, name) for name in ("keys/c.0.0", "tokens/c.0"))
        for at in range(begin, end, 7):
            place.write(key, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises(Corrupt, match=key):
                place.open().verify()
            if at < begin + 44:  # of 40 bytes and the checksum; the rest is the next header
                with pytest.raises(Corrupt, match=f"{key}: keys/"):
                    rows_of(place.open(), refs[-1], "keys")
        place.write(key, None)
        with pytest.raises(Corrupt, match="missing"):
            rows_of(place.open(), refs[-1], "keys")
        place.write(key, data)
        assert rows_of(place.open(), refs[-1], "keys") == rows(numbered(0, 200))

    @pytest.mark.parametrize("log", [True, False])
    def test_a_collection_while_rows_are_read(self, place: Place, log: bool) -> None:
        store = place.new()
        refs = indexed(store, 20)
        pieces = place.open().log(refs[-1], "keys", 0, 200)
        if place.open().remote:  # there, all rows of a batch are on their way already
            first = next(pieces)
            assert first[0] == 0
        place.open().gc(Retention(last=1, log=log))
        found = [start for start, _ in pieces]
        assert found == sorted(found) and found[-1] == 190
        if log:
            assert len(found) >= 19

    def test_copies_have_the_rows(self, place: Place, tmp_path: Path) -> None:
        store = place.new()
        refs = indexed(store, 25)
        store.gc(Retention(last=8, thin=True))
        store.gc(Retention(last=4, log=False))
        refs.append(store.commit(Snapshot(250, logs={"keys": numbered(3, 9)}), parent=refs[-1]))
        store.gc(Retention(last=2))
        expected = rows_of(store, refs[-1], "keys")
        assert {"log", "past", "commits"} <= {key.split("/")[0] for key in place.files()}
        export_session(store._backend, tmp_path / "s.zip")
        kept: dict[str, bytes] = {}
        import_session(tmp_path / "s.zip", MemoryBackend(kept))
        assert kept == place.files()
        copied: dict[str, bytes] = {}
        copy_session(place.open()._backend, MemoryBackend(copied))
        assert copied == kept
        copy: Any = InMemoryStore.open(kept)
        assert rows_of(copy, refs[-1], "keys") == expected
        assert copy.verify() == store.verify()
        # Damaged rows are not copied.
        flip(place, f"commits/{refs[-1].commit.name}", "keys/c.0.0")
        with pytest.raises(Corrupt, match="keys"):
            copy_session(place.open()._backend, MemoryBackend({}))

    def test_an_interrupted_gc_loses_no_rows(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = place.new()
        refs = indexed(store, 25)
        expected = rows(numbered(0, 250))
        kind, left = type(store._backend), 0

        def counted(name: str) -> Any:
            real = getattr(kind, name)

            def step(self: Any, *arguments: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
                return real(self, *arguments)

            return step

        for steps in range(5):
            left = steps
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(kind, "create", counted("create"))
                patch.setattr(kind, "discard", counted("discard"))
                store.gc(Retention(last=1))
            for again in (store, place.open()):
                assert rows_of(again, refs[-1], "keys") == expected
                assert again.log_spans(refs[-1], "keys") == [(0, 250)]
            place.open().verify()
        store.gc(Retention(last=1))
        assert rows_of(store, refs[-1], "keys") == expected

    def test_a_walk_visits_a_commit_once(self, place: Place) -> None:
        """As many manifests as commits since the beginning of the range, at most."""
        store, reads = place.new(), 0
        refs = indexed(store, 40, size=3)
        fresh = place.open()
        real = fresh._commits.manifest

        def counted(commit: Commit) -> Any:
            nonlocal reads
            reads += 1
            return real(commit)

        fresh._commits.manifest = counted  # type: ignore[assignment]
        for start, stop in ((0, 120), (117, 120), (60, 61), (0, 1)):
            reads = 0
            assert next(fresh.log(refs[-1], "keys", start, stop))[0] == start
            assert reads <= math.ceil((120 - start) / 3)
        ref = store.commit(Snapshot(120, logs={"keys": numbered(0, 120)}), parent=refs[-1])
        reads = 0
        assert fresh.log_spans(ref, "keys") == [(0, 120)] and reads == 1
