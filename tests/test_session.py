"""Sessions: reading, scoring, writing, forks and snapshots, whatever interrupts them."""

import io
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import streamlm
import streamlm.session
import streamlm.sources
import streamlm.text
from memory_store import DirectoryStore, Locked, Mismatch, NotFound, StoreError, StoreFull
from streamlm.checkpoint import Checkpoint, load_checkpoint
from streamlm.reports import Progress
from streamlm.session import Session
from streamlm.sources import Source
from streamlm.state import State
from streamlm.stream import advance
from streamlm.text import TextStream
from tests.invariants import assert_same_state
from tokenizer import StreamDecoder, StreamEncoder, Tokenizer

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4  # of slots near 1, computed in float32 by other chunks

TokenLog = Callable[..., list[int]]
Prose = Callable[..., str]
Open = Callable[..., Session]


@pytest.fixture
def open_(tmp_path: Path, tiny: Checkpoint) -> Iterator[Open]:
    """Opens the session of a name; all are closed at the end."""
    opened: list[Session] = []

    def open_(name: str = "s", **options: Any) -> Session:
        opened.append(streamlm.open(tmp_path / f"{name}.zarr", tiny, **options))
        return opened[-1]

    yield open_
    for session in opened:
        session.close()


@dataclass(frozen=True)
class End:
    """Where a session ended, but for the last bits."""

    position: int
    tail: str
    log: list[int]
    state: State

    @classmethod
    def of(cls, session: Session, path: Path, token_log: TokenLog) -> "End":
        session.save()
        log = token_log(path, session.branch)
        return cls(session.position, session.tail, log, session.state)


def assert_same_end(found: End, wanted: End) -> None:
    assert (found.position, found.tail) == (wanted.position, wanted.tail)
    assert found.log == wanted.log
    assert_same_state(found.state, wanted.state, tolerance=TOLERANCE)


def facts(session: Session) -> tuple[object, ...]:
    """All that a call that promises to change nothing must leave as it is."""
    return session.state.digest(), session.position, session.tail, session.saved, session._stream


def state_after(checkpoint: Checkpoint, ids: list[int]) -> State:
    """The state of a stream that has read just these tokens."""
    model = checkpoint.model
    if not ids:
        return model.init_state(1)
    inputs = torch.tensor([[checkpoint.tokenizer.bos_id, *ids[:-1]]])
    return advance(model, inputs, model.init_state(1))[1]


# -- feed: what is read -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(prose: Prose) -> str:
    return prose(120)


@pytest.fixture(scope="module")
def whole(
    text: str, tiny: Checkpoint, token_log: TokenLog, tmp_path_factory: pytest.TempPathFactory
) -> End:
    """The end of a session that read all the text at once."""
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    with streamlm.open(path, tiny) as session:
        report = session.feed([text])
        assert report.position == report.tokens == session.position
        end = End.of(session, path, token_log)
    ids = tiny.tokenizer.encode(text).tolist()
    assert end.log == ids[: len(end.log)] and len(ids) - len(end.log) < 5
    assert tiny.tokenizer.decode(ids[len(end.log) :]) == end.tail
    return end


def test_reading_is_reading_the_tokens(whole: End, tiny: Checkpoint) -> None:
    assert_same_state(whole.state, state_after(tiny, whole.log), tolerance=TOLERANCE)


