"""Sessions: reading, scoring, writing, forks and snapshots, whatever interrupts them."""

import gc
import io
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import streamlm
import streamlm.saving
import streamlm.session
import streamlm.sources
import streamlm.text
from memory_store import (
    Corrupt,
    DirectoryStore,
    Locked,
    Mismatch,
    NotFound,
    Ref,
    StoreError,
    StoreFull,
)
from streamlm.checkpoint import Checkpoint, load_checkpoint
from streamlm.reports import Progress
from streamlm.session import Session
from streamlm.sources import Source
from streamlm.state import State
from streamlm.stream import advance
from streamlm.text import TextStream
from tests import stores
from tests.invariants import assert_same_state
from tokenizer import StreamDecoder, Tokenizer

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4  # of slots near 1, computed in float32 by other chunks

TokenLog = Callable[..., list[int]]
Prose = Callable[..., str]
Open = Callable[..., Session]


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
    return [text[start:stop] for start, stop in pairwise(bounds)]


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
        (text.encode()[i : i + 7] for i in range(0, len(text.encode()), 7))
    ],
    "two texts": lambda path, text: [*split(text, 77)],
    "two files": lambda path, text: two_files(path.parent, text),
    "a file and the rest": lambda path, text: [two_files(path.parent, text)[0], [text[300:]]],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_is_read_alike(
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
    # Progress is told by source, in bytes.
    last = {now.name: now for now in seen}
    assert sum(now.read for now in last.values()) >= len(text.encode()) or kind == "two texts"
    assert all(now.size in (None, now.read) for now in last.values())
    assert len(seen) > 1


@settings(max_examples=12)
@given(data=st.data())
def test_any_split_over_any_calls(
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


GOOD = "Call me Ishmael. Some years ago — never mind how long precisely. " * 6
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
    before = (b"and so on, " * 99)[: 3 * small_blocks]
    if bad == "cut":  # of the fourth block, only what is no character is refused
        before, data = before + data[:4], data[4:]
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text(GOOD, encoding="utf-8")
    second.write_bytes(before + data)
    session, kept = open_("s"), open_("kept")
    kept.feed([GOOD, before])

    def compare() -> None:
        found = End.of(session, tmp_path / "s.zarr", token_log)
        assert_same_end(found, End.of(kept, tmp_path / "kept.zarr", token_log))

    for _ in range(2):  # trying again changes nothing
        with pytest.raises(ValueError, match=rf"second\.txt.*{message}"):
            session.feed(first, second)
        compare()
    with pytest.raises(ValueError, match=rf"second\.txt.*{message}"):
        session.score(second)
    compare()

    # Once the file is right, the same call goes on.
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


def test_other_text_follows_a_file_that_ended_within_a_character(
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


def test_a_file_is_gone_on_with_after_other_text(
    open_: Open, tmp_path: Path, token_log: TokenLog, small_blocks: int, tiny: Checkpoint
) -> None:
    """Wherever it was interrupted, also where a block would end within a character."""
    text = "x" + "漢字" * 150
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    session = open_()
    interrupted_after(session, 1, path)
    list(session.generate("?", max_tokens=0))
    n_read = session.feed(path).skipped_bytes
    assert 0 < n_read <= small_blocks + 3
    list(session.generate(max_tokens=0))
    session.save()
    one = text.encode()[:n_read].decode()
    two = text.encode()[n_read:].decode()
    assert tiny.tokenizer.decode(token_log(tmp_path / "s.zarr")) == f"{one}?{two}"


@pytest.mark.parametrize("errors", ["ignore", "", None])
def test_errors_are_strict_or_replace(errors: Any, open_: Open) -> None:
    with pytest.raises(ValueError, match="errors must be 'strict' or 'replace'"):
        open_().feed(["text"], errors=errors)


# -- feed: interrupted ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory, text: str) -> Callable[[int], list[Path]]:
    """The text as so many files."""

    def make(n_files: int) -> list[Path]:
        cuts = {1: (), 2: (401,), 3: (150, 420)}[n_files]
        folder = tmp_path_factory.mktemp("book")
        paths = [folder / f"{index}.txt" for index in range(n_files)]
        for path, part in zip(paths, split(text, *cuts), strict=True):
            path.write_text(part, encoding="utf-8", newline="")
        return paths

    return make


def interrupt(
    seen: list[Progress], n_blocks: int, error: type[BaseException], now: Progress
) -> None:
    """A progress callback that notes what it is told, and raises after some blocks."""
    seen.append(replace(now, report=replace(now.report)))
    if len(seen) > n_blocks:
        raise error


@pytest.mark.parametrize("n_files", [1, 2, 3])
def test_an_interrupted_call_goes_on_when_made_again(
    n_files: int,
    book: Callable[[int], list[Path]],
    whole: End,
    text: str,
    open_: Open,
    token_log: TokenLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamlm.sources.BLOCK", 64)
    chance = random.Random(n_files)
    files = book(n_files)
    n_bytes = len(text.encode())
    session = open_(save_every=20)
    reached, n_tokens, n_interrupted = 0, 0, 0
    error: type[BaseException]
    while True:
        left, error = chance.randrange(6), chance.choice([RuntimeError, KeyboardInterrupt])
        last: list[Progress] = []

        try:
            report = session.feed(*files, progress=partial(interrupt, last, left, error))
            break
        except (RuntimeError, KeyboardInterrupt):
            n_interrupted += 1
        n_tokens += last[-1].report.tokens
        assert last[-1].report.skipped_bytes == reached
        before = {str(path): path.stat().st_size for path in files}
        done = list(before)[: list(before).index(last[-1].name)]
        reached = sum(before[name] for name in done) + last[-1].read
        if chance.random() < 0.5:  # another day
            session.close()
            session = open_(save_every=20)
    assert n_interrupted > 3
    assert report.skipped_bytes == reached <= n_bytes
    assert n_tokens + report.tokens == report.position == whole.position
    assert_same_end(End.of(session, tmp_path / "s.zarr", token_log), whole)
    # It is read to the end: the same files once more are read once more.
    assert session.feed(*files).n_bytes == n_bytes


@contextmanager
def ctrl_c_at(n: int, *modules: ModuleType) -> Iterator[None]:
    """Presses Ctrl-C before the n-th line that is run in some modules."""
    files = {module.__file__ for module in modules}
    left, before = n, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        left -= event == "line"
        if event == "line" and not left:
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


# Python cannot raise what comes while a generator is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_may_come_at_any_line(
    book: Callable[[int], list[Path]],
    whole: End,
    open_: Open,
    token_log: TokenLog,
    tmp_path: Path,
    small_blocks: int,
) -> None:
    files = book(2)
    modules = [
        [streamlm.session, streamlm.saving],
        [streamlm.session, streamlm.saving, streamlm.text, streamlm.sources],
    ]
    chance = random.Random(2)
    # Each line of the first blocks and the first save, and any lines of all the rest.
    moments = [(n, modules[0], save) for save in (True, False) for n in range(1, 121)]
    moments += [(chance.randrange(1, 220), modules[1], bool(n % 2)) for n in range(20)]
    session, n_read = open_("0", save_every=150), 0
    for n, where, save in moments:
        try:
            with ctrl_c_at(n, *where):
                session.feed(*files)
        except KeyboardInterrupt:
            if save:
                session.save()
        if session.position == whole.position:  # had it come a line later, it would be too late
            end = End.of(session, tmp_path / f"{n_read}.zarr", token_log)
            assert_same_end(end, whole)
            n_read += 1
            session = open_(str(n_read), save_every=150)
    assert n_read > 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoreError])
def test_a_save_that_got_through_all_the_same_is_no_conflict(
    error: type[BaseException],
    text: str,
    whole: End,
    open_: Open,
    token_log: TokenLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C, or a disk that does not confirm, after the new head is visible."""
    commit = DirectoryStore.commit
    failing = True

    def fail_after(*args: Any, **options: Any) -> Any:
        ref = commit(*args, **options)
        if failing:
            raise error
        return ref

    monkeypatch.setattr(DirectoryStore, "commit", fail_after)
    session = open_()
    one, two = split(text, 222)
    with pytest.raises(error):
        session.feed([one])
    with pytest.raises(error):
        session.save()
    failing = False
    session.feed([two])
    assert_same_end(End.of(session, tmp_path / "s.zarr", token_log), whole)


def test_a_full_disk_at_the_end_of_a_call_loses_nothing(
    book: Callable[[int], list[Path]],
    whole: End,
    open_: Open,
    token_log: TokenLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = book(2)
    session = open_()
    with monkeypatch.context() as patch:

        def full(*args: Any, **options: Any) -> Any:
            raise StoreFull("no space left")

        patch.setattr(DirectoryStore, "commit", full)
        with pytest.raises(StoreFull):
            session.feed(*files)
    report = session.feed(*files)
    assert report.tokens == 0 and report.skipped_bytes == sum(f.stat().st_size for f in files)
    assert_same_end(End.of(session, tmp_path / "s.zarr", token_log), whole)


def interrupted_after(session: Session, n_blocks: int, *files: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        session.feed(*files, progress=partial(interrupt, [], n_blocks - 1, KeyboardInterrupt))


def test_a_file_that_grew_meanwhile_is_gone_on_with(
    open_: Open, tmp_path: Path, token_log: TokenLog, small_blocks: int
) -> None:
    log = tmp_path / "log.txt"
    log.write_text(GOOD, encoding="utf-8")
    session, wanted = open_("s"), open_("wanted")
    interrupted_after(session, 1, log)
    with open(log, "a", encoding="utf-8") as file:
        file.write("And more — of it.")
    assert 0 < session.feed(log).skipped_bytes <= small_blocks
    wanted.feed(log)
    assert_same_end(
        End.of(session, tmp_path / "s.zarr", token_log),
        End.of(wanted, tmp_path / "wanted.zarr", token_log),
    )


@pytest.mark.parametrize("changed", ["first", "second"])
def test_a_file_that_was_changed_is_read_anew(
    changed: str,
    open_: Open,
    tmp_path: Path,
    token_log: TokenLog,
    small_blocks: int,
    tiny: Checkpoint,
) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    for path in (first, second):
        path.write_text(f"The {path.name} file. " + GOOD, encoding="utf-8")
    session = open_()
    interrupted_after(session, 3, first, second)
    list(session.generate(max_tokens=0))  # ends the word that was held back
    n_before = session.position
    target = first if changed == "first" else second
    target.write_text("Changed. " + target.read_text(encoding="utf-8"), encoding="utf-8")
    assert session.feed(first, second).skipped_bytes == 0
    list(session.generate(max_tokens=0))
    session.save()
    read = tiny.tokenizer.decode(token_log(tmp_path / "s.zarr")[n_before:])
    assert read == first.read_text(encoding="utf-8") + second.read_text(encoding="utf-8")


# -- score ------------------------------------------------------------------------------------

SETTLED = "Call me Ishmael. Some years ago — never mind how long precisely" + "\n" * 256


@pytest.mark.parametrize("before", ["", "It was the best of ti"])
def test_score_says_what_feed_would_and_changes_nothing(
    before: str, open_: Open, tiny: Checkpoint, tmp_path: Path
) -> None:
    session = open_()
    if before:
        session.feed([before])
    else:
        session.save()
    kept, size = facts(session), DirectoryStore.open(tmp_path / "s.zarr").size()
    report = session.score([SETTLED], details=True)
    again = session.score(SETTLED[:40], [SETTLED[40:]])
    assert facts(session) == kept
    session.save()
    assert DirectoryStore.open(tmp_path / "s.zarr").size() == size
    assert len(session.history()) == (2 if before else 1)

    ids = tiny.tokenizer.encode(SETTLED).tolist()
    assert report.ids == ids and len(report.log_probs) == len(ids) == report.tokens
    assert -sum(report.log_probs) == pytest.approx(report.nats)
    assert max(report.log_probs) < 0 and again.ids == again.log_probs == []
    assert again.nats == pytest.approx(report.nats, rel=1e-5)
    assert (again.tokens, again.n_bytes) == (report.tokens, len(SETTLED.encode()))
    assert report.position == session.position

    list(session.generate(max_tokens=0))  # the word before ends here
    fed = session.feed([SETTLED])
    assert fed.nats == pytest.approx(report.nats, rel=1e-5) and session.tail == ""
    assert (fed.tokens, fed.n_bytes) == (report.tokens, report.n_bytes)
    assert "ids" not in fed.to_dict() and report.to_dict()["ids"] == ids


def test_score_reads_the_tail_too(tiny: Checkpoint) -> None:
    text = "the whale"
    report = Session(tiny).score([text], details=True)
    assert report.ids == tiny.tokenizer.encode(text).tolist()
    assert report.n_bytes == len(text)


# -- generate ---------------------------------------------------------------------------------


def test_greedy_is_deterministic(tiny: Checkpoint) -> None:
    session = Session(tiny)
    session.feed(["Call me Ishmael. "])
    twin, other_seed = session.fork(), session.fork()
    found = "".join(session.generate("Some", max_tokens=20, temperature=0))
    assert found and found == "".join(twin.generate("Some", max_tokens=20, temperature=0))
    assert found == "".join(other_seed.generate("Some", max_tokens=20, temperature=0, seed=5))
    assert session.state.digest() == twin.state.digest()


def test_seeds(tiny: Checkpoint) -> None:
    begin = Session(tiny)

    def write(seed: int | None, session: Session | None = None) -> str:
        return "".join((session or begin.fork()).generate(max_tokens=12, seed=seed))

    assert write(7) == write(7) != write(8)
    # Without a seed, the session's own generator goes on: no two calls draw the same.
    assert write(None) == write(None) == write(None, Session(tiny)) == write(0)
    session = Session(tiny, seed=7)
    assert write(None, session) == write(7)
    on = session.fork()
    assert write(None, session) == write(None, on) != write(7, session.fork())


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"seed": 3}])
def test_writing_in_parts_is_writing_at_once(tiny: Checkpoint, options: dict[str, Any]) -> None:
    at_once, in_parts = Session(tiny), Session(tiny)
    wanted = "".join(at_once.generate("Call me", max_tokens=18, **options))
    found = "".join(in_parts.generate("Call me", max_tokens=7, **options))
    options.pop("seed", None)
    for n in (0, 1, 10):
        found += "".join(in_parts.generate(max_tokens=n, **options))
    assert found == wanted
    assert in_parts.state.digest() == at_once.state.digest()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": -1}, "max_tokens = -1; allowed: 0 or more"),
        ({"temperature": -0.1}, r"temperature = -0\.1; allowed: 0 \(greedy\) to 100"),
        ({"temperature": math.nan}, "temperature = nan; allowed"),
        ({"top_k": -1}, "top_k = -1; allowed"),
        ({"top_k": 2.5}, r"top_k = 2\.5; allowed"),
        ({"top_p": 0}, "top_p = 0; allowed"),
        ({"top_p": 1.1}, r"top_p = 1\.1; allowed"),
        ({"min_p": 2}, "min_p = 2; allowed"),
        ({"repetition_penalty": 0}, "repetition_penalty = 0; allowed"),
        ({"stop": ""}, "stop = ''; allowed: strings that are not empty"),
        ({"stop": ["end", ""]}, r"stop = \['end', ''\]; allowed"),
        ({"stop": ["end", 3]}, "allowed: strings that are not empty"),
        ({"seed": -1}, "seed = -1; allowed: 0 or more"),
    ],
)
def test_wrong_values_are_refused_at_the_call(
    tiny: Checkpoint, options: dict[str, Any], message: str
) -> None:
    session = Session(tiny)
    before = facts(session)
    with pytest.raises(ValueError, match=message):
        session.generate("Call me", **options)  # nobody asks for the first piece
    assert facts(session) == before


def test_no_tokens_only_read_the_prompt(tiny: Checkpoint, whole: End, text: str) -> None:
    session = Session(tiny)
    session.feed([text[:55]])
    assert list(session.generate(text[55:], max_tokens=0)) == []
    wanted = tiny.tokenizer.encode(text).tolist()
    assert session.position == len(wanted) and session.tail == ""
    assert_same_state(session.state, state_after(tiny, wanted), tolerance=TOLERANCE)
    bare = Session(tiny)
    assert list(bare.generate(max_tokens=0)) == [] and bare.position == 0


def test_lone_surrogates_in_a_prompt_are_replaced(tiny: Checkpoint) -> None:
    found, wanted = Session(tiny), Session(tiny)
    list(found.generate("a\ud800b", max_tokens=0))
    list(wanted.generate("a\ufffdb", max_tokens=0))
    assert found.state.digest() == wanted.state.digest()


class Script:
    """Makes every session write these texts, one for each token, without a model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pieces: list[str]) -> None:
        self.written = ""
        left = iter(pieces)

        def write_token(stream: TextStream, *args: Any) -> tuple[TextStream, int, str]:
            piece = next(left)
            self.written += piece
            return stream, 5, piece

        monkeypatch.setattr(TextStream, "write_token", write_token)


AB = st.text("ab", max_size=3)


@settings(max_examples=200)
@given(pieces=st.lists(AB, max_size=8), stop=st.text("ab", min_size=1, max_size=4))
@example(pieces=["a", "a", "b", "a"], stop="aab")
@example(pieces=["ab", "", "ab", "b"], stop="abb")
@example(pieces=["b", "ab"], stop="abab")
def test_writing_ends_at_a_stop_string(tiny: Checkpoint, pieces: list[str], stop: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        script = Script(patch, pieces)
        found = ""
        for piece in Session(tiny).generate(max_tokens=len(pieces), stop=stop):
            assert piece
            found += piece
            # Nothing is held back but what could still become the stop string.
            held = script.written.removeprefix(found)
            assert stop in script.written or stop.startswith(held)
    assert found == "".join(pieces).partition(stop)[0]
    # No token is drawn behind the one that completes it.
    so_far = ["".join(pieces[:n]) for n in range(len(pieces) + 1)]
    assert script.written == next((text for text in so_far if stop in text), so_far[-1])


def test_the_first_of_several_stop_strings_counts(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    Script(monkeypatch, ["one", " tw", "o th", "ree"])
    session = Session(tiny)
    assert list(session.generate(max_tokens=9, stop=["three", "two", "e th"])) == ["on", "e "]


def test_stop_strings_of_a_model(tiny: Checkpoint) -> None:
    session = Session(tiny)
    whole = "".join(session.fork().generate("Call me", max_tokens=16, temperature=0))
    for start, size in ((0, 1), (3, 2), (9, 12), (5, 30)):
        stop = whole[start : start + size]
        found = session.fork().generate("Call me", max_tokens=16, temperature=0, stop=stop)
        assert "".join(found) == whole[: whole.find(stop)]
    # The stop string is read, though not given out.
    stopped, stops = session.fork(), ["never met", whole[9:14]]
    list(stopped.generate("Call me", max_tokens=16, temperature=0, stop=stops))
    assert whole[9:14] in tiny.tokenizer.decode(stopped._stream.recent)


def test_an_abandoned_iterator_leaves_what_it_wrote(
    open_: Open, tmp_path: Path, token_log: TokenLog, tiny: Checkpoint
) -> None:
    session, twin = open_(), open_("twin")
    pieces = session.generate("Call me", max_tokens=30, temperature=0)
    found = "".join(islice(pieces, 5))
    pieces.close()  # type: ignore[attr-defined]
    session.save()
    written = token_log(tmp_path / "s.zarr")[len(tiny.tokenizer.encode("Call me")) :]
    assert tiny.tokenizer.decode(written) == found
    found += "".join(session.generate(max_tokens=30 - len(written), temperature=0))
    assert found == "".join(twin.generate("Call me", max_tokens=30, temperature=0))
    ends = [
        End.of(one, tmp_path / f"{name}.zarr", token_log)
        for one, name in ((session, "s"), (twin, "twin"))
    ]
    assert_same_end(*ends)
    untouched = open_("untouched")
    untouched.generate("Call me", max_tokens=30)  # nothing happens until a piece is asked for
    assert untouched.position == 0


@pytest.fixture(scope="module")
def byte_writer(tiny_folder: Callable[..., Path]) -> Checkpoint:
    """A model that likes to write bytes of characters that its tokenizer does not know."""
    return load_checkpoint(tiny_folder(likes="漢🐋ѣ"), device="cpu")


def test_pieces_are_whole_characters_and_say_what_the_log_says(
    byte_writer: Checkpoint, tmp_path: Path, token_log: TokenLog
) -> None:
    path = tmp_path / "s.zarr"
    decoder = StreamDecoder(byte_writer.tokenizer)
    with streamlm.open(path, byte_writer) as session:

        def write(prompt: str, max_tokens: int) -> tuple[str, list[int]]:
            """What it gave out, and what the log says it wrote."""
            n_before = session.position + len(byte_writer.tokenizer.encode(prompt))
            pieces = list(
                session.generate(prompt, max_tokens=max_tokens, temperature=2.0, top_p=1.0)
            )
            assert all(pieces)
            session.save()
            return "".join(pieces), token_log(path)[n_before:]

        n_cut, n_bytes = 0, []
        for max_tokens in range(1, 12):
            text, ids = write("", max_tokens)
            n_bytes += [byte_writer.tokenizer.token_lengths[id] for id in ids]
            assert len(ids) == max_tokens and text == decoder.decode(ids)
            n_cut += bool(decoder.state["bytes"])
        assert n_cut > 1 and 1 in n_bytes  # it ended within characters, and went on there

        # A prompt ends the character that was begun, as all other text does.
        for _ in range(50):
            if decoder.state["bytes"]:
                break
            decoder.decode(write("", 1)[1])
        assert decoder.state["bytes"]
        text, ids = write("x", 12)
        assert text == StreamDecoder(byte_writer.tokenizer).decode(ids)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 2.0, "top_p": 1.0}])
