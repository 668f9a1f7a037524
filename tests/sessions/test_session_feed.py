"""`Session.feed`: what is read, and what is refused."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.models.cache import Cache
from streamlm.runtime.reports import Progress
from streamlm.runtime.stream import close
from streamlm.sessions.session import Session
from streamlm.sessions.sources import Source
from tests.support.invariants import assert_same_state
from tests.support.sessions import (
    GOOD,
    TOLERANCE,
    End,
    Open,
    Prose,
    TokenLog,
    assert_same_end,
    facts,
    split,
    state_after,
)

# -- feed: what is read -----------------------------------------------------------------------


def test_feed_reads_the_tokens_of_the_text(whole: End, tiny: Checkpoint) -> None:
    assert_same_state(whole.state, state_after(tiny, whole.log), tolerance=TOLERANCE)


def two_files(folder: Path, text: str) -> list[Source]:
    paths = [folder / "one.txt", folder / "two.txt"]
    for path, part in zip(paths, split(text, 300), strict=True):
        path.write_text(part, encoding="utf-8", newline="")
    return [*paths]


KINDS: dict[str, Callable[[Path, str], list[Source]]] = {
    "str": lambda path, text: [text],
    "Path": lambda path, text: [path],
    "text file": lambda path, text: [open(path, encoding="utf-8", newline="")],  # noqa: SIM115
    "binary file": lambda path, text: [open(path, "rb")],  # noqa: SIM115
    "pipe": lambda path, text: [io.BytesIO(text.encode())],
    "iterator of str": lambda path, text: [iter(split(text, 3, 4, 250))],
    "iterator of bytes": lambda path, text: [
        (text.encode()[i : i + 7] for i in range(0, len(text.encode()), 7))
    ],
    "two texts": lambda path, text: [*split(text, 77)],
    "two files": lambda path, text: two_files(path.parent, text),
    "a file and the rest": lambda path, text: [two_files(path.parent, text)[0], [text[300:]]],
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_sources_are_read_alike(
    kind: str,
    text: str,
    whole: End,
    open_: Open,
    token_log: TokenLog,
    tmp_path: Path,
    small_blocks: int,
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8", newline="")
    seen: list[Progress] = []
    sources = KINDS[kind](path, text)
    session = open_()
    report = session.feed(*sources, progress=lambda now: seen.append(replace(now)))
    for source in sources:
        if isinstance(source, io.IOBase):
            source.close()
    assert_same_end(End.of(session, tmp_path / "s.zarr", token_log), whole)
    assert report.tokens == report.position == whole.position
    assert report.n_bytes == len(text.encode()) - len(whole.tail.encode())
    assert report.skipped_bytes == 0 and report.seconds > 0 and report.tokens_per_second > 0
    # Progress is reported per source, in bytes.
    last = {now.name: now for now in seen}
    assert sum(now.read for now in last.values()) >= len(text.encode()) or kind == "two texts"
    assert all(now.size in (None, now.read) for now in last.values())
    assert len(seen) > 1


@settings(max_examples=12)
@given(data=st.data())
def test_any_split_gives_the_same_session(
    data: st.DataObject,
    tiny: Checkpoint,
    prose: Prose,
    token_log: TokenLog,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    text = prose(30, seed=3)
    ends = []
    for splits in (False, True):
        path = tmp_path_factory.mktemp("split") / "s.zarr"
        with streamlm.open(path, tiny) as session:
            if not splits:
                session.feed([text])
            else:
                encoded = text.encode()
                cuts = data.draw(st.lists(st.integers(1, len(encoded) - 1), max_size=6))
                bounds = [0, *sorted({*cuts}), len(encoded)]
                calls: list[list[bytes]] = [[]]
                for start, stop in pairwise(bounds):
                    calls[-1].append(encoded[start:stop])
                    if data.draw(st.booleans()):
                        calls.append([])
                for pieces in filter(None, calls):
                    session.feed(pieces)
            ends.append(End.of(session, path, token_log))
    assert_same_end(ends[1], ends[0])


def test_bits_per_byte_are_those_of_the_model_and_add_up(
    text: str, tiny: Checkpoint, whole: End
) -> None:
    reports = []
    session = Session(tiny)
    for piece in split(text, 100, 333):
        reports.append(session.feed([piece], score=True))
    nats, state, cache = 0.0, tiny.model.init_state(1), Cache()
    with torch.no_grad():
        for before, id in zip([tiny.tokenizer.bos_id, *whole.log], whole.log, strict=False):
            logits, state = tiny.model(torch.tensor([[before]]), state, cache)
            nats -= float(logits[0, 0].log_softmax(0)[id])
            state = close(tiny.model, state, cache)
    assert sum(report.nats for report in reports) == pytest.approx(nats, rel=1e-5)
    assert sum(report.tokens for report in reports) == len(whole.log)
    n_bytes = len(text.encode()) - len(whole.tail.encode())
    assert sum(report.n_bytes for report in reports) == n_bytes
    for report in reports:
        assert report.bits_per_byte == pytest.approx(report.nats / math.log(2) / report.n_bytes)
    one = Session(tiny).feed([text], score=True)
    assert one.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)


# -- feed: what is refused --------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["missing", "folder", "bytes"])
def test_unreadable_sources_are_reported_before_reading(
    wrong: str, open_: Open, tmp_path: Path
) -> None:
    source, error = {
        "missing": (tmp_path / "missing.txt", FileNotFoundError),
        "folder": (tmp_path, IsADirectoryError),
        "bytes": (b"Call me", TypeError),
    }[wrong]
    session = open_()
    before = facts(session)
    for call in (session.feed, session.score):
        with pytest.raises(error):
            call("Call me Ishmael.", source)  # type: ignore[arg-type]
        assert facts(session) == before
    with pytest.raises(ValueError, match="no source given; allowed: paths, texts"):
        session.feed()


@pytest.mark.parametrize("words", ["and/or", "e.g", "text.txt", "folder"])
def test_a_str_is_read_as_text(
    words: str, open_: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it names an existing file or folder."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("Call me Ishmael.")
    Path("folder").mkdir()
    session = open_()
    scored = session.score(words, logprobs=True)
    session.feed(words)
    assert session.text() + session.tail == words
    assert session.checkpoint.tokenizer.decode(scored.ids) == words
    other = open_("other")
    other.feed(Path("text.txt"))
    assert other.text() + other.tail == "Call me Ishmael."


@pytest.mark.parametrize("empty", ["", [], [""], b"file", iter(())])
def test_nothing_to_read_is_an_error(empty: Any, open_: Open, tmp_path: Path) -> None:
    if empty == b"file":
        empty = tmp_path / "empty.txt"
        empty.write_bytes(b"")
    session = open_()
    before = facts(session)
    with pytest.raises(ValueError, match=r"nothing to read: .* is empty"):
        session.feed(empty)
    with pytest.raises(ValueError, match=r"nothing to score: .* is empty"):
        session.score(empty)
    assert facts(session) == before
    # An empty source is allowed next to another.
    path = tmp_path / "nothing.txt"
    path.write_bytes(b"")
    session.feed(path, "Call me Ishmael.", path)
    assert session.tail == " Ishmael."


BAD: dict[str, tuple[bytes, str]] = {
    "NUL": (b"abc\0def", "looks binary: it has a NUL byte; allowed: UTF-8 text"),
    "Latin-1": ("na\xefve".encode("latin-1"), r"block at byte \d+: invalid UTF-8: byte 0xEF"),
    "surrogate": (b"\xed\xa0\x80", r"block at byte \d+: invalid UTF-8: byte 0xED"),
    "cut": ("end 漢".encode()[:-1], "ends within a UTF-8 character"),
}


@pytest.mark.parametrize("bad", BAD)
def test_text_before_invalid_text_stays_read(
    bad: str, open_: Open, tmp_path: Path, token_log: TokenLog, small_blocks: int
) -> None:
    data, message = BAD[bad]
    before = (b"and so on, " * 99)[: 3 * small_blocks]
    if bad == "cut":  # only the incomplete character of the fourth block is refused
        before, data = before + data[:4], data[4:]
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text(GOOD, encoding="utf-8")
    second.write_bytes(before + data)
    session, kept = open_("s"), open_("kept")
    kept.feed([GOOD, before])

    def compare() -> None:
        found = End.of(session, tmp_path / "s.zarr", token_log)
        assert_same_end(found, End.of(kept, tmp_path / "kept.zarr", token_log))

    for _ in range(2):  # repeating changes nothing
        with pytest.raises(ValueError, match=rf"second\.txt.*{message}"):
            session.feed(first, second)
        compare()
    with pytest.raises(ValueError, match=rf"second\.txt.*{message}"):
        session.score(second)
    compare()

    # Once the file is corrected, the same call resumes.
    second.write_bytes(before + b" and so on")
    report = session.feed(first, second)
    assert report.skipped_bytes == len(GOOD.encode()) + len(before)
    kept.feed([b" and so on"])
    compare()


@pytest.mark.parametrize("bad", BAD)
def test_invalid_text_can_be_replaced(
    bad: str, open_: Open, tmp_path: Path, token_log: TokenLog, small_blocks: int
) -> None:
    data = GOOD.encode() + BAD[bad][0]
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    session, wanted = open_("s"), open_("wanted")
    report = session.feed(path, [" and on"], errors="replace")
    wanted.feed([data.decode(errors="replace") + " and on"])
    assert_same_end(
        End.of(session, tmp_path / "s.zarr", token_log),
        End.of(wanted, tmp_path / "wanted.zarr", token_log),
    )
    assert report.tokens == session.position


def test_text_can_follow_a_file_that_ends_within_a_character(
    open_: Open, tmp_path: Path, token_log: TokenLog, tiny: Checkpoint
) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes("The log says 漢".encode()[:-2])
    session = open_()
    with pytest.raises(ValueError, match="ends within a UTF-8 character"):
        session.feed(path)
    session.feed(["it."])
    assert session.tail == " it."
    session.save()
    assert tiny.tokenizer.decode(token_log(tmp_path / "s.zarr")) == "The log says"


@pytest.mark.parametrize("errors", ["ignore", "", None])
def test_errors_are_strict_or_replace(errors: Any, open_: Open) -> None:
    with pytest.raises(ValueError, match="errors must be 'strict' or 'replace'"):
        open_().feed(["text"], errors=errors)


def test_scoring_does_not_change_what_is_read(text: str, tiny: Checkpoint) -> None:
    plain, scored = Session(tiny), Session(tiny)
    report, other = plain.feed([text]), scored.feed([text], score=True)
    assert report.bits_per_byte is None and report.to_dict()["nats"] is None
    assert (report.tokens, report.n_bytes) == (other.tokens, other.n_bytes)
    assert plain.state.digest() == scored.state.digest()
