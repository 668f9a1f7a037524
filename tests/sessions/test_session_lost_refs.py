"""A session whose refs were lost: it does not roll back unseen."""

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import streamlm
from memory_store import Corrupt, DirectoryStore, Retention, Snapshot
from streamlm.checkpoints.checkpoint import Checkpoint
from tests.support.command_line import CommandLine
from tests.support.stores import where

TEXT = "Call me Ishmael. Some years ago, never mind how long, I went to sea. "


@pytest.fixture
def path(tmp_path: Path, tiny: Checkpoint) -> Path:
    path = tmp_path / "s.zarr"
    with streamlm.open(path, tiny, save_every=32) as session:
        session.feed(TEXT * 5)
    return path


def newest_ref(path: Path) -> Path:
    return max((path / "refs" / "main").glob("*.json"))


def test_a_lost_newest_ref_is_restored_and_said(path: Path, tiny: Checkpoint) -> None:
    with streamlm.open(path, tiny) as session:
        digest, position = session.state.digest(), session.position
        history = [(ref.seq, ref.commit) for ref in session.history()]
    newest_ref(path).unlink()
    with (
        pytest.warns(RuntimeWarning, match="no ref leads to 1 snapshot after token"),
        streamlm.open(path, tiny, readonly=True) as session,
    ):
        assert session.position < position
    with (
        pytest.warns(RuntimeWarning, match=f"restored, at token {position}"),
        streamlm.open(path, tiny) as session,
    ):
        assert (session.position, session.state.digest()) == (position, digest)
        assert [(ref.seq, ref.commit) for ref in session.history()] == history
        session.feed(TEXT)
    with streamlm.open(path, tiny) as session:  # nothing more to say
        assert session.position > position