def test_control_tokens_are_never_written(
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    token_log: TokenLog,
    options: dict[str, Any],
) -> None:
    checkpoint = load_checkpoint(tiny_folder(), device="cpu")
    lengths = checkpoint.tokenizer.token_lengths
    with torch.no_grad():
        checkpoint.model.output_bias[torch.from_numpy(lengths == 0)] += 1000
    with streamlm.open(tmp_path / "s.zarr", checkpoint) as session:
        list(session.generate("<s>", max_tokens=12, **options))
    log = token_log(tmp_path / "s.zarr")
    assert len(log) > 12 and all(lengths[log])


def test_the_repetition_penalty_sees_what_was_read_before(tiny: Checkpoint) -> None:
    session = Session(tiny)
    session.feed(["Call me Ishmael. Some years ago"])
    list(session.generate(max_tokens=0))
    read = set(session._stream.recent.tolist())
    # Once its likeliest token was read, it is not written any more.
    likeliest = session.fork()
    list(likeliest.generate(max_tokens=1, temperature=0))
    (id,) = likeliest._stream.recent[-1:].tolist()
    session._stream = replace(session._stream, recent=np.array([*read, id], np.int32))
    list(session.generate(max_tokens=1, temperature=0, repetition_penalty=100.0))
    assert session._stream.recent[-1] not in (*read, id)


