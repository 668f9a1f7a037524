"""Branches: rewinds, forks, racing writers, names."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from memory_store import (
    Commit,
    Conflict,
    NotFound,
    Ref,
    Retention,
    Snapshot,
    StoreError,
    Window,
)
from memory_store.store import Store
from tests.memory_store.conformance.place import Place
from tests.support.stores import Stream, assert_equal


class BranchConformance:
    """Part of `StoreConformance`."""

    def test_rewind_and_fork_copy_nothing(self, place: Place) -> None:
        store, stream, refs = place.new(), Stream(), []
        for _ in range(3):
            stream.read(4, memory=4)
            refs.append(store.commit(stream.snapshot(), parent=refs[-1] if refs else None))
        before = place.files()
        back = store.publish(refs[0], branch="main")
        fork = store.publish(refs[1].commit, branch="side")
        added = place.files().keys() - before.keys()
        assert added == {"refs/main/000000000003.json", "refs/side/000000000000.json"}

        assert [ref.seq for ref in store.refs("main")] == [0, 1, 2, 3]
        assert store.refs("main") == [*refs, back] and back.commit == refs[0].commit
        assert store.head("side") == fork and fork.commit == refs[1].commit
        assert store.branches() == ["main", "side"]
        assert store.nearest("side", 5) == refs[0].commit
        # Both continue from there.
        for branch, parent in (("main", back), ("side", fork)):
            stream.resume(store.load(parent))
            stream.read(2, memory=2)
            snapshot = stream.snapshot()
            assert_equal(store.load(store.commit(snapshot, branch=branch, parent=parent)), snapshot)

    def test_a_stale_parent_raises_conflict(self, place: Place) -> None:
        store = place.new()
        first = store.commit(Snapshot(0), parent=None)
        second = store.commit(Snapshot(0), parent=first)
        before = place.files()
        for stale in (None, first, replace(second, commit=first.commit)):
            with pytest.raises(Conflict, match=r"branch 'main' is at ref 1 .* fork"):
                store.commit(Snapshot(0), parent=stale)
        with pytest.raises(ValueError, match="fork first"):
            store.commit(Snapshot(0), branch="side", parent=second)
        assert place.files() == before

    def test_a_lost_race_leaves_nothing(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another writer publishes after this writer has checked the head."""
        store, won = place.new(), []
        first = store.commit(Snapshot(0), parent=None)
        rival, publish = place.open(), store._refs.publish

        def late(*arguments: Any, **options: Any) -> Ref:
            won.append(rival.commit(Snapshot(0), parent=first))
            return publish(*arguments, **options)

        monkeypatch.setattr(store._refs, "publish", late)
        with pytest.raises(Conflict):
            store.commit(Snapshot(0), parent=first)
        assert store.refs("main") == [first, *won]
        assert len(place.commits()) == 2
        assert not [key for key in place.files() if ".tmp" in key]

    def test_racing_writers_lose_nothing(self, place: Place, writers: int) -> None:
        store, each = place.new(), 12 // writers
        empty = Window(np.zeros(0, np.int64), 0, 0, 8)
        store.commit(Snapshot(0, {"w": empty}), parent=None)
        acknowledged: dict[int, tuple[Commit, int]] = {}
        start = threading.Barrier(writers)

        def write(mine: Store, first: int) -> None:
            made = 0
            start.wait()
            while made < each:
                head = mine.head("main")
                assert head is not None
                past = mine.load(head)
                window, token = past.windows["w"], first + made
                data = np.append(window.data, np.int64(token))[-8:]
                windows = {"w": Window(data, 0, window.end + 1, 8)}
                try:
                    ref = mine.commit(
                        Snapshot(past.position + 1, windows, tokens=np.array([token])), parent=head
                    )
                except Conflict:
                    continue
                made += 1
                assert ref.seq not in acknowledged
                acknowledged[ref.seq] = ref.commit, token

        threads = [
            threading.Thread(target=write, args=(place.open(), 1000 * i)) for i in range(writers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        refs = store.refs("main")
        count = each * writers
        assert [ref.seq for ref in refs] == list(range(count + 1))
        assert {ref.seq: ref.commit for ref in refs[1:]} == {
            seq: commit for seq, (commit, _) in acknowledged.items()
        }
        # Each commit continues the one before: the log holds all tokens in the order of the refs.
        log = [acknowledged[seq][1] for seq in range(1, count + 1)]
        assert store.tokens(refs[-1], 0, count).tolist() == log
        assert len(place.commits()) == count + 1  # losers leave nothing
        store.verify()

    @pytest.mark.parametrize(
        "name", ["", ".", "..", ".hidden", "a/b", "../x", "a b", "é", "a\n", "x" * 200]
    )
    def test_branch_names(self, place: Place, name: str) -> None:
        store = place.new()
        ref = store.commit(Snapshot(0), parent=None)
        before = place.files()
        for use in (
            lambda: store.commit(Snapshot(0), branch=name, parent=None),
            lambda: store.publish(ref, branch=name),
            lambda: store.head(name),
            lambda: store.refs(name),
            lambda: store.writer(name),
        ):
            with pytest.raises(ValueError, match="a branch name has"):
                use()
        assert place.files() == before

    def test_the_writer_lock_is_advisory(self, place: Place) -> None:
        store, ref = place.new(), None
        with store.writer(), store.writer("side"):
            ref = store.commit(Snapshot(0), parent=None)
            place.open().commit(Snapshot(0), parent=ref)  # the lock is advisory
        with store.writer():
            assert store.branches() == ["main"]

    def test_a_deleted_branch_takes_its_own_commits_along(self, place: Place) -> None:
        store, stream = place.new(), Stream()
        stream.read(4, memory=4)
        first = store.commit(stream.snapshot(), parent=None)
        before = place.files()
        side = store.publish(first, branch="side")
        for _ in range(3):
            stream.read(2, memory=2)
            side = store.commit(stream.snapshot(), branch="side", parent=side)
        store.gc(Retention(last=1))  # what is left of a deleted snapshot goes as well
        assert store.delete_branch("side") == 3
        left = {key for key in place.files() if not key.endswith("/.lock")}
        assert left == set(before)
        for again in (store, place.open()):
            assert again.branches() == ["main"] and again.head("side") is None
            assert again.continuing() == [] and again.verify().commits == 1
        # The name is free for another branch.
        assert store.publish(first, branch="side").seq == 0
        assert store.delete_branch("side") == 0

    def test_a_branch_that_others_need_is_not_deleted(self, place: Place) -> None:
        store, stream = place.new(), Stream()
        first = store.commit(stream.snapshot(), parent=None)
        side = store.publish(first, branch="side")
        for _ in range(2):
            stream.read(2, memory=2)
            side = store.commit(stream.snapshot(), branch="side", parent=side)
        fork = store.publish(side, branch="fork")
        stream.read(2, memory=2)
        store.commit(stream.snapshot(), branch="fork", parent=fork)
        store.pin(side, "kept")
        before = place.files()
        for branch, message in (
            ("main", "another branch, or the session"),
            ("side", "branch 'fork' was forked from it"),
        ):
            with pytest.raises(ValueError, match=message):
                store.delete_branch(branch)
        with pytest.raises(NotFound, match="no branch 'none'"):
            store.delete_branch("none")
        assert {k: v for k, v in place.files().items() if "/none/" not in k} == before
        assert store.delete_branch("fork") == 1
        with pytest.raises(ValueError, match="pin 'kept' protects"):
            store.delete_branch("side")
        store.unpin("kept")
        assert store.delete_branch("side") == 2
        assert store.verify().commits == 1

    def test_an_interrupted_deletion_of_a_branch_is_repeated(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store, stream = place.new(), Stream()
        first = store.commit(stream.snapshot(), parent=None)
        side = store.publish(first, branch="side")
        for _ in range(4):
            stream.read(2, memory=2)
            side = store.commit(stream.snapshot(), branch="side", parent=side)
        discard, calls = store._backend.discard, []

        def failing(key: str) -> None:
            calls.append(key)
            if len(calls) == 6:
                raise OSError("gone")
            discard(key)

        with monkeypatch.context() as patch, pytest.raises(StoreError):
            patch.setattr(store._backend, "discard", failing)
            store.delete_branch("side")
        again = place.open()
        assert again.head("main") == first and again.continuing() == []
        assert again.delete_branch("side") == 4
        assert place.open().verify().commits == 1
