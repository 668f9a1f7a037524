"""Lost refs and lost pins: commits that no ref leads to are evidence, and are not rolled back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from memory_store import Commit, Conflict, Corrupt, NotFound, Ref, Retention, Snapshot, StoreError
from memory_store.store import Store
from memory_store.types import TakenUp
from tests.memory_store.conformance.upkeep import grown, ids_of
from tests.support.stores import Stream, assert_equal, where


def ref_file(seq: int, branch: str = "main") -> str:
    return f"refs/{branch}/{seq:012d}.json"


def lose(place: Any, *seqs: int, branch: str = "main") -> Store:
    for seq in seqs:
        place.write(ref_file(seq, branch), None)
    opened: Store = place.open()
    return opened


def entries(refs: Sequence[Ref]) -> list[tuple[int, Commit]]:
    """What refs say except when: a restored one has the time of its commit."""
    return [(ref.seq, ref.commit) for ref in refs]


def swept(store: Store) -> int:
    return store.gc(grace=-1.0).leftovers  # a dict has no time stamps


def following(store: Store, parent: Ref) -> Ref:
    """One more commit after `parent`, on its branch."""
    stream = Stream(1)
    stream.resume(store.load(parent))
    stream.read(10, memory=3, compressed=1)
    return store.commit(stream.snapshot(), branch=parent.branch, parent=parent)


class LostRefsConformance:
    """Part of `StoreConformance`."""

    @pytest.mark.parametrize("lost", [(5,), (4, 5), (1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5)])
    @pytest.mark.parametrize("how", ["take_up", "recover"])
    def test_lost_newest_refs_are_noticed_and_restored(
        self, place: Any, lost: tuple[int, ...], how: str
    ) -> None:
        refs, snapshots = grown(place.new(), 6)
        store = lose(place, *lost)
        names = [refs[seq].commit.name for seq in lost]
        assert [commit.name for commit in store.continuing("main")] == names
        assert list(store.verify().unreferenced) == names
        assert swept(store) == 0
        if how == "take_up":
            taken = store.take_up("main")
            assert entries(taken.refs) == [entries(refs)[seq] for seq in lost] and not taken.left
        else:
            found = store.recover()
            assert found.head.commit == refs[5].commit and not found.damage
            assert len(found.found) == len(lost)
        again = store.refs("main")
        assert entries(again) == entries(refs)
        assert all(a.created <= ref.created for a, ref in zip(again, refs, strict=True))
        assert_equal(store.load(refs[-1]), snapshots[-1])
        assert store.continuing("main") == [] and not store.verify().unreferenced
        assert store.take_up("main") == TakenUp()
        following(store, again[-1])

    def test_rewinds_and_forks_are_no_losses(self, place: Any) -> None:
        store = place.new()
        refs, _ = grown(store, 6)
        store.publish(refs[1], branch="main")
        side = store.publish(refs[3], branch="side")
        following(store, side)
        following(store, store.publish(refs[5], branch="other"))
        for branch in ("main", "side", "other"):
            assert store.continuing(branch) == []
            assert store.take_up(branch) == TakenUp()
        assert not store.verify().unreferenced
        before = place.files()
        assert swept(store) == 0
        assert place.files() == before
        head = store.head("main")
        assert head is not None
        following(store, head)
        assert not place.open().verify().unreferenced

    def test_a_killed_writer_leaves_a_leftover_once_others_went_on(self, place: Any) -> None:
        store = place.new()
        refs, _ = grown(store, 3)
        store = lose(place, 2)
        other = following(store, refs[1])  # at once, as nobody looked
        assert store.continuing("main") == [] and not store.verify().unreferenced
        assert swept(store) == 1
        assert place.commits() == {ref.commit.name for ref in (refs[0], refs[1], other)}
        assert store.verify().commits == 3

    def test_commits_of_two_branches_are_not_mixed(self, place: Any) -> None:
        """Both branches are at one commit: whose the commit after it is, files do not tell."""
        store = place.new()
        refs, _ = grown(store, 3)
        side = store.publish(refs[2], branch="side")
        lost = following(store, side)
        store = lose(place, 1, branch="side")
        for branch in ("main", "side"):
            assert store.take_up(branch) == TakenUp((), (lost.commit,))
        assert store.verify().unreferenced == (lost.commit.name,)
        assert swept(store) == 0
        found = store.recover("main")
        assert found.head == refs[2] and len(found.found) == 1
        assert "found-40-0" in found.found[0]
        head = store.head("found-40-0")
        assert head is not None and head.commit == lost.commit
        assert not store.verify().unreferenced

    def test_a_lost_branch_beside_another_is_noticed(self, place: Any) -> None:
        store = place.new()
        refs, snapshots = grown(store, 5)
        following(store, store.publish(refs[2], branch="side"))
        store = lose(place, 0, 1, 2, 3, 4)
        assert len(store.verify().unreferenced) == 2
        assert swept(store) == 0
        with pytest.raises(Corrupt, match="no refs, but there are 4 commits"):
            store.take_up("main")
        with pytest.raises(NotFound, match="no branch here"):
            store.recover("third")
        assert store.recover("main").head.commit == refs[4].commit
        assert entries(store.refs("main")) == entries(refs)
        assert np.array_equal(store.tokens(refs[-1], 0, 50), ids_of(snapshots))

    @pytest.mark.parametrize("lost", [(2,), (2, 3), (0, 1), (4, 5)])
    def test_damaged_refs_are_restored_as_they_were(
        self, place: Any, lost: tuple[int, ...]
    ) -> None:
        store = place.new()
        refs, _ = grown(store, 6)
        for seq in lost:
            place.write(ref_file(seq), b"{}")
        found = place.open().recover()
        assert entries(store.refs("main")) == entries(refs)
        assert found.head.commit == refs[5].commit and len(found.damage) == len(lost)
        assert swept(store) == 0 and len(place.commits()) == 6

    def test_ancestors_that_no_ref_names_stay(self, place: Any) -> None:
        """An early version replaced a damaged ref by one to the commit before."""
        store = place.new()
        refs, _ = grown(store, 4)
        place.write(ref_file(1), None)
        store._refs.publish("main", 1, refs[0].commit, through=store._backend)
        store = place.open()
        assert not store.verify().unreferenced and swept(store) == 0
        assert store.gc(Retention(last=1)).leftovers == 0
        assert len(store.tokens(refs[-1], 0, 40)) == 40
        store.verify()

    @pytest.mark.parametrize("at", [5, 4])
    def test_recovery_needs_the_newest_token_ids(self, place: Any, at: int) -> None:
        """Opening reads them: a snapshot without them is not sound."""
        store = place.new()
        refs, snapshots = grown(store, 6)
        key = f"commits/{refs[at].commit.name}"
        data = place.files()[key]
        begin = where(data, "tokens/c.0")
        place.write(key, data[:begin] + bytes([data[begin] ^ 1]) + data[begin + 1 :])
        store = place.open()
        found = store.recover()
        assert found.head.commit == refs[at - 1].commit and len(found.damage) == 6 - at
        assert len(store.tokens(found.head, 0, found.head.position)) == found.head.position
        assert_equal(store.load(found.head), snapshots[at - 1])
        following(store, found.head)

    def test_recovery_goes_on_where_opening_would(self, place: Any) -> None:
        """A replaced ref led to a commit after the one that becomes the head: it is the head."""
        store = place.new()
        refs, _ = grown(store, 4)
        side = following(store, store.publish(refs[2], branch="main"))
        store.publish(refs[3], branch="main")
        place.write(ref_file(side.seq), b"{}")
        key = f"commits/{refs[3].commit.name}"
        data = place.files()[key]
        begin = where(data, "memory/c.0.0.0.0")
        place.write(key, data[:begin] + bytes([data[begin] ^ 1]) + data[begin + 1 :])
        store = place.open()
        found = store.recover()
        assert found.head.commit == side.commit and side.commit.name in str(found.found)
        assert store.take_up("main") == TakenUp() and store.head("main") == found.head

    def test_recovery_reports_older_token_ids(
        self, place: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("memory_store.upkeep.taking_up.RECENT", 15)
        store = place.new()
        refs, _ = grown(store, 6)
        key = f"commits/{refs[1].commit.name}"
        data = place.files()[key]
        begin = where(data, "tokens/c.0")
        place.write(key, data[:begin] + bytes([data[begin] ^ 1]) + data[begin + 1 :])
        found = place.open().recover()
        assert found.head == refs[5]
        assert len(found.damage) == 1 and refs[1].commit.name in found.damage[0]

    def test_pins_are_verified_and_recovered(self, place: Any) -> None:
        store = place.new()
        refs, snapshots = grown(store, 10)
        store.pin(refs[2], "beginning")
        pin, copy = "pins/beginning.json", "pinned/beginning.json"
        honest = place.files()[pin]
        assert place.files()[copy] == honest
        for key in (pin, copy):
            for damage in (None, b"{}", honest[:-9] + b"0" + honest[-8:]):
                if key == copy and damage is None:
                    continue  # as in sessions of early versions
                place.write(key, damage)
                store = place.open()
                with pytest.raises(StoreError, match="beginning"):
                    store.verify()
                if damage is None:  # protected nevertheless
                    assert store.pins() == {"beginning": refs[2].commit}
                    store.gc(Retention(last=1))
                    assert_equal(store.load(refs[2]), snapshots[2])
                found = store.recover()
                assert len(found.damage) == len(found.found) == 1
                assert place.files()[pin] == place.files()[copy] == honest
                store.verify()
        for key in (pin, copy):
            place.write(key, b"{}")
        found = place.open().recover()
        assert len(found.damage) == 1 and not found.found
        assert {"lost/pins-beginning-0.json", "lost/pinned-beginning-0.json"} <= {*place.files()}
        assert place.open().verify().commits == 10 and store.pins() == {}

    def test_a_pinned_snapshot_that_is_gone_is_noticed(self, place: Any) -> None:
        store = place.new()
        refs, _ = grown(store, 30)
        store.pin(refs[2], "beginning")
        files = {key: data for key, data in place.files().items() if key.startswith("pin")}
        store.unpin("beginning")
        store.gc(Retention(last=1))
        for key, data in files.items():
            place.write(key, data)
        store = place.open()
        with pytest.raises(Corrupt, match="its snapshot at 30 tokens was deleted"):
            store.verify()
        found = store.recover()
        assert len(found.damage) == 1 and "was deleted" in found.damage[0]

    def test_a_commit_that_was_taken_up_is_published(
        self, place: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another process publishes a commit before its own writer does: both agree."""
        store = place.new()
        refs, _ = grown(store, 2)
        rival, publish = place.open(), store._refs.publish

        def late(branch: str, seq: int, commit: Any, *, through: Any) -> Ref:
            through.persist()
            rival._refs.publish(branch, seq, commit, through=rival._backend)
            return publish(branch, seq, commit, through=rival._backend)

        with monkeypatch.context() as patch:
            patch.setattr(store._refs, "publish", late)
            ref = following(store, refs[-1])
        assert store.head("main") == ref
        assert place.open().verify().commits == 3
        with pytest.raises(Conflict):
            store.commit(Snapshot(20), parent=refs[-1])