# -- forks ------------------------------------------------------------------------------------


def test_forks_do_not_see_each_other(tiny: Checkpoint, text: str) -> None:
    base, never_forked = Session(tiny), Session(tiny)
    for session in (base, never_forked):
        session.feed([text[:130]])
    one, two = base.fork(), base.fork()
    one.feed(["The sea was white. "])
    three = one.fork()
    for _ in two.generate("And he", max_tokens=9):
        one.feed(["More of it, and "])  # in the middle of the other's writing
    for session in (base, never_forked):
        session.feed([text[130:]])
        list(session.generate(max_tokens=5))
    assert facts(base)[:3] == facts(never_forked)[:3]
    # Each ends where a session ends that read its text alone.
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
    for call in (fork.save, fork.history, lambda: fork.rewind(tokens=0), lambda: fork.fork("b")):
        with pytest.raises(ValueError, match=r"this session has no store; use streamlm\.open"):
            call()
    assert DirectoryStore.open(tmp_path / "s.zarr").branches() == ["main"]
    assert len(session.history()) == 2


def test_a_fork_to_a_branch_is_a_session_of_its_own(
    open_: Open, tmp_path: Path, token_log: TokenLog, tiny: Checkpoint
) -> None:
    path = tmp_path / "s.zarr"
    session = open_(save_every=99)
    session.feed(["Call me Ishmael. Some ye"])
    list(session.generate(max_tokens=3))  # not saved yet
    with session.fork("b") as fork:
        assert fork.branch == "b" and fork.save_every == 99
        assert facts(fork)[:3] == facts(session)[:3]
        assert len(fork.history()) == 1 and len(session.history()) == 3
        # Both draw on from the same generator, and go on apart.
        same = "".join(fork.generate(max_tokens=6))
        assert same == "".join(session.fork().generate(max_tokens=6))
        session.feed(["The sea is white."])
        with fork.fork("c") as third:
            assert third.position == fork.position
        with pytest.raises(ValueError, match="branch 'main' exists already; allowed: a new name"):
            fork.fork("main")
        with pytest.raises(Locked, match=r"'b' is being written by process \d+"):
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


