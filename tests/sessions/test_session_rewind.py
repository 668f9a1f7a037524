"""`Session.rewind` to a position, a snapshot or a time."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import streamlm
from memory_store import (
    Corrupt,
    DirectoryStore,
    Ref,
)
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.sessions.session import Session
from tests.support.invariants import assert_same_state
from tests.support.sessions import (
    TOLERANCE,
    End,
    Open,
    TokenLog,
    assert_same_end,
    damage,
    facts,
    split,
    state_after,
)


@pytest.fixture
def travelled(open_: Open, text: str, tmp_path: Path) -> tuple[Session, list[str], list[str]]:
    """A session with snapshots and unsaved tokens; each one's digest, and the text it leads to."""
    session = open_("travelled", seed=4)
    session.save()
    digests, texts = [session.state.digest()], []
    for piece in split(text, 90, 200, 340):
        texts.append("".join(session.fork().generate(max_tokens=4)))
        session.feed([piece])
        digests.append(session.state.digest())
    texts.append("".join(session.fork().generate(max_tokens=4)))
    list(session.generate("Then", max_tokens=9))
    assert len(session.history()) == len(digests) == len(texts) == 5
    return session, digests, texts


@pytest.mark.parametrize("where", ["0", "unsaved", "now", "snapshot", "between", "unaligned"])
def test_rewind_to_a_position(
    where: str,
    travelled: tuple[Session, list[str], list[str]],
    tmp_path: Path,
    token_log: TokenLog,
    tiny: Checkpoint,
) -> None:
    session, _, _ = travelled
    path = tmp_path / "travelled.zarr"
    refs, now = session.history(), session.position
    tokens = {
        "0": 0,
        "unsaved": now - 3,
        "now": now,
        "snapshot": refs[2].position,
        "between": refs[3].position // 16 * 16,
        "unaligned": refs[2].position + 5,
    }[where]
    assert where != "unsaved" or tokens > refs[-1].position
    session.rewind(to=tokens)
    assert session.position == tokens and session.tail == ""
    latest = session.history()
    assert latest[: len(refs)] == refs  # the history is kept
    before = token_log(path)
    assert len(before) == tokens
    assert_same_state(session.state, state_after(tiny, before), tolerance=TOLERANCE)
    assert session.history() == latest

    # It continues from there, also after reopening.
    list(session.generate("More", max_tokens=3))
    digest = session.state.digest()
    session.close()
    with streamlm.open(path, tiny) as again:
        assert again.state.digest() == digest
        assert token_log(path)[:tokens] == before and again.position == len(token_log(path))
        # Undone: rewind has saved a snapshot of everything first.
        undo = next(ref for ref in again.history() if ref.position == now)
        again.rewind(snapshot=undo)
        assert again.position == now and token_log(path)[:tokens] == before


@pytest.mark.parametrize("seq", range(5))
def test_rewind_to_a_snapshot_is_exact(
    seq: int, travelled: tuple[Session, list[str], list[str]]
) -> None:
    session, digests, texts = travelled
    end = session.state.digest()
    ref = session.history()[seq]
    session.rewind(snapshot=ref if seq % 2 else seq)
    assert session.position == ref.position and session.state.digest() == digests[seq]
    assert "".join(session.fork().generate(max_tokens=4)) == texts[seq]  # and its generator
    session.rewind(snapshot=5)  # the snapshot saved by the first rewind
    assert session.state.digest() == end
    assert [entry.position for entry in session.history()[-2:]] == [ref.position, session.position]


def test_a_rewound_session_continues(
    open_: Open, text: str, whole: End, tmp_path: Path, token_log: TokenLog
) -> None:
    session = open_()
    session.feed([text[:200]])
    tail, n = session.tail, session.position
    session.feed(["Never mind all this. " * 9])
    session.rewind(to=n)
    session.feed([tail + text[200:]])
    assert_same_end(End.of(session, tmp_path / "s.zarr", token_log), whole)
    session.rewind(snapshot=1)  # its tail belongs to it
    session.feed([text[200:]])
    assert_same_end(End.of(session, tmp_path / "s.zarr", token_log), whole)


@pytest.mark.parametrize("first", ["Call", "Call me Ishmael."])
def test_rewind_to_the_beginning(first: str, open_: Open) -> None:
    session = open_(seed=7)
    session.feed([first])
    assert (session.position == 0) == (first == session.tail == "Call")  # nothing was read
    session.feed([" Some years ago"])
    list(session.generate(max_tokens=3))
    session.rewind(to=0)
    assert (session.position, session.tail) == (0, "")
    wanted = "".join(Session(session.checkpoint, seed=7).generate(max_tokens=5))
    assert "".join(session.generate(max_tokens=5)) == wanted


