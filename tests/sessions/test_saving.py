"""Saving in the background: when, what is saved, and what an error leaves."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import streamlm.sessions.saving
from memory_store import Conflict, DirectoryStore, Ref, StoreError, StoreFull
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.sessions.session import Session
from tests.support.invariants import assert_same_state
from tests.support.sessions import ctrl_c_at

SEGMENT = 16  # of the tiny model
Open = Callable[..., Session]


@pytest.fixture(scope="module")
def text(prose: Callable[..., str]) -> str:
    return prose(150, seed=5)


def positions(session: Session) -> list[int]:
    return [ref.position for ref in session.history()]


# -- when -------------------------------------------------------------------------------------


def test_saves_within_a_block_fall_on_segment_ends(open_: Open, text: str) -> None:
    session = open_(save_every=SEGMENT)
    report = session.feed([text])
    assert report.tokens > 10 * SEGMENT
    wanted = [*range(0, session.position, SEGMENT), session.position]
    assert positions(session) == wanted
    # Saves are at least `save_every` tokens apart, and never within a segment.
    session = open_("rarely", save_every=3 * SEGMENT - 5)
    session.feed([text])
    assert positions(session)[:-1] == [*range(0, session.position, 3 * SEGMENT)]


def test_text_not_yet_read_is_saved(
    open_: Open, text: str, tmp_path: Path, tiny: Checkpoint
) -> None:
    """A session rewound to within a block continues with the rest of the block."""
    session = open_(save_every=2 * SEGMENT)
    session.feed([text])
    session.feed(" The end.")
    end = session.position, session.tail
    ref = session.history()[3]
    assert ref.position == 6 * SEGMENT
    session.rewind(snapshot=ref)
    stream = session._live.stream
    assert tiny.tokenizer.decode(stream.ahead) + stream.tail["text"] == session.tail
    read = tiny.tokenizer.decode(DirectoryStore.open(tmp_path / "s.zarr").tokens(ref, 0, 96))
    assert read + session.tail == text
    scored = session.score("x").tokens
    assert scored == 1  # only the text itself; the text ahead was read before it
    session.close()
    with open_() as again:
        assert again.position == ref.position and read + again.tail == text
        again.feed([" The end."])
        assert (again.position, again.tail) == end
        assert_same_state(again.state, session_state(tiny, text + " The end."), tolerance=1e-4)
        again.rewind(snapshot=3)
        again.rewind(to=ref.position - 1)  # drops the text that is held back
        assert again.tail == ""


def session_state(tiny: Checkpoint, text: str) -> Any:
    session = Session(tiny)
    session.feed([text])
    return session.state


def test_generate_first_reads_the_text_ahead(open_: Open, text: str, tiny: Checkpoint) -> None:
    session = open_(save_every=SEGMENT, retention=None)
    session.feed([text])
    session.rewind(snapshot=2)
    list(session.generate("So", max_tokens=0))
    assert session.tail == ""
    assert session.position == len(tiny.tokenizer.encode(text + "So"))


# -- in the background ------------------------------------------------------------------------


class Slow:
    """Commits that wait for an event."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.most = self.now = 0
        self.threads: set[int] = set()
        self.go_on = threading.Event()
        commit = DirectoryStore.commit

        def slowly(store: DirectoryStore, *args: Any, **options: Any) -> Ref:
            self.begun += 1
            self.now += 1
            self.most = max(self.most, self.now)
            self.threads.add(threading.get_ident())
            assert self.go_on.wait(30)
            self.now -= 1
            return commit(store, *args, **options)

        patch.setattr(DirectoryStore, "commit", slowly)


def test_reading_continues_during_a_commit(
    open_: Open, text: str, monkeypatch: pytest.MonkeyPatch, tiny: Checkpoint
) -> None:
    session = open_(save_every=4 * SEGMENT)
    slow = Slow(monkeypatch)
    before = threading.active_count()
    failed: list[BaseException] = []

    def read() -> None:
        try:
            session.feed([text])
        except BaseException as error:
            failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    deadline = time.monotonic() + 30
    # Reading stops where the next commit is due, as only one is pending at a time.
    while session.position < 8 * SEGMENT and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert session.position == 8 * SEGMENT and slow.begun == 1 and not session.saved
    slow.go_on.set()
    reader.join(30)
    assert not failed and slow.most == 1 and threading.get_ident() not in slow.threads
    assert positions(session)[:4] == [0, 4 * SEGMENT, 8 * SEGMENT, 12 * SEGMENT]
    assert session.saved == session.history()[-1]
    assert threading.active_count() <= before + 1  # one commits at a time