# -- rewind -----------------------------------------------------------------------------------


@pytest.fixture
def travelled(open_: Open, text: str, tmp_path: Path) -> tuple[Session, list[str], list[str]]:
    """A session of some snapshots and unsaved tokens; digests, and what each would write."""
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
    session.rewind(tokens=tokens)
    assert session.position == tokens and session.tail == ""
    latest = session.history()
    assert latest[: len(refs)] == refs  # history keeps what was
    before = token_log(path)
    assert len(before) == tokens
    assert_same_state(session.state, state_after(tiny, before), tolerance=TOLERANCE)
    assert session.history() == latest

    # It goes on from there, and is there when it is opened again.
    list(session.generate("More", max_tokens=3))
    digest = session.state.digest()
    session.close()
    with streamlm.open(path, tiny) as again:
        assert again.state.digest() == digest
        assert token_log(path)[:tokens] == before and again.position == len(token_log(path))
        # Undone: the snapshot that rewinding saved first has everything.
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
    assert "".join(session.fork().generate(max_tokens=4)) == texts[seq]  # its generator, too
    session.rewind(snapshot=5)  # where rewinding began
    assert session.state.digest() == end
    assert [entry.position for entry in session.history()[-2:]] == [ref.position, session.position]


def test_a_rewound_session_reads_on(
    open_: Open, text: str, whole: End, tmp_path: Path, token_log: TokenLog
) -> None:
    session = open_()
    session.feed([text[:200]])
    tail, n = session.tail, session.position
    session.feed(["Never mind all this. " * 9])
    session.rewind(tokens=n)
    session.feed([tail + text[200:]])
    assert_same_end(End.of(session, tmp_path / "s.zarr", token_log), whole)
    session.rewind(snapshot=1)  # there, the tail is part of it
    session.feed([text[200:]])
    assert_same_end(End.of(session, tmp_path / "s.zarr", token_log), whole)


