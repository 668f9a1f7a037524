"""Sessions: forking, opening, resuming and refusals."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import streamlm
from memory_store import (
    Corrupt,
    DirectoryStore,
    Locked,
    Mismatch,
    NotFound,
)
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.sessions.session import Session
from tests.support.invariants import assert_same_state
from tests.support.sessions import (
    TOLERANCE,
    Open,
    TokenLog,
    damage,
    facts,
)
from tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]


# -- forks ------------------------------------------------------------------------------------


def test_forks_are_independent(tiny: Checkpoint, text: str) -> None:
    base, never_forked = Session(tiny, seed=3), Session(tiny, seed=3)
    for session in (base, never_forked):
        session.feed([text[:130]])
    one, two = base.fork(), base.fork()
    one.feed(["The sea was white. "])
    three = one.fork()
    for _ in two.generate("And he", max_tokens=9):
        one.feed(["More of it, and "])  # while the other one generates
    for session in (base, never_forked):
        session.feed([text[130:]])
        list(session.generate(max_tokens=5))
    assert facts(base)[:3] == facts(never_forked)[:3]
    # Each equals a session that read only its text.
    three.feed(["More of it, and " * 9])
    alone = Session(tiny)
    alone.feed([text[:130] + "The sea was white. " + "More of it, and " * 9])
    assert (three.position, three.tail) == (alone.position, alone.tail)
    assert_same_state(three.state, alone.state, tolerance=TOLERANCE)
    assert_same_state(one.state, three.state, tolerance=TOLERANCE)
    assert base.saved is None and one.saved is None


def test_a_fork_in_memory_has_no_store(open_: Open, tmp_path: Path) -> None:
    session = open_()
    session.feed(["Call me Ishmael. "])
    fork = session.fork()
    fork.feed(["Some years ago"])
    for call in (fork.save, fork.history, lambda: fork.rewind(to=0), lambda: fork.fork("b")):
        with pytest.raises(ValueError, match=r"this session has no store; use streamlm\.open"):
            call()
    assert DirectoryStore.open(tmp_path / "s.zarr").branches() == ["main"]
    assert len(session.history()) == 2


def test_a_fork_to_a_branch_is_independent(
    open_: Open, tmp_path: Path, token_log: TokenLog, tiny: Checkpoint
) -> None:
    path = tmp_path / "s.zarr"
    session = open_(save_every=99)
    session.feed(["Call me Ishmael. Some ye"])
    list(session.generate(max_tokens=3))  # not saved
    with session.fork("b") as fork:
        assert fork.branch == "b" and fork.save_every == 99
        assert facts(fork)[:3] == facts(session)[:3]
        assert len(fork.history()) == 1 and len(session.history()) == 3
        # Both continue from the same generator, independently.
        same = "".join(fork.generate(max_tokens=6))
        assert same == "".join(session.fork().generate(max_tokens=6))
        session.feed(["The sea is white."])
        with fork.fork("c") as third:
            assert third.position == fork.position
        with pytest.raises(ValueError, match="branch 'main' exists already; allowed: a new name"):
            fork.fork("main")
        message = r"'b' is open for writing already, in this process .*fork the session"
        with pytest.raises(Locked, match=message):
            open_(branch="b")
        digest = fork.state.digest()
    session.save()
    assert DirectoryStore.open(path).branches() == ["b", "c", "main"]
    n_shared = DirectoryStore.open(path).refs("b")[0].position
    logs = [token_log(path, branch) for branch in ("main", "b", "c")]
    assert logs[0][:n_shared] == logs[1][:n_shared] and logs[1] == logs[2]
    assert logs[0][n_shared:] != logs[1][n_shared:]
    with open_(branch="b") as again:
        assert again.state.digest() == digest and again.branch == "b"


# -- open -------------------------------------------------------------------------------------


def test_open_begins_and_resumes_a_session(open_: Open, tmp_path: Path) -> None:
    session = open_()
    assert (session.position, session.tail, session.saved, session.history()) == (0, "", None, [])
    with session:
        session.feed(["Call me Ishmael. Some ye"])
        list(session.generate("It is", max_tokens=3))  # saved by `with`
    ref = session.saved
    with open_(create=False) as again:
        assert facts(again)[:4] == facts(session)[:4]
        assert again.saved == ref == again.history()[-1]
        assert again.save() == ref and len(again.history()) == 3  # nothing to save
    assert open_().history() == session.history()  # opening saves nothing


def test_an_empty_session_is_discarded(open_: Open, tmp_path: Path) -> None:
    with open_("folder/s") as session:
        session.score("Call me Ishmael. Some years ago")
        list(session.generate(max_tokens=0))
    with pytest.raises(FileNotFoundError), open_("folder/s") as session:
        session.feed(tmp_path / "missing.txt")
    assert not (tmp_path / "folder" / "s.zarr").exists()
    # Once a commit exists, closing an unchanged session deletes nothing.
    with open_() as session:
        session.feed("Call")
    with open_() as session:
        assert session.tail == "Call"
    assert (tmp_path / "s.zarr").exists()


def test_text_before_an_error_is_saved(open_: Open) -> None:
    with pytest.raises(ZeroDivisionError), open_() as session:
        for index, _ in enumerate(session.generate("Call me", max_tokens=9)):
            1 // (3 - index)
    n = session.position
    assert n > 4 and open_().position == n


@pytest.mark.parametrize(
    "options",
    [{"create": False}, {"readonly": True}, {"branch": "b"}, {"branch": "b", "create": False}],
)
def test_missing_sessions_and_branches_are_reported(
    options: dict[str, Any], open_: Open, tmp_path: Path
) -> None:
    with pytest.raises(NotFound):
        open_("nothing", **options)
    assert not (tmp_path / "nothing.zarr").exists()
    if "branch" in options:
        with open_() as session:
            session.feed(["Call me Ishmael."])
        with pytest.raises(NotFound, match="has no branch 'b'; it has main"):
            open_(**options)
        assert DirectoryStore.open(tmp_path / "s.zarr").branches() == ["main"]


def test_a_session_killed_before_its_first_commit_can_be_opened(
    open_: Open, tiny: Checkpoint, tmp_path: Path
) -> None:
    DirectoryStore.create(tmp_path / "s.zarr", fingerprints=tiny.fingerprints)
    for options in ({"readonly": True}, {"create": False}):
        with pytest.raises(NotFound, match="has no branch 'main'; it has none"):
            open_(**options)
    with open_() as session:
        session.feed(["Call me Ishmael."])
    assert open_().position == session.position


def test_save_every_is_at_least_one(open_: Open, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_every = 0; allowed: at least 1"):
        open_(save_every=0)
    assert not (tmp_path / "s.zarr").exists()
    session = open_(save_every=1)
    list(session.generate(max_tokens=4))
    assert [ref.position for ref in session.history()] == [0, 1, 2, 3, 4]
    other = open_("other", save_every=3)
    list(other.generate("x", max_tokens=6))
    assert [ref.position for ref in other.history()] == [0, 3, 6]


HOLD = """
import sys
from memory_store import DirectoryStore
with DirectoryStore.open(sys.argv[1]).writer("main"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_writer_at_a_time(open_: Open, tmp_path: Path) -> None:
    with open_() as session:
        session.feed(["Call me Ishmael."])
        with pytest.raises(Locked, match=rf"in this process \({os.getpid()} on"):
            open_()
        saved = session.saved
        list(session.generate(max_tokens=3))
        with open_(readonly=True) as reader:  # sees the last commit
            assert reader.saved == saved and reader.position == saved.position < session.position
    command = [sys.executable, "-c", HOLD, str(tmp_path / "s.zarr")]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=rf"process {process.pid} on"):
            open_()
        assert open_(readonly=True).position == session.position
        process.communicate("")
    assert open_().position == session.position