def split(text: str, *at: int) -> list[str]:
    bounds = [0, *at, len(text)]
    return [text[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]


def two_files(folder: Path, text: str) -> list[Source]:
    paths = [folder / "one.txt", folder / "two.txt"]
    for path, part in zip(paths, split(text, 300), strict=True):
        path.write_text(part, encoding="utf-8", newline="")
    return [*paths]


KINDS: dict[str, Callable[[Path, str], list[Source]]] = {
    "str": lambda path, text: [text],
    "Path": lambda path, text: [path],
    "name": lambda path, text: [str(path)],
    "text file": lambda path, text: [open(path, encoding="utf-8", newline="")],  # noqa: SIM115
    "binary file": lambda path, text: [open(path, "rb")],  # noqa: SIM115
    "pipe": lambda path, text: [io.BytesIO(text.encode())],
    "iterator of str": lambda path, text: [iter(split(text, 3, 4, 250))],
    "iterator of bytes": lambda path, text: [
        text.encode()[i : i + 7] for i in range(0, len(text.encode()), 7)
    ],
    "two texts": lambda path, text: [*split(text, 77)],
    "two files": lambda path, text: two_files(path.parent, text),
    "a file and the rest": lambda path, text: [two_files(path.parent, text)[0], [text[300:]]],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_is_read_alike(
    kind: str, text: str, whole: End, open_: Open, token_log: TokenLog, tmp_path: Path,
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
    # Progress is told by source, in bytes.
    last = {now.name: now for now in seen}
    assert sum(now.read for now in last.values()) >= len(text.encode()) or kind == "two texts"
    assert all(now.size in (None, now.read) for now in last.values())
    assert len(seen) > 1


@settings(max_examples=12)
@given(data=st.data())
def test_any_split_over_any_calls(
    data: st.DataObject, tiny: Checkpoint, prose: Prose, token_log: TokenLog,
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
                for start, stop in zip(bounds, bounds[1:], strict=False):
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
        reports.append(session.feed([piece]))
    nats, state = 0.0, tiny.model.init_state(1)
    with torch.no_grad():
        for before, id in zip([tiny.tokenizer.bos_id, *whole.log], whole.log, strict=False):
            logits, state = tiny.model(torch.tensor([[before]]), state)
            nats -= float(logits[0, 0].log_softmax(0)[id])
            if state.length == tiny.model.config.segment_len:
                state, _ = tiny.model.commit(state)
    assert sum(report.nats for report in reports) == pytest.approx(nats, rel=1e-5)
    assert sum(report.tokens for report in reports) == len(whole.log)
    n_bytes = len(text.encode()) - len(whole.tail.encode())
    assert sum(report.n_bytes for report in reports) == n_bytes
    for report in reports:
        assert report.bits_per_byte == pytest.approx(report.nats / math.log(2) / report.n_bytes)
    one = Session(tiny).feed([text])
    assert one.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)


# -- feed: what is refused --------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["missing", "folder", "slip", "bytes"])
def test_what_cannot_be_read_is_told_before_anything_is_read(
    wrong: str, open_: Open, tmp_path: Path
) -> None:
    source, error = {
        "missing": (tmp_path / "missing.txt", FileNotFoundError),
        "folder": (tmp_path, IsADirectoryError),
        "slip": ("mobby.txt", FileNotFoundError),
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
    # Beside something, nothing does no harm.
    path = tmp_path / "nothing.txt"
    path.write_bytes(b"")
    session.feed(path, "Call me Ishmael.", path)
    assert session.tail == " Ishmael."


GOOD = "Call me Ishmael. Some years ago, never mind how long — precisely. " * 6
BAD: dict[str, tuple[bytes, str]] = {
    "NUL": (b"abc\0def", "looks binary: it has a NUL byte; allowed: UTF-8 text"),
    "Latin-1": ("na\xefve".encode("latin-1"), r"block at byte \d+: invalid UTF-8: byte 0xEF"),
    "surrogate": (b"\xed\xa0\x80", r"block at byte \d+: invalid UTF-8: byte 0xED"),
    "cut": ("end 漢".encode()[:-1], "ends within a UTF-8 character"),
}


@pytest.mark.parametrize("bad", BAD)
def test_invalid_text_is_refused_and_what_came_before_is_kept(
    bad: str, open_: Open, tmp_path: Path, token_log: TokenLog, small_blocks: int
) -> None:
    data, message = BAD[bad]
    before = (GOOD * 3).encode()[: 3 * small_blocks]  # the bad bytes stand in the fourth block
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text(GOOD)
    second.write_bytes(before + data)

    session = open_()
    for _ in range(2):  # trying again changes nothing
        with pytest.raises(ValueError, match=rf"second\.txt.*{message}"):
            session.feed(first, second)
        kept = open_("kept")
        if not kept.position:
            kept.feed([GOOD, before])
        good = End.of(kept, tmp_path / "kept.zarr", token_log)
        if bad == "cut":  # the incomplete character alone is a block
            assert session.tail == good.tail + "end "
        found = End.of(session, tmp_path / "s.zarr", token_log)
        assert found.log[: good.position] == good.log
    with pytest.raises(ValueError, match=rf"second\.txt.*{message}"):
        session.score(second)

    # Once the file is right, the same call goes on; no word is read twice.
    fixed = before + b" and so on"
    second.write_bytes(fixed)
    if bad != "cut":
        report = session.feed(first, second)
        assert report.skipped_bytes == len(GOOD.encode()) + len(before)
        kept.feed([b" and so on"])
        ends = [End.of(s, tmp_path / f"{n}.zarr", token_log) for n, s in (("s", session), ("kept", kept))]
        assert_same_end(*ends)


@pytest.mark.parametrize("bad", BAD)
def test_invalid_text_can_be_replaced(
    bad: str, open_: Open, tmp_path: Path, token_log: TokenLog, small_blocks: int
) -> None:
    data = GOOD.encode() + BAD[bad][0]
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    session, wanted = open_("found"), open_("wanted")
    report = session.feed(path, [" and on"], errors="replace")
    wanted.feed([data.decode(errors="replace") + " and on"])
    ends = [End.of(s, tmp_path / f"{n}.zarr", token_log) for n, s in (("found", session), ("wanted", wanted))]
    assert_same_end(*ends)
    assert report.tokens == session.position


def test_other_text_follows_a_file_that_ended_within_a_character(
    open_: Open, tmp_path: Path
) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes("The log says 漢".encode()[:-2])
    session = open_()
    with pytest.raises(ValueError, match="ends within a UTF-8 character"):
        session.feed(path)
    assert session.tail == " says "[-1:] or session.tail  # what came before is there
    session.feed(["漢 is the word."])
    assert session.tail == " word."


@pytest.mark.parametrize("errors", ["ignore", "", None])
def test_errors_are_strict_or_replace(errors: Any, open_: Open) -> None:
    with pytest.raises(ValueError, match="errors must be 'strict' or 'replace'"):
        open_().feed(["text"], errors=errors)