def test_a_forked_child_does_not_wait_for_the_worker_thread(
    open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_()
    session.feed("Call me Ishmael.")
    list(session.generate(max_tokens=2))
    bound, slow = session._live.store, Slow(monkeypatch)
    bound.settle()
    session._live._begin_save(bound, None)
    deadline = time.monotonic() + 30
    while not slow.begun and time.monotonic() < deadline:
        time.sleep(0.005)
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends a process that waits
        try:
            bound.settle()
        finally:
            os._exit(0 if bound.saved == session.saved and bound._pending is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    slow.go_on.set()
    bound.settle()
    assert session.saved is not None and session.saved.position == session.position


def test_without_a_worker_the_waiting_thread_commits(
    open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at interpreter shutdown, when no thread can start."""
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    monkeypatch.setattr("streamlm.sessions.saving.committers", lambda: pool)
    session = open_()
    session.feed("Call me Ishmael.")
    list(session.generate(max_tokens=2))
    assert session.save().position == session.position


@pytest.mark.parametrize("who", ["thread", "caller"])
def test_waiting_for_a_commit_can_be_interrupted_at_any_line(
    who: str, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_()
    pool, n, interrupted = ThreadPoolExecutor(1), 0, True
    submit = pool.submit
    monkeypatch.setattr("streamlm.sessions.saving.committers", lambda: pool)

    def begun_at_once(commit: Callable[[], None]) -> None:
        begun = threading.Event()
        submit(lambda: (begun.set(), commit()))
        assert begun.wait(30)

    if who == "thread":
        monkeypatch.setattr(pool, "submit", begun_at_once)
    else:  # no thread runs one
        pool.shutdown()
    while interrupted:
        list(session.generate("And so.", max_tokens=0))
        n, interrupted = n + 1, False
        try:
            with ctrl_c_at(n, streamlm.sessions.saving):
                session.save()
        except KeyboardInterrupt:
            interrupted = True
        assert session.save().position == session.position
    assert n > 30
    # Each is committed once, or twice if the interruption came after the first was visible.
    assert positions(session) == sorted(positions(session))
    assert len(set(positions(session))) == n + 1


def test_everything_is_saved_when_a_call_returns(
    open_: Open, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    timer = threading.Timer(0.05, slow.go_on.set)
    timer.start()
    session = open_(save_every=SEGMENT)
    session.feed([text])
    head = DirectoryStore.open(tmp_path / "s.zarr").head("main")
    assert head is not None and head == session.saved and head.position == session.position
    for _ in session.generate(max_tokens=SEGMENT + 1):
        pass
    assert session.save().position == session.position
    timer.join()


# -- errors -----------------------------------------------------------------------------------


def failing(patch: pytest.MonkeyPatch, n: int, *, after: bool = False) -> None:
    """Make the n-th commit from now on fail; `after`: once its head is visible."""
    commit, calls = DirectoryStore.commit, 0

    def fail(store: DirectoryStore, *args: Any, **options: Any) -> Ref:
        nonlocal calls
        calls += 1
        if calls == n and not after:
            raise StoreFull("no space left. Free some.")
        ref = commit(store, *args, **options)
        if calls == n:
            raise StoreError("the disk did not confirm it. Check the disk.")
        return ref

    patch.setattr(DirectoryStore, "commit", fail)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_a_failed_commit_is_raised_and_nothing_is_lost(
    n: int,
    after: bool,
    open_: Open,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    token_log: Callable[..., list[int]],
    tiny: Checkpoint,
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    session = open_(save_every=2 * SEGMENT)
    failing(monkeypatch, n, after=after)
    with pytest.raises(StoreError):
        session.feed(path)
    assert not session._live.store._pending
    session.feed(path)
    assert session.tail + tiny.tokenizer.decode(session._live.stream.ahead) != text
    log = token_log(tmp_path / "s.zarr")
    assert tiny.tokenizer.decode(log) + session.tail == text
    assert positions(session) == sorted(set(positions(session)))
    digest = session.state.digest()
    session.close()
    assert open_().state.digest() == digest


def test_close_repeats_a_failed_commit(
    open_: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_(save_every=1)
    session.feed("Call me Ishmael.")
    failing(monkeypatch, 3)
    list(session.generate(max_tokens=2))  # the last commit fails unnoticed
    assert session.saved is not None and session.saved.position < session.position
    session.close()
    assert open_(readonly=True).position == session.position


def test_a_commit_of_another_writer_is_a_conflict(
    open_: Open, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without locks: a commit fails, and another writer has committed first."""
    path = tmp_path / "s.zarr"
    with open_() as session:
        session.feed("Call me Ishmael.")
    monkeypatch.setattr(DirectoryStore, "writer", lambda *_: pytest.MonkeyPatch.context())
    session, other = open_(), open_()
    twin, n = Session(tiny), session.position
    twin.feed(["Call me Ishmael."])
    list(other.generate("Yes", max_tokens=0))
    commit = DirectoryStore.commit

    def late(store: DirectoryStore, *args: Any, **options: Any) -> Ref:
        monkeypatch.setattr(DirectoryStore, "commit", commit)
        other.save()
        raise StoreError("no answer. Try again.")

    monkeypatch.setattr(DirectoryStore, "commit", late)
    with pytest.raises(StoreError, match="no answer"):
        session.feed([" Not so. Never."])
    with pytest.raises(Conflict):
        session.save()
    store = DirectoryStore.open(path)
    head = store.head("main")
    assert head is not None and head.position == other.position
    assert tiny.tokenizer.decode(store.tokens(head, n, head.position)).endswith("Yes")
    session._live.store.version = session._live.version
