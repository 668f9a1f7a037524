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
    text = prose(1500, seed=8)
    few = Retention(last=4, thin=True)
    session = open_(save_every=SEGMENT, retention=few)
    session.feed([text])
    keeper = open_("all", save_every=SEGMENT, retention=None)
    keeper.feed([text])
    everything = DirectoryStore.open(tmp_path / "all.zarr")
    store = DirectoryStore.open(tmp_path / "s.zarr")
    refs = session.history()
    assert len(refs) == len(keeper.history()) > 128
    assert all(everything.loadable(keeper.history()))
    kept = [ref for ref, whole in zip(refs, store.loadable(refs), strict=True) if whole]
    assert 4 < len(kept) < 60 and kept[-1] == refs[-1]
    # Any position can be rewound to, also after reopening, which restores the policy.
    session.close()
    with open_(save_every=SEGMENT) as again:
        assert again._live.store.retention == few
        lost = next(ref for ref in refs[20:] if ref not in kept)
        again.rewind(snapshot=lost.seq)
        keeper.rewind(snapshot=lost.seq)
        assert again.position == keeper.position
        assert_same_state(again.state, keeper.state, tolerance=1e-4)
    assert store.verify().commits > 100


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