@pytest.mark.parametrize("missing", [1, 60, 600])
def test_a_commit_without_its_end_is_not_taken_up(
    path: Path, tiny: Checkpoint, missing: int
) -> None:
    """A writer was killed while it wrote: all arrays may be there, but not the archive's end."""
    store = DirectoryStore.open(path)
    head = store.head("main")
    assert head is not None
    file = path / "commits" / head.commit.name
    newest_ref(path).unlink()
    with file.open("r+b") as archive:
        archive.truncate(file.stat().st_size - missing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with streamlm.open(path, tiny) as session:
            assert session.position < head.position
    assert DirectoryStore.open(path).verify().unreferenced == ()
    with streamlm.open(path, tiny) as session:
        session.feed(TEXT)
    assert DirectoryStore.open(path).recover("main").damage == ()


@pytest.mark.parametrize("what", ["refs", "folder"])
def test_all_refs_lost(path: Path, tiny: Checkpoint, what: str) -> None:
    with streamlm.open(path, tiny) as session:
        position = session.position
    if what == "refs":
        for ref in (path / "refs" / "main").glob("*.json"):
            ref.unlink()
    else:
        shutil.rmtree(path / "refs" / "main")
    with (
        pytest.warns(RuntimeWarning, match="no ref led to"),
        streamlm.open(path, tiny) as session,
    ):
        assert session.position == position
        assert session.text(0, 20).startswith("Call me Ishmael.")


def test_two_lost_branches_wait_for_recover(path: Path, tiny: Checkpoint) -> None:
    store = DirectoryStore.open(path)
    head = store.head("main")
    assert head is not None
    store.publish(store.refs("main")[2], branch="side")
    for ref in (path / "refs" / "main").glob("*.json"):
        ref.unlink()
    for _ in range(2):
        with pytest.raises(Corrupt, match="no refs, but there are"):
            streamlm.open(path, tiny)
    assert store.recover("main").head.commit == head.commit
    with streamlm.open(path, tiny) as session:
        assert session.position == head.position


def test_damaged_token_ids_are_recovered_from(path: Path, tiny: Checkpoint) -> None:
    store = DirectoryStore.open(path)
    refs = store.refs("main")
    file = path / "commits" / refs[-2].commit.name
    data = bytearray(file.read_bytes())
    data[where(bytes(data), "tokens/c.0")] ^= 1
    file.write_bytes(data)
    with pytest.raises(Corrupt):
        streamlm.open(path, tiny)
    found = DirectoryStore.open(path).recover()
    assert found.head.position == refs[-3].position and len(found.damage) == 2
    with streamlm.open(path, tiny) as session:
        session.feed(TEXT)
        list(session.generate(max_tokens=2))
        session.rewind(to=found.head.position - 3)


def test_ids_of_another_vocabulary_are_refused(path: Path, tiny: Checkpoint) -> None:
    store = DirectoryStore.open(path)
    head = store.head("main")
    assert head is not None
    snapshot = store.load(head)
    forged = Snapshot(
        snapshot.position + 3,
        snapshot.windows,
        snapshot.arrays,
        np.array([5, 2**30, -1]),
        snapshot.attributes,
    )
    store.commit(forged, parent=head, fingerprints=tiny.fingerprints)
    with pytest.raises(Corrupt, match="not of this vocabulary"):
        streamlm.open(path, tiny)


def test_what_the_commands_say(kept: CommandLine) -> None:
    path = Path("sessions/s.zarr")
    for _ in range(2):  # past the commit that it shares with another branch
        fed = kept.works("feed", "-", "--session", "s", "--json", stdin=b"And one day more. ")
    position = fed.json["position"]
    newest_ref(path).unlink()
    found = kept("sessions", "verify", "s")
    assert found.status == 1 and "no ref leads to 1 of its newest commits" in found.err
    restored = kept.works("sessions", "recover", "s")
    assert "found: " in restored.err and f"restored to token {position:,}" in restored.out
    kept.works("sessions", "verify", "s")
    newest_ref(path).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        fed = kept.works("feed", "-", "--session", "s", stdin=b"And so on. ")
    assert fed.err.startswith("warning: ") and fed.err.count("\n") == 1


@pytest.mark.parametrize("names", [[], ["refs/", ".tmp-0"], ["commits/"]])
def test_a_name_that_a_kill_left_is_free(kept: CommandLine, names: list[str]) -> None:
    path = Path("sessions/begun.zarr")

    def leave() -> None:
        path.mkdir()
        for name in names:
            (path / name).mkdir() if name.endswith("/") else (path / name).touch()

    leave()
    assert "begun" not in kept.works("sessions", "list").out
    recovered = kept("sessions", "recover", "begun")
    assert recovered.status == 1 and "an interrupted creation left" in recovered.err
    assert "there are: s" in kept("sessions", "show", "begun").err
    kept.works("sessions", "delete", "begun")
    assert not path.exists()
    leave()
    kept.works("feed", "-", "--session", "begun", stdin=b"A new beginning. ")
    kept.works("sessions", "verify", "begun")
    os.remove(path / "session.json")
    assert kept("sessions", "delete", "begun", "--yes").status == 1  # there are commits


def test_a_date_that_no_calendar_has(kept: CommandLine, tmp_path: Path) -> None:
    import json

    from memory_store.format.json import sealed

    kept.works("sessions", "copy", "s", "t")
    ref = newest_ref(Path("sessions/t.zarr"))
    document = json.loads(ref.read_text())
    del document["crc32c"]
    ref.write_bytes(sealed({**document, "created": 9e15}))
    found = kept("sessions", "list")
    assert found.status == 1 and found.out.splitlines()[1].startswith("s ")
    assert "created should be a time" in found.err


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_a_session_that_forgot_its_tokens_opens(path: Path, tiny: Checkpoint, tokens: int) -> None:
    with streamlm.open(path, tiny) as session:
        before = session.position
        list(session.generate(max_tokens=tokens))
        digest, position = session.state.digest(), session.position
    DirectoryStore.open(path).gc(Retention(last=1, log=False))
    with streamlm.open(path, tiny) as session:
        assert (session.position, session.state.digest()) == (position, digest)
        assert 0 < len(session._live.stream.recent) <= position - before + 32
        list(session.generate(max_tokens=2, repetition_penalty=1.2))