def test_open_sees_commits_made_while_waiting_for_the_lock(
    open_: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_() as session:
        session.feed(["Call me Ishmael."])
    writer = DirectoryStore.writer

    def late(store: DirectoryStore, branch: str = "main") -> Any:
        monkeypatch.setattr(DirectoryStore, "writer", writer)
        with open_() as other:  # another process opens it first
            other.feed([" Some years ago"])
        return writer(store, branch)

    monkeypatch.setattr(DirectoryStore, "writer", late)
    with open_() as session:
        n = session.position
        session.feed([" never mind"])
    assert n > 3 and open_().position == session.position > n


def test_a_readonly_session_refuses_changes(open_: Open, tmp_path: Path) -> None:
    with open_() as session:
        session.feed(["Call me Ishmael. Some ye"])
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr").rglob("*")}
    with open_(readonly=True) as reader:
        before = facts(reader)
        refusals: list[Callable[[], object]] = [
            lambda: reader.feed("more"),
            lambda: reader.generate("more"),
            reader.save,
            lambda: reader.rewind(to=0),
            lambda: reader.fork("b"),
        ]
        for call in refusals:
            with pytest.raises(ValueError, match="the session was opened to be read only"):
                call()
        assert facts(reader) == before
        # Operations that only read are allowed.
        assert reader.score(["ars ago"]).tokens and len(reader.history()) == 2
        fork = reader.fork()
        fork.feed(["ars ago"])
        list(fork.generate(max_tokens=2))
        assert facts(reader) == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr").rglob("*")} == files


@pytest.mark.parametrize("what", ["weights", "architecture", "tokenizer"])
def test_a_session_belongs_to_its_model(
    what: str, open_: Open, tiny: Checkpoint, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    with open_() as session:
        session.feed(["Call me Ishmael."])
    if what == "tokenizer":
        # A field that SentencePiece ignores: the same pieces in another file.
        tokenizer = load_tokenizer(tiny.tokenizer.model_bytes + b"\xc0\x0c\x01")
        other = replace(tiny, tokenizer=tokenizer)
    else:
        options = {"seed": 2} if what == "weights" else {"memory_len": 32}
        other = load_checkpoint(tiny_folder(**options), device="cpu")
    for readonly in (False, True):
        with pytest.raises(Mismatch, match=rf"{what} is \w+, but \w+ is recorded") as error:
            streamlm.open(tmp_path / "s.zarr", other, readonly=readonly)
        assert set(error.value.differing) == {what}
    assert open_().position == session.position  # the lock was released


def test_damage_is_reported(open_: Open, tmp_path: Path) -> None:
    with open_() as session:
        session.feed(["Call me Ishmael. " * 9])
    damage(tmp_path / "s.zarr", session.saved, "segment")
    for _ in range(2):
        with pytest.raises(Corrupt, match="segment"):
            open_()
