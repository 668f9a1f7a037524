"""Retention: which snapshots a session deletes, and that every position stays within reach."""

from collections.abc import Callable
from pathlib import Path

import pytest

from memory_store import DirectoryStore, Retention
from streamlm.sessions.session import Session
from tests.support.invariants import assert_same_state

SEGMENT = 16  # of the tiny model
Open = Callable[..., Session]


def test_old_snapshots_are_deleted(open_: Open, prose: Callable[..., str], tmp_path: Path) -> None:
    text = prose(800, seed=8)
    few = Retention(last=4, thin=True)
    session = open_(save_every=SEGMENT, retention=few)
    session.feed([text])
    keeper = open_("all", save_every=SEGMENT, retention=None)
    keeper.feed([text])
    everything = DirectoryStore.open(tmp_path / "all.zarr")
    store = DirectoryStore.open(tmp_path / "s.zarr")
    refs = session.history()
    assert len(refs) == len(keeper.history()) > 64
    assert all(everything.loadable(keeper.history()))
    kept = [ref for ref, whole in zip(refs, store.loadable(refs), strict=True) if whole]
    assert 4 < len(kept) < 40 and kept[-1] == refs[-1]
    # Any position can be rewound to, also after reopening, which restores the policy.
    session.close()
    with open_(save_every=SEGMENT) as again:
        assert again._live.store.retention == few
        lost = next(ref for ref in refs[20:] if ref not in kept)
        again.rewind(snapshot=lost.seq)
        keeper.rewind(snapshot=lost.seq)
        assert again.position == keeper.position
        assert_same_state(again.state, keeper.state, tolerance=1e-4)
    assert store.verify().commits > 60


def test_the_policy_is_recorded(open_: Open, tmp_path: Path) -> None:
    for name, options in (("usual", {}), ("all", {"retention": None})):
        with open_(name, **options) as session:
            session.feed("Call me Ishmael.")
    recorded = [
        DirectoryStore.open(tmp_path / f"{name}.zarr").attributes for name in ("usual", "all")
    ]
    policy = {"last": 32, "thin": True, "log": True, "spacing": 1 << 14}
    assert [each.get("retention") for each in recorded] == [policy, None]
    assert all(isinstance(each["seed"], int) for each in recorded)
    assert open_("all")._live.store.retention is None


def test_a_damaged_history_does_not_prevent_saving(
    open_: Open, prose: Callable[..., str], tmp_path: Path
) -> None:
    session = open_(save_every=SEGMENT, retention=Retention(last=2))
    session.feed([prose(20)])
    (tmp_path / "s.zarr" / "refs" / "main" / "000000000001.json").write_bytes(b"{}")
    with pytest.warns(RuntimeWarning, match="old snapshots were not deleted: "):
        session.feed([prose(200, seed=2)])
    assert session.saved is not None and session.saved.position == session.position


def test_short_turns_cost_little_more_than_one_feed(
    open_: Open, prose: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session of many short turns stays within 4 times the size of one long feed."""
    spacing = 8 * SEGMENT
    monkeypatch.setattr("memory_store.history.writing.WHOLE_EVERY", spacing)
    policy = Retention(last=32, thin=True, spacing=spacing)
    options = {"save_every": spacing, "retention": policy, "seed": 1}
    words = prose(700).split(" ")
    turns = [" ".join(words[at : at + 3]) + " " for at in range(0, len(words), 3)]
    stored = []
    for name, pieces in (("turns", turns), ("one", ["".join(turns)])):
        with open_(name, **options) as session:
            for piece in pieces:
                session.feed(piece)
            assert session.position > 10 * spacing
            store = session.live.require_store("count").store
            loadable = [ref for ref in session.history() if store.is_loadable(ref)]
            arrays = sum(
                spec.nbytes
                for ref in {ref.commit.name: ref for ref in loadable}.values()
                for spec in store._commits.read(ref.commit).arrays.values()
            )
            stored.append(arrays)
            # What is kept of old turns needs no other commit, and any position can be rewound to.
            old = [ref for ref in loadable if ref.position < session.position - 2 * spacing][1:]
            assert not any(store._commits.sources_of(ref.commit for ref in old)) or name == "one"
            middle = session.position // 2
            before = session.text(0, middle)
            session.rewind(to=middle)
            assert (session.position, session.text()) == (middle, before)
    assert stored[0] < 4 * stored[1]
