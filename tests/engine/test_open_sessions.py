"""Sessions in memory: opened once, closed when others need the room, and back as they were."""

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

import streamlm
from memory_store import Conflict, DirectoryStore
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.engine import Engine, OpenSessions
from streamlm.sessions.session import Session


@pytest.fixture
def opened() -> list[str]:
    return []


@pytest.fixture
def open_named(tiny: Checkpoint, tmp_path: Path, opened: list[str]) -> Callable[[str], Session]:
    def open_named(name: str) -> Session:
        opened.append(name)
        return streamlm.open(tmp_path / f"{name}.zarr", tiny)

    return open_named


def test_the_least_recently_used_go_and_come_back(
    open_named: Callable[[str], Session], opened: list[str], tiny: Checkpoint
) -> None:
    one = Session(tiny).state.nbytes
    with Engine(tiny, rows=2) as engine:
        sessions = OpenSessions(open_named, limit=5 * one)
        for name in "abcd":
            with sessions.use(name) as session:
                engine.feed(session, f"I am {name} and nobody else. ").result(60)
                session.live.cache.release()
        with sessions.use("a"):
            pass
        with sessions.use("e") as session:
            pass
        assert opened == list("abcde") and len(sessions) == 5
        for name in "fg":
            with sessions.use(name):
                assert sessions.nbytes > 0
        assert sessions.nbytes <= 5 * one
        opened.clear()
        with sessions.use("a") as session:  # used after b and c, which have gone
            assert session.text().startswith("I am a and")
        with sessions.use("b") as session:
            assert session.text().startswith("I am b and")
        assert opened == ["b"]
        sessions.close()
        assert len(sessions) == 0 and sessions.nbytes == 0


def test_a_session_in_use_stays_open(
    open_named: Callable[[str], Session], opened: list[str]
) -> None:
    sessions = OpenSessions(open_named, limit=0)
    with sessions.use("a") as first, sessions.use("a") as second:
        assert first is second
        with sessions.use("b"):
            pass
        with pytest.raises(ValueError, match="session 'a' is in use"):
            sessions.close("a")
        first.feed("Still here.")
    assert opened == ["a", "b"] and len(sessions) == 0
    sessions.close("a")


def test_many_threads_share_one_session(
    open_named: Callable[[str], Session], opened: list[str]
) -> None:
    """Each name is open once at a time, however many ask, also while it is being closed."""
    sessions, users, most = OpenSessions(open_named, limit=0), [0], [0]
    failed: list[BaseException] = []

    def use() -> None:
        try:
            for _ in range(10):
                with sessions.use("a") as session:
                    users[0] += 1
                    most[0] = max(most[0], users[0])
                    assert not session.live.closed
                    time.sleep(0.001)
                    users[0] -= 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed and len(sessions) == 0 and opened


def test_a_session_that_cannot_be_saved(
    open_named: Callable[[str], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever needs its room does not get its error, and the others are closed as well."""
    monkeypatch.setattr(DirectoryStore, "writer", lambda *_: nullcontext())  # no lock
    unsaved = list[tuple[str, Exception]]()
    sessions = OpenSessions(open_named, on_unsaved=lambda *each: unsaved.append(each))
    with sessions.use("a") as session, open_named("a") as other:
        other.feed("Another process was here.")
        with pytest.raises(Conflict):
            session.feed("And so was this one.")
    with sessions.use("b") as session:
        session.feed("Nothing is wrong here.")
    sessions.close()
    assert len(sessions) == 0 and session.live.closed
    [(name, error)] = unsaved
    assert name == "a" and isinstance(error, Conflict)


def test_errors_of_opening(tmp_path: Path) -> None:
    def fail(name: str) -> Session:
        raise FileNotFoundError(f"no session {name}")

    sessions = OpenSessions(fail)
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="no session a"), sessions.use("a"):
            pass
    assert len(sessions) == 0
    with pytest.raises(ValueError, match="limit = -1"):
        OpenSessions(fail, limit=-1)