@pytest.mark.parametrize("first", ["Call", "Call me Ishmael."])
def test_rewind_to_the_beginning_forgets_everything(first: str, open_: Open) -> None:
    session = open_(seed=7)
    session.feed([first])
    assert (session.position == 0) == (first == session.tail == "Call")  # no token yet
    session.feed([" Some years ago"])
    list(session.generate(max_tokens=3))
    session.rewind(tokens=0)
    assert (session.position, session.tail) == (0, "")
    wanted = "".join(Session(session.checkpoint, seed=7).generate(max_tokens=5))
    assert "".join(session.generate(max_tokens=5)) == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"allowed: one of tokens=…, snapshot=… and time=…"),
        ({"tokens": 1, "snapshot": 1}, r"allowed: one of tokens=…, snapshot=… and time=…"),
        ({"snapshot": 1, "time": 1e9}, r"allowed: one of tokens=…, snapshot=… and time=…"),
        ({"time": 1e9}, r"time = 1000000000\.0; allowed: \d{4}-\d\d-\d\dT.* or later"),
        ({"tokens": -1}, r"tokens = -1; allowed: 0 to \d+"),
        ({"tokens": 10**6}, r"tokens = 1000000; allowed: 0 to \d+"),
        ({"snapshot": -1}, r"snapshot = -1; allowed: 0 to 5"),
        ({"snapshot": 6}, r"snapshot = 6; allowed: 0 to 5"),
    ],
)
def test_rewind_out_of_range(
    options: dict[str, Any], message: str, travelled: tuple[Session, list[str], list[str]]
) -> None:
    session, _, _ = travelled
    before = session.state.digest(), session.position, session.tail
    with pytest.raises(ValueError, match=message):
        session.rewind(**options)
    assert (session.state.digest(), session.position, session.tail) == before
    assert session.fork().feed(["It reads on."]).tokens


