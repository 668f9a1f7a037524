"""Indexing a session later: the rows are those that reading would have saved."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import streamlm
from memory_store import Retention, StoreError
from memory_store.store import Store
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.models.retrieval import RetrievalHeads
from streamlm.sessions.archive import Archive
from streamlm.sessions.session import Session

HEADS = RetrievalHeads(((0, 1), (1, 0)))
Prose = Callable[..., str]


@pytest.fixture(scope="module")
def llama(tiny_folder: Callable[..., Path]) -> Checkpoint:
    return replace(load_checkpoint(tiny_folder(head="llama"), device="cpu"), retrieval=HEADS)


def rows(session: Session) -> dict[int, bytes]:
    """The saved rows of a session's keys, by position."""
    store, saved = store_of(session), session.saved
    assert saved is not None
    name = Archive(session.checkpoint).name
    pieces = store.log(saved, name, 0, saved.position)
    return {first + at: row.tobytes() for first, part in pieces for at, row in enumerate(part)}


def numbers(session: Session) -> np.ndarray:
    """Their keys, [n, K, E]."""
    store, saved = store_of(session), session.saved
    assert saved is not None
    archive = Archive(session.checkpoint)
    pieces = archive.read(store, saved, session.state, 0, saved.position)
    return np.concatenate([keys.numpy() for _, keys in pieces])


def store_of(session: Session) -> Store:
    bound = session._live.store
    assert bound is not None and isinstance(bound.store, Store)
    return bound.store


def test_rows_equal_those_of_reading(llama: Checkpoint, prose: Prose, tmp_path: Path) -> None:
    text, states = prose(500), []
    with streamlm.open(tmp_path / "read.zarr", llama) as session:
        session.feed(text)
        wanted = rows(session)
        states.append(session.state.digest())
    with streamlm.open(tmp_path / "later.zarr", llama, archive=False) as session:
        session.feed(text)
        assert not rows(session)
    seen: list[tuple[int, int]] = []
    with streamlm.open(tmp_path / "later.zarr", llama) as session:
        position, tail = session.position, session.tail
        assert session.index(progress=lambda *done: seen.append(done)) == position
        assert rows(session) == wanted and sorted(wanted) == list(range(position))
        assert (session.position, session.tail) == (position, tail)
        states.append(session.state.digest())
        assert session.index() == 0
        assert session.recall("never again", k=2)
    assert seen[-1] == (position, position) and [n for n, _ in seen] == sorted(n for n, _ in seen)
    with streamlm.open(tmp_path / "later.zarr", llama, readonly=True) as session:
        states.append(session.state.digest())
        assert rows(session) == wanted and session.tail == tail
    assert len(set(states)) == 1
    store_of(session).verify()


def test_only_gaps_are_read_again(llama: Checkpoint, prose: Prose, tmp_path: Path) -> None:
    """A session that was read with an archive, without, and with one again."""
    ends = []
    for seed, archive in enumerate((True, False, True)):
        with streamlm.open(tmp_path / "s.zarr", llama, archive=archive) as session:
            session.feed(prose(90, seed=seed))
            ends.append(session.position)
    with streamlm.open(tmp_path / "s.zarr", llama) as session:
        before = rows(session)
        missing = set(range(ends[-1])) - set(before)
        assert missing == set(range(ends[0], ends[1]))
        assert session.index() == ends[1] - ends[0]
        after = rows(session)
        assert {at: after[at] for at in before} == before and len(after) == ends[-1]
        session.generate("Why?", max_tokens=3)
        session.feed(prose(40))
        assert len(rows(session)) == session.position


