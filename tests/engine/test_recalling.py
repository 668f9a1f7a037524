"""Recall in an engine: the archive has what was served, and a search stops nobody."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.engine import Cancelled, Engine
from streamlm.models.retrieval import RetrievalHeads
from streamlm.sessions.live import LiveStream
from streamlm.sessions.session import Session

SEGMENT = 16
SECRET = "The parrot Esmeralda knows the number 7319. "
ASKED = "The parrot Esmeralda knows"


def test_an_archive_has_every_token_that_was_served(
    tiny_folder: Callable[..., Path], tmp_path: Path, prose: Callable[..., str]
) -> None:
    """Keys of what is read and written in a row are kept as by a session, and recall works."""
    heads = RetrievalHeads(((0, 1), (1, 2)))
    folder = tiny_folder(head="llama", n_heads=4, slots="float32", compression="mean")
    settings = {"precision": "float32"}
    loaded = load_checkpoint(folder, device="cpu", settings=settings)
    checkpoint = replace(loaded, retrieval=heads)
    with (
        Engine(checkpoint, rows=3) as engine,
        streamlm.open(tmp_path / "s.zarr", checkpoint, save_every=3 * SEGMENT) as session,
    ):
        engine.feed(session, prose(40) + SECRET + prose(80)).result(60)
        engine.generate(session, max_tokens=5 * SEGMENT, seed=1).result(60)
        store, ref = session.live.require_store("test").store, session.saved
        assert ref is not None and ref.position == session.position
        assert store.log_spans(ref, f"keys-{heads.digest}") == [(0, ref.position)]
        (found,) = engine.call(session, lambda session: session.recall(ASKED, k=1)).result(60)
        assert "7319" in found.text
        before = session.position
        engine.generate(session, ASKED, max_tokens=1, recall=1).result(60)
        assert session.recalled and session.position > before + len(SECRET) / 8


@pytest.fixture
def told(
    tiny: Checkpoint, tmp_path: Path, prose: Callable[..., str]
) -> Iterator[Callable[[str], Session]]:
    """Opens a new session that was told a secret long ago."""
    opened = []

    def tell(name: str) -> Session:
        session = streamlm.open(tmp_path / f"{name}.zarr", tiny)
        opened.append(session)
        session.feed(prose(40) + SECRET + prose(80))
        return session

    yield tell
    for session in opened:
        session.close()


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Searches tell that they have begun, and go on when they are told to."""
    begun, go_on = threading.Event(), threading.Event()
    recall = LiveStream.recall

    def search(self: LiveStream, *args: Any, **options: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return recall(self, *args, **options)

    monkeypatch.setattr(LiveStream, "recall", search)
    return begun, go_on


def test_others_write_during_a_search(
    tiny: Checkpoint, told: Callable[[str], Session], searches: tuple[threading.Event, ...]
) -> None:
    """And the session that recalls gets what it would get alone."""
    begun, go_on = searches
    with Engine(tiny, rows=2) as engine:
        recalls, alone = told("recalls"), told("alone")
        asked = engine.generate(recalls, ASKED, max_tokens=4, recall=1, seed=3)
        assert begun.wait(60)
        assert engine.generate(Session(tiny), max_tokens=5).result(60) == 5
        assert not asked.done
        go_on.set()
        assert asked.result(60) == 4 and recalls.recalled
        engine.generate(alone, ASKED, max_tokens=4, recall=1, seed=3).result(60)
        assert recalls.text() == alone.text() and alone.recalled == recalls.recalled


def test_a_search_that_is_cancelled(
    tiny: Checkpoint, told: Callable[[str], Session], searches: tuple[threading.Event, ...]
) -> None:
    """It is waited for; then the request has ended, has read nothing, and the session goes on."""
    begun, go_on = searches
    with Engine(tiny, rows=2) as engine:
        session = told("cancelled")
        before = session.position
        asked = engine.generate(session, ASKED, max_tokens=4, recall=1)
        assert begun.wait(60)
        asked.cancel()
        after = engine.generate(session, max_tokens=1)
        go_on.set()
        with pytest.raises(Cancelled):
            asked.result(60)
        assert after.result(60) == 1 and not session.recalled
        assert session.position - before <= 2  # the text held back, and a token