@pytest.mark.parametrize("interrupted", ["before", "after"])
def test_an_interrupted_rewind_is_done_or_not(
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
    session.feed(["It goes on."])  # and does not stand in its own way
    assert session.history()[-1].position == session.position


def test_a_closed_session_changes_nothing(open_: Open, tmp_path: Path, tiny: Checkpoint) -> None:
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
        lambda: session.rewind(tokens=1),
        lambda: session.fork("b"),
    ]
    for change in changes:
        with pytest.raises(ValueError, match=r"the session is closed; open it again"):
            change()
    assert facts(session) == before
    assert session.score(["More."]).tokens and session.fork().feed(["More of it."]).tokens
    with streamlm.open(tmp_path / "s.zarr", tiny) as other:  # another writer is let in
        assert other.state.digest() == session.state.digest()
        session.close()  # and not disturbed by a second close
        other.feed(["More."])


def test_snapshots_of_other_branches_are_not_ones_own(open_: Open) -> None:
    session = open_()
    session.feed(["Call me Ishmael."])
    with session.fork("b") as fork:
        fork.feed(["Some years ago"])
        before = facts(session)
        for ref in fork.history():
            with pytest.raises(ValueError, match=r"an entry of history\(\)"):
                session.rewind(snapshot=ref)
        assert facts(session) == before