def test_rewind_out_of_range(travelled: tuple[Session, list[str], list[str]]) -> None:
    session, _, _ = travelled
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, r"allowed: one of to=…, by=…, snapshot=… and time=…"),
        ({"to": 1, "by": 1}, r"allowed: one of to=…, by=…, snapshot=… and time=…"),
        ({"snapshot": 1, "time": 1e9}, r"allowed: one of to=…, by=…, snapshot=… and time=…"),
        ({"time": 1e9}, r"time = 1000000000\.0; allowed: \d{4}-\d\d-\d\dT.* or later"),
        ({"to": -1}, r"position -1; allowed: 0 to \d+"),
        ({"to": 10**6}, r"position 1000000; allowed: 0 to \d+"),
        ({"by": -1}, r"by = -1; allowed: 0 to \d+"),
        ({"by": 10**6}, r"by = 1000000; allowed: 0 to \d+"),
        ({"snapshot": -1}, r"snapshot = -1; allowed: 0 to 5"),
        ({"snapshot": 6}, r"snapshot = 6; allowed: 0 to 5"),
    ]
    before = session.state.digest(), session.position, session.tail
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            session.rewind(**options)
        assert (session.state.digest(), session.position, session.tail) == before
    assert session.fork().feed(["It reads on."]).tokens


@pytest.mark.parametrize("interrupted", ["before", "after"])
def test_an_interrupted_rewind_is_atomic(
    interrupted: str,
    travelled: tuple[Session, list[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, digests, _ = travelled
    publish = DirectoryStore.publish

    def stopped(store: DirectoryStore, ref: Any, *, branch: str) -> Ref:
        if interrupted == "after":
            publish(store, ref, branch=branch)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DirectoryStore, "publish", stopped)
        with pytest.raises(KeyboardInterrupt):
            session.rewind(snapshot=2)
    rewound = interrupted == "after"
    assert (session.state.digest() == digests[2]) == rewound
    assert (session.history()[-1].commit == session.history()[2].commit) == rewound
    session.feed(["It goes on."])  # without a conflict
    assert session.history()[-1].position == session.position


def test_a_closed_session_refuses_changes(open_: Open, tmp_path: Path, tiny: Checkpoint) -> None:
    session = open_()
    session.feed(["Call me Ishmael."])
    pieces = session.generate(max_tokens=9)
    next(pieces)
    session.close()
    before = facts(session)
    changes: list[Callable[[], object]] = [
        lambda: session.feed(["More."]),
        lambda: list(session.generate(max_tokens=1)),
        lambda: list(pieces),
        lambda: session.rewind(to=1),
        lambda: session.fork("b"),
    ]
    for change in changes:
        with pytest.raises(ValueError, match=r"the session is closed; open it again"):
            change()
    assert facts(session) == before
    assert session.score(["More."]).tokens and session.fork().feed(["More of it."]).tokens
    with streamlm.open(tmp_path / "s.zarr", tiny) as other:  # the lock is released
        assert other.state.digest() == session.state.digest()
        session.close()  # a second close has no effect
        other.feed(["More."])


def test_snapshots_of_other_branches_are_refused(open_: Open) -> None:
    session = open_()
    session.feed(["Call me Ishmael."])
    with session.fork("b") as fork:
        fork.feed(["Some years ago"])
        before = facts(session)
        for ref in fork.history():
            with pytest.raises(ValueError, match=r"an entry of history\(\)"):
                session.rewind(snapshot=ref)
        assert facts(session) == before


def test_rewind_refuses_a_damaged_snapshot(
    travelled: tuple[Session, list[str], list[str]], tmp_path: Path
) -> None:
    session, _, _ = travelled
    session.save()
    before, refs = facts(session), session.history()
    damage(tmp_path / "travelled.zarr", refs[2], "segment")
    with pytest.raises(Corrupt, match=refs[2].commit.name):
        session.rewind(snapshot=2)
    assert facts(session) == before and session.history() == refs
    session.rewind(snapshot=1)


def test_rewind_to_a_time(open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_()
    ends, clock = [], [1_800_000_000.0]
    for name in ("memory_store.history.refs.now", "memory_store.history.writing.now"):
        monkeypatch.setattr(name, lambda: clock[0])
    for sentence in ("Call me Ishmael.", " Some years ago", " the sea was white."):
        session.feed([sentence])
        ends.append((session.position, session.tail))
        clock[0] += 3600
    then = datetime.fromtimestamp(1_800_000_000 + 3600, UTC)
    for time_, end in ((then, 1), (then.timestamp() + 3599.5, 1), (1_800_000_000, 0)):
        session.rewind(time=time_)
        assert (session.position, session.tail) == ends[end]
        session.rewind(snapshot=3)  # undone
    session.rewind(time=clock[0])
    assert (session.position, session.tail) == ends[2]
    with pytest.raises(ValueError, match=r"time = 3\.5; allowed: 20\d\d-.* or later"):
        session.rewind(time=3.5)