def test_an_interruption_keeps_what_is_done(
    llama: Checkpoint, prose: Prose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlm.sessions.indexing.ROWS", 50)  # 48, in segments of 16
    text = prose(300)
    with streamlm.open(tmp_path / "read.zarr", llama) as session:
        session.feed(text)
        wanted = rows(session)
    with streamlm.open(tmp_path / "s.zarr", llama, archive=False) as session:
        session.feed(text)

        def stop(done: int, total: int) -> None:
            if done >= 112:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            session.index(progress=stop)
        assert sorted(rows(session)) == list(range(96))
    with streamlm.open(tmp_path / "s.zarr", llama) as session:
        assert session.index() == session.position - 96
        assert rows(session) == wanted
        numbers(session)
        # A snapshot of the same position was added for each piece.
        positions = [ref.position for ref in session.history()]
        assert positions.count(session.position) == 2 + (session.position - 1) // 48
        session.rewind(to=40)
        assert session.position == 40 and not session.index()


def test_cuts_change_rows_by_rounding_alone(
    llama: Checkpoint, prose: Prose, tmp_path: Path
) -> None:
    with streamlm.open(tmp_path / "s.zarr", llama) as session:
        session.feed(prose(100), block_bytes=30)
        list(session.generate("And", max_tokens=20, seed=1))
        session.save()
        wanted = numbers(session)
        log = session.text()
    with streamlm.open(tmp_path / "t.zarr", llama, archive=False) as session:
        session.feed(prose(100), block_bytes=30)
        list(session.generate("And", max_tokens=20, seed=1))
        assert session.text() == log
        session.index()
        # Products of other numbers of rows may round otherwise; a slot has 8 bits of mantissa.
        assert np.abs(numbers(session) - wanted).max() <= 0.05 * np.abs(wanted).max()


def test_an_interrupted_feed_goes_on_after_indexing(
    llama: Checkpoint, prose: Prose, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_text(prose(400), encoding="utf-8")

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with streamlm.open(tmp_path / "s.zarr", llama, archive=False) as session:
        with pytest.raises(KeyboardInterrupt):
            session.feed(file, block_bytes=500, progress=stop)
        middle = session.position
        assert session.index() == middle > 0
    with streamlm.open(tmp_path / "s.zarr", llama) as session:
        report = session.feed(file)
        assert report.skipped_bytes > 0
        assert len(rows(session)) == session.position > middle
        assert session.text() + session.tail == prose(400)


def test_snapshots_that_were_deleted(llama: Checkpoint, prose: Prose, tmp_path: Path) -> None:
    """Tokens that are gone cannot be read again; what is left is indexed."""
    with streamlm.open(tmp_path / "s.zarr", llama, archive=False, retention=None) as session:
        ends = []
        for seed in range(3):
            session.feed(prose(150, seed=seed))
            ends.append(session.position)
        store_of(session).gc(Retention(last=2, log=False), grace=0)
        assert session.index() == ends[-1] - ends[-2]
        assert sorted(rows(session)) == list(range(ends[-2], ends[-1]))
        assert session.index() == 0


def test_nothing_to_index(llama: Checkpoint, tmp_path: Path) -> None:
    with streamlm.open(tmp_path / "s.zarr", llama) as session:
        assert session.index() == 0
        assert session.saved is None


def test_refusals(llama: Checkpoint, tiny: Checkpoint, prose: Prose, tmp_path: Path) -> None:
    with streamlm.open(tmp_path / "s.zarr", tiny) as session:
        session.feed(prose(20))
        with pytest.raises(ValueError, match="no retrieval heads; streamlm calibrate MODEL"):
            session.index()
    with pytest.raises(ValueError, match="no store"):
        Session(llama).index()
    with streamlm.open(tmp_path / "t.zarr", llama) as session:
        session.feed(prose(20))
    with pytest.raises(ValueError, match="the session is closed"):
        session.index()
    with (
        streamlm.open(tmp_path / "t.zarr", llama, readonly=True) as session,
        pytest.raises(ValueError, match="read only"),
    ):
        session.index()


def test_a_commit_that_fails(
    llama: Checkpoint, prose: Prose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with streamlm.open(tmp_path / "s.zarr", llama, archive=False) as session:
        session.feed(prose(100))

        def fail(*_: object, **__: object) -> None:
            raise StoreError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(Store, "commit", fail)
            with pytest.raises(StoreError, match="full"):
                session.index()
        assert not rows(session)
        assert session.index() == session.position == len(rows(session))