def damage(path: Path, ref: Ref | None, name: str) -> None:
    """Flip a bit in an array of a commit."""
    assert ref is not None
    file = path / "commits" / ref.commit.name
    data = bytearray(file.read_bytes())
    chunk = next(each for each in stores.members(bytes(data)) if each.startswith(f"{name}/c."))
    data[stores.where(bytes(data), chunk) + 40] ^= 1
    file.write_bytes(data)


def test_a_damaged_snapshot_is_not_gone_back_to(
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


# -- open -------------------------------------------------------------------------------------


def test_a_session_is_begun_and_resumed(open_: Open, tmp_path: Path) -> None:
    session = open_()
    assert (session.position, session.tail, session.saved, session.history()) == (0, "", None, [])
    with session:
        session.feed(["Call me Ishmael. Some ye"])
        list(session.generate("It is", max_tokens=3))  # `with` saves it
    ref = session.saved
    with open_(create=False) as again:
        assert facts(again)[:4] == facts(session)[:4]
        assert again.saved == ref == again.history()[-1]
        assert again.save() == ref and len(again.history()) == 3  # there is nothing to save
    assert open_().history() == session.history()  # and opening saves nothing


def test_where_nothing_was_read_nothing_is_left(open_: Open, tmp_path: Path) -> None:
    with open_("folder/s") as session:
        session.score("Call me Ishmael. Some years ago")
        list(session.generate(max_tokens=0))
    with pytest.raises(FileNotFoundError), open_("folder/s") as session:
        session.feed(tmp_path / "missing.txt")
    assert not (tmp_path / "folder" / "s.zarr").exists()
    # Once something was, closing a session that read nothing more deletes nothing.
    with open_() as session:
        session.feed("Call")
    with open_() as session:
        assert session.tail == "Call"
    assert (tmp_path / "s.zarr").exists()


def test_what_was_read_before_an_error_is_saved(open_: Open) -> None:
    with pytest.raises(ZeroDivisionError), open_() as session:
        for index, _ in enumerate(session.generate("Call me", max_tokens=9)):
            1 // (3 - index)
    n = session.position
    assert n > 4 and open_().position == n


@pytest.mark.parametrize(
    "options",
    [{"create": False}, {"readonly": True}, {"branch": "b"}, {"branch": "b", "create": False}],
)
def test_what_is_not_there_is_told(options: dict[str, Any], open_: Open, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_("nothing", **options)
    assert not (tmp_path / "nothing.zarr").exists()
    if "branch" in options:
        with open_() as session:
            session.feed(["Call me Ishmael."])
        with pytest.raises(NotFound, match="has no branch 'b'; it has main"):
            open_(**options)
        assert DirectoryStore.open(tmp_path / "s.zarr").branches() == ["main"]


def test_a_session_that_was_begun_and_killed_at_once_is_begun_again(
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
        with pytest.raises(Locked, match=rf"process {os.getpid()} on"):
            open_()
        saved = session.saved
        list(session.generate(max_tokens=3))
        with open_(readonly=True) as reader:  # sees what was saved
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


def test_what_was_written_until_the_lock_was_free_is_seen(
    open_: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_() as session:
        session.feed(["Call me Ishmael."])
    writer = DirectoryStore.writer

    def late(store: DirectoryStore, branch: str = "main") -> Any:
        monkeypatch.setattr(DirectoryStore, "writer", writer)
        with open_() as other:  # another gets there first
            other.feed([" Some years ago"])
        return writer(store, branch)

    monkeypatch.setattr(DirectoryStore, "writer", late)
    with open_() as session:
        n = session.position
        session.feed([" never mind"])
    assert n > 3 and open_().position == session.position > n


def test_a_readonly_session_is_not_changed(open_: Open, tmp_path: Path) -> None:
    with open_() as session:
        session.feed(["Call me Ishmael. Some ye"])
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr").rglob("*")}
    with open_(readonly=True) as reader:
        before = facts(reader)
        refusals: list[Callable[[], object]] = [
            lambda: reader.feed("more"),
            lambda: reader.generate("more"),
            reader.save,
            lambda: reader.rewind(tokens=0),
            lambda: reader.fork("b"),
        ]
        for call in refusals:
            with pytest.raises(ValueError, match="the session was opened to be read only"):
                call()
        assert facts(reader) == before
        # What reads may be done.
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
        # A field that SentencePiece skips: the same pieces, yet another file.
        tokenizer = Tokenizer(tiny.tokenizer.model_bytes + b"\xc0\x0c\x01")
        other = replace(tiny, tokenizer=tokenizer)
    else:
        options = {"seed": 2} if what == "weights" else {"memory_len": 32}
        other = load_checkpoint(tiny_folder(**options), device="cpu")
    for readonly in (False, True):
        with pytest.raises(Mismatch, match=rf"{what} is \w+, but \w+ is recorded") as error:
            streamlm.open(tmp_path / "s.zarr", other, readonly=readonly)
        assert set(error.value.differing) == {what}
    assert open_().position == session.position  # the lock was let go of


def test_damage_is_told(open_: Open, tmp_path: Path) -> None:
    with open_() as session:
        session.feed(["Call me Ishmael. " * 9])
    damage(tmp_path / "s.zarr", session.saved, "segment")
    for _ in range(2):
        with pytest.raises(Corrupt, match="segment"):
            open_()


# -- bounds -----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts, and mounts anew, a file system in memory of some size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(size: str) -> Path:
        nonlocal mounted
        options = f"remount,size={size}" if mounted else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs the right to mount a small file system")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing(
    small_disk: Callable[[str], Path], tiny: Checkpoint, text: str, token_log: TokenLog
) -> None:
    path = small_disk("300k") / "s.zarr"
    session = streamlm.open(path, tiny)
    n_fed = 0
    with pytest.raises(StoreFull, match="no space left"):
        for _ in range(60):
            session.feed([text[:100]])
            n_fed += 1
    assert 1 < n_fed < 60
    # The session can be used, the last commit can be read, and saving is tried again.
    assert session.score(["the sea"]).tokens
    list(session.generate(max_tokens=3))
    with streamlm.open(path, tiny, readonly=True) as reader:
        assert session.saved is not None and reader.position == session.saved.position
        assert (
            token_log(path) == tiny.tokenizer.encode(text[:100] * n_fed).tolist()[: reader.position]
        )
    with pytest.raises(StoreFull):
        session.save()
    written = token_log(path)
    small_disk("3m")
    session.close()
    assert token_log(path)[: len(written)] == written
    with streamlm.open(path, tiny) as again:
        assert again.state.digest() == session.state.digest()
        assert again.position == session.position == len(token_log(path))


def bytes_held(*roots: object) -> int:
    """Memory of all that can be reached, but for classes, functions and modules."""
    seen: dict[int, object] = {}
    storages: dict[int, int] = {}
    todo = list(roots)
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, (type, FunctionType, ModuleType)):
            continue
        seen[id(item)] = item
        if isinstance(item, torch.Tensor):
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        else:
            todo += gc.get_referents(item)
    return sum(map(sys.getsizeof, seen.values())) + sum(storages.values())


def test_what_a_session_holds_does_not_grow(tiny: Checkpoint, prose: Prose) -> None:
    session = Session(tiny)
    held, positions = [], []
    for seed in range(5):
        session.feed([prose(320, seed=seed) + "\n\n"])
        list(session.generate(max_tokens=0))
        list(session.generate(max_tokens=-session.position % 16))
        assert session.position % 16 == 0
        mine = {name: part for name, part in vars(session).items() if name != "checkpoint"}
        held.append((session.state.nbytes, bytes_held(mine)))
        positions.append(session.position)
    assert positions[-1] > 200 * 16
    sizes = [size for _, size in held[1:]]  # all buffers are full after the first
    assert len({nbytes for nbytes, _ in held}) == 1
    assert max(sizes) - min(sizes) < 1000  # the held-back text may be longer or shorter
    assert sizes[0] > session.state.nbytes
    assert bytes_held([torch.zeros(1000), "x" * 1000]) > 5000  # it does count


def test_with_a_store_what_was_saved_is_let_go(open_: Open, prose: Prose) -> None:
    session = open_(save_every=64)
    sizes = []
    for seed in range(3):
        session.feed([prose(200, seed=seed)])
        session.save()
        sizes.append(bytes_held(session._bound("count").log, session._stream.recent))
    assert sizes[1] == sizes[2]
