"""`Session.feed` after an interruption: the same call resumes, and nothing is lost."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import streamlm
import streamlm.runtime.text_stream
import streamlm.sessions.feed
import streamlm.sessions.live
import streamlm.sessions.saving
import streamlm.sessions.sources
from memory_store import (
    DirectoryStore,
    StoreError,
    StoreFull,
)
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.runtime.reports import Progress
from streamlm.sessions.session import Session
from tests.support.sessions import (
    GOOD,
    End,
    Open,
    TokenLog,
    assert_same_end,
    ctrl_c_at,
    split,
)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory, text: str) -> Callable[[int], list[Path]]:
    """Splits the text into files."""

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
    """A progress callback that records its arguments, and raises after some blocks."""
    seen.append(replace(now, report=replace(now.report)))
    if len(seen) > n_blocks:
        raise error


@pytest.mark.parametrize("n_files", [1, 2, 3])
def test_an_interrupted_call_resumes_when_repeated(
    n_files: int,
    book: Callable[[int], list[Path]],
    whole: End,
    text: str,
    open_: Open,
    token_log: TokenLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamlm.sessions.sources.BLOCK", 64)
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
        if chance.random() < 0.5:  # after reopening
            session.close()
            session = open_(save_every=20)
    assert n_interrupted > 3
    assert report.skipped_bytes == reached <= n_bytes
    assert n_tokens + report.tokens == report.position == whole.position
    assert_same_end(End.of(session, tmp_path / "s.zarr", token_log), whole)
    # After a complete call, the same files are read again.
    assert session.feed(*files).n_bytes == n_bytes


# Python cannot raise an exception while a generator is being closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_line(
    book: Callable[[int], list[Path]],
    whole: End,
    open_: Open,
    token_log: TokenLog,
    tmp_path: Path,
    small_blocks: int,
) -> None:
    files = book(2)
    modules = [
        [streamlm.sessions.feed, streamlm.sessions.live, streamlm.sessions.saving],
        [
            streamlm.sessions.feed,
            streamlm.sessions.live,
            streamlm.sessions.saving,
            streamlm.runtime.text_stream,
            streamlm.sessions.sources,
        ],
    ]
    chance = random.Random(2)
    # Each line of the first blocks and the first save, and random later lines.
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
        if session.position == whole.position:  # the text is complete
            end = End.of(session, tmp_path / f"{n_read}.zarr", token_log)
            assert_same_end(end, whole)
            n_read += 1
            session = open_(str(n_read), save_every=150)
    assert n_read > 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoreError])
def test_a_commit_that_succeeded_despite_an_error_is_no_conflict(
    error: type[BaseException],
    text: str,
    whole: End,
    open_: Open,
    token_log: TokenLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C, or an unconfirmed write, after the new head is visible."""
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


def test_a_full_disk_at_the_end_of_a_call(
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


def test_a_file_that_grew_resumes(
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
def test_a_changed_file_is_read_from_the_start(
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
    list(session.generate(max_tokens=0))  # reads the held-back word
    n_before = session.position
    target = first if changed == "first" else second
    target.write_text("Changed. " + target.read_text(encoding="utf-8"), encoding="utf-8")
    assert session.feed(first, second).skipped_bytes == 0
    list(session.generate(max_tokens=0))
    session.save()
    read = tiny.tokenizer.decode(token_log(tmp_path / "s.zarr")[n_before:])
    assert read == first.read_text(encoding="utf-8") + second.read_text(encoding="utf-8")


def test_a_file_resumes_after_other_text(
    open_: Open, tmp_path: Path, token_log: TokenLog, small_blocks: int, tiny: Checkpoint
) -> None:
    """At any interruption, also where a block would end within a character."""
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
