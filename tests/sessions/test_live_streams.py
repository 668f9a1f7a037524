"""Streams that live for days: saves by time, files that grow, and files that are read once."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import streamlm
from memory_store import DirectoryStore
from streamlm import Checkpoint, Session
from streamlm.sessions.following import Followed
from streamlm.sessions.sources import Between
from tests.support.sessions import facts

Open = Callable[..., Session]
PATIENCE = 60.0  # seconds; a limit for what takes a few milliseconds


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def head(path: Path) -> int:
    """The position that another process would find."""
    found = DirectoryStore.open(path).head("main")
    return 0 if found is None else found.position


def test_what_was_read_is_saved_while_nothing_comes(open_: Open, tmp_path: Path) -> None:
    session, path = open_(save_seconds=0.01), tmp_path / "s.zarr"
    seen = []

    def lines() -> Iterator[str]:
        yield "Call me Ishmael. "
        until(lambda: head(path) > 0)
        seen.append(head(path))
        yield "Some years ago, "
        until(lambda: head(path) > seen[0])
        seen.append(head(path))

    session.feed(lines())
    assert seen[0] < seen[1] <= session.position
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("streamlm saving") for name in names)
    # Nothing is saved where nothing was asked for.
    quiet = open_("quiet", save_seconds=None)
    quiet.feed(iter(["Call me Ishmael. ", "Some years ago, "]))
    assert len(quiet.history()) == 2  # the empty beginning, and the end


def test_an_error_of_the_source_ends_the_saving(open_: Open) -> None:
    session = open_(save_seconds=0.01)

    def failing() -> Iterator[str]:
        yield "Call me Ishmael. "
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        session.feed(failing())
    position = session.position
    session.close()
    assert open_().position == position > 0


@pytest.mark.parametrize("compression", ["conv", "mean", "most-used"])
def test_saves_by_time_leave_the_bits(
    compression: str, tiny_folder: Callable[..., Path], tmp_path: Path, prose: Callable[..., str]
) -> None:
    """A save by time falls where a segment ends, so how fast a machine is changes nothing."""
    checkpoint = streamlm.load(tiny_folder(compression=compression), device="cpu")
    file = tmp_path / "text.txt"
    file.write_text(prose(120), encoding="utf-8")
    digests = []
    for seconds in (None, 0):
        path = tmp_path / f"{seconds}.zarr"
        with streamlm.open(
            path, checkpoint, seed=1, save_seconds=seconds, retention=None
        ) as session:
            session.feed(file)
            written = "".join(session.generate(max_tokens=20, seed=2))
            digests.append((session.state.digest(), session.position, written))
            n = len(session.history())
    assert digests[0] == digests[1]
    assert n > 4


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "30", True])
def test_save_seconds(seconds: object, open_: Open) -> None:
    message = r"save_seconds = .*; allowed: None, or seconds from 0 on"
    with pytest.raises(ValueError, match=message):
        open_("bad", save_seconds=seconds)
    session = open_()
    with pytest.raises(ValueError, match=message):
        session.save_seconds = seconds  # type: ignore[assignment]
    session.save_seconds = 5
    with session.fork("b") as fork:
        assert fork.save_seconds == 5


def followed(path: Path, *changes: Callable[[], object]) -> Followed:
    """A followed file that is changed each time that there is nothing new, and then ends."""
    left = list(changes)

    def until() -> bool:
        if not left:
            return True
        left.pop(0)()
        return False

    return Followed(path, until=until, poll=0.0)


def append(path: Path, text: str) -> Callable[[], object]:
    def change() -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)

    return change


def test_a_followed_file(open_: Open, tmp_path: Path, tiny: Checkpoint) -> None:
    log = tmp_path / "app.log"
    log.write_text("one\ntw", encoding="utf-8")

    def rotate() -> None:
        log.rename(tmp_path / "app.log.1")
        append(tmp_path / "app.log.1", "!")()  # the writer has the old file open for a while

    def truncate() -> None:
        log.write_text("six\n", encoding="utf-8")

    changes = [
        *(append(log, "o\n"), append(log, "thr"), append(log, "ee é"[:-1]), rotate),
        *(append(log, "four\n"), append(log, "five\n"), truncate),
    ]
    read: list[str] = []
    session = open_()
    session.feed(followed(log, *changes), progress=lambda done: read.append(done.name))
    wanted = "one\ntwo\nthree !\nfour\nfive\nsix\n"
    assert session.text() + session.tail == wanted
    # It goes on where it was, also after something else; a new file is read from its beginning.
    list(session.generate(" And so", max_tokens=3, seed=1))
    session.close()
    session = open_()
    at = session.position
    append(log, "seven\n")()
    session.feed(followed(log))
    assert (session.text(at) + session.tail).endswith("seven\n")
    assert "six" not in session.text(at) + session.tail
    at, log_text = session.position, "another file\n"
    log.unlink()
    log.write_text(log_text, encoding="utf-8")
    session.feed(followed(log))
    assert (session.text(at) + session.tail).endswith(log_text)


def test_an_interrupted_following_goes_on(open_: Open, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("one\n", encoding="utf-8")

    def stop() -> None:
        raise KeyboardInterrupt

    session = open_()
    with pytest.raises(KeyboardInterrupt):
        session.feed(followed(log, append(log, "two\n"), stop))
    session.close()
    session = open_()
    session.feed(followed(log, append(log, "three\n")))
    assert session.text() + session.tail == "one\ntwo\nthree\n"


def test_files_are_read_once(open_: Open, tmp_path: Path, prose: Callable[..., str]) -> None:
    texts = {name: prose(40, seed=n) + "\n" for n, name in enumerate("abc")}
    paths = {name: tmp_path / f"{name}.txt" for name in texts}
    for name, text in texts.items():
        paths[name].write_text(text, encoding="utf-8")
    (tmp_path / "between").write_text("--\n", encoding="utf-8")
    between = Between(tmp_path / "between")
    session = open_()
    report = session.feed(paths["a"], between, paths["b"], once=True)
    assert report.skipped_bytes == 0 and report.tokens > 0
    whole = session.text() + session.tail
    assert whole == texts["a"] + "--\n" + texts["b"]
    saved = session.saved
    session.feed(paths["a"], between, paths["b"], once=True)
    assert session.saved == saved  # not even a snapshot
    list(session.generate(max_tokens=2, seed=1))
    session.close()

    session = open_()
    at = session.position
    append(paths["b"], "grown\n")()
    # `c` and what `b` has grown by are new; `a` is known by its content, whatever its name.
    paths["a"] = paths["a"].rename(tmp_path / "z.txt")
    session.feed(paths["a"], between, paths["b"], between, paths["c"], once=True)
    read = session.text(at) + session.tail
    assert read.endswith("grown\n--\n" + texts["c"]) and texts["a"] not in read
    at = session.position
    session.feed(paths["c"])  # without `once` a file is read again
    assert (session.text(at) + session.tail).endswith(texts["c"])
    with pytest.raises(ValueError, match="once = True with text; allowed: with files"):
        session.feed("text", once=True)


def test_an_interrupted_call_reads_once(
    open_: Open, tmp_path: Path, prose: Callable[..., str]
) -> None:
    """Killed anywhere and called again, also when it had ended: the same state."""
    files = [tmp_path / f"{n}.txt" for n in range(4)]
    for n, file in enumerate(files):
        file.write_text(prose(30, seed=n % 3), encoding="utf-8")  # the last equals the first
    session = open_("whole", seed=1)
    session.feed(*files, once=True)
    wanted = facts(session)[1:3], session.text()

    class Killed(Exception):
        pass

    n = 0
    while True:
        n += 1
        session, blocks = open_("cut", seed=1, save_every=16), 0

        def progress(_: object, n: int = n) -> None:
            nonlocal blocks
            blocks += 1
            if blocks == n:
                raise Killed

        try:
            session.feed(*files, once=True, block_bytes=100, progress=progress)
        except Killed:
            session.live.closed = True  # without a last save
            session.live.require_store("close").close()
            continue
        break
    assert n > 2
    assert (facts(session)[1:3], session.text()) == wanted
    before = facts(session)
    session.feed(*files, once=True)
    assert facts(session) == before


def test_a_forged_record_of_what_was_fed_is_refused(open_: Open, tmp_path: Path) -> None:
    from streamlm.sessions.sources import FeedCursor

    for fed in ("x", [["", 3, 1]], [[3, "a"]], [["a" * 64, 0]], [["a" * 64, True]]):
        with pytest.raises(ValueError, match="not how far a feed has read"):
            FeedCursor.from_json({"fed": fed})
    cursor = FeedCursor(fed=[["a" * 64, 5]])
    assert FeedCursor.from_json(cursor.to_json()) == cursor == cursor.ended
    assert "fed" not in FeedCursor(["x"]).to_json()
