"""Searching a session: what was read long ago, when it was saved, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from memory_store import DirectoryStore, Mismatch
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.sessions.search import search_store
from streamlm.sessions.session import Session
from tests.support.command_line import CommandLine

FACT = "The harpooneer's name was Queequeg, and the password is thimble-forty. "


@pytest.fixture
def session(open_: Callable[..., Session], prose: Callable[..., str]) -> Session:
    session = open_("s")
    session.feed([prose(300), " ", FACT])
    session.save()
    session.feed([prose(600)])
    return session


def test_a_passage_that_left_memory_is_found(session: Session) -> None:
    found = session.search("the password thimble", k=2)
    assert FACT[:40] in found[0].text and len(found) <= 2
    assert session.text(found[0].start, found[0].stop) == found[0].text
    assert session.position - found[0].stop > session.checkpoint.model.config.reach
    assert found[0].score > 1.5 * found[1].score


def test_a_passage_has_the_time_of_its_first_snapshot(session: Session) -> None:
    (best,) = session.search("thimble", k=1)
    assert best.saved is not None
    first = next(ref for ref in session.history() if ref.position >= best.stop)
    assert best.saved.timestamp() == pytest.approx(first.created)


def test_a_passage_read_again_after_rewinding_has_its_new_time(session: Session) -> None:
    session.save()
    session.rewind(snapshot=0)
    session.feed([FACT * 3])
    last = session.save()
    (best,) = session.search("thimble", k=1)
    assert best.saved is not None and best.saved.timestamp() == pytest.approx(last.created)


def test_a_store_is_searched_without_a_model(session: Session, tmp_path: Path) -> None:
    session.save()
    store = DirectoryStore.open(tmp_path / "s.zarr")
    head = store.head("main")
    assert head is not None
    found = search_store(store, head, session.checkpoint.tokenizer, "the password thimble", k=2)
    assert found == session.search("the password thimble", k=2)


def test_bad_requests_are_refused(session: Session, tiny: Checkpoint) -> None:
    with pytest.raises(ValueError, match="nothing to search for; allowed: a text"):
        session.search("  \n")
    with pytest.raises(ValueError, match="k = 0; allowed: at least 1"):
        session.search("whale", k=0)
    with pytest.raises(ValueError, match="span = 0; allowed: at least 1"):
        session.search("whale", span=0)
    with pytest.raises(ValueError, match="store"):
        Session(tiny).search("whale")


def test_another_tokenizer_is_refused(session: Session, tmp_path: Path) -> None:
    session.save()
    store = DirectoryStore.open(tmp_path / "s.zarr")
    head = store.head("main")
    assert head is not None

    class Other:
        fingerprint = "0" * 64

    with pytest.raises(Mismatch, match="was written with tokenizer"):
        search_store(store, head, Other(), "whale")  # type: ignore[arg-type]


def test_the_command(session: Session, tmp_path: Path, cli: CommandLine) -> None:
    session.save()
    session.close()
    common = ["--store", tmp_path, "--model", cli.model]
    shown = cli("sessions", "search", "s", "the password thimble", *common, "-k", "2")
    assert "thimble-forty" in shown.out and shown.out.startswith("token ")
    found = cli("sessions", "search", "s", "the password thimble", *common, "--json").json["found"]
    assert "thimble-forty" in found[0]["text"] and found[0]["saved"] > 1e9
    missing = cli("sessions", "search", "nobody", "whale", *common)
    assert missing.status == 1 and "no session 'nobody'" in missing.err
