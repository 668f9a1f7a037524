"""Sources: paths and text, their blocks, and resuming an interrupted feed."""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from streamlm.sessions.sources import FeedCursor, OpenSource, Source, as_path, resume_sources


def as_bytes(blocks: Iterable[str | bytes]) -> bytes:
    return b"".join(
        block.encode("utf-8", "surrogatepass") if isinstance(block, str) else block
        for block in blocks
    )


# -- path or text -----------------------------------------------------------------------------


TEXTS = [
    *("", "Hello", "Call me Ishmael.", "Hello.", "3.14", "e.g", "e.g.", "what?", "wait..."),
    *("and/or", "see moby.txt", "either/or not", "first\nmoby.txt", "moby.txt\n", "nul\0.txt"),
    *("moby.txt", "books/moby", "./moby", "/no/such/moby.txt", "~/moby.md", "main.c", "."),
    *("x" * 3000, "y/" * 3000, "\ud800", "héllo", "漢字かな交じり文"),
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_str_is_text(text: str) -> None:
    source = OpenSource(text)
    assert as_path(text) is None and not source.is_file and source.name == "text"
    assert as_bytes(source) == text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("name", ["two words", "moby.txt", "folder/moby.txt", "folder"])
def test_a_str_is_text_even_where_a_file_has_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for path in ("two words", "moby.txt", "folder/moby.txt"):
        Path(path).write_text("content")
    for text in (name, str(tmp_path / name)):
        assert as_bytes(OpenSource(text)) == text.encode()


class Named:
    """A path that is not of pathlib."""

    def __init__(self, path: Path, kind: type[str] | type[bytes]) -> None:
        self._path, self._kind = path, kind

    def __fspath__(self) -> Any:
        return str(self._path) if self._kind is str else os.fsencode(self._path)


@pytest.mark.parametrize("kind", [str, bytes])
def test_any_path_like_object_is_a_file(kind: Any, tmp_path: Path) -> None:
    (tmp_path / "two words").write_text("content")
    source = OpenSource(Named(tmp_path / "two words", kind))
    assert source.is_file and as_bytes(source) == b"content"
    assert source.name == str(tmp_path / "two words")
    with pytest.raises(FileNotFoundError, match=r"no file .*missing"):
        OpenSource(Named(tmp_path / "missing", kind))


@pytest.mark.parametrize("source", [b"bytes", bytearray(b"bytes"), 3, None, 2.5])
def test_other_types_are_refused(source: Any) -> None:
    with pytest.raises(TypeError, match=r"given; allowed: .*str.*Path.*file object.*iterator"):
        OpenSource(source)


def test_files_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*missing"):
        OpenSource(tmp_path / "missing")
    with pytest.raises(IsADirectoryError, match="is a directory; allowed"):
        OpenSource(tmp_path)


def test_an_unreadable_file_is_reported() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "secret.txt"
        path.write_text("secret")
        path.chmod(0)
        Path(folder).chmod(0o755)
        user = os.geteuid()
        if user == 0:  # root may read everything
            os.seteuid(65534)
        try:
            with pytest.raises(PermissionError, match=r"secret\.txt"):
                OpenSource(path)
        finally:
            os.seteuid(user)


# -- blocks -----------------------------------------------------------------------------------

TEXT = "Naïve — 漢字 🐋\r\n\n" * 40
DATA = TEXT.encode()

KINDS: dict[str, Callable[[Path], Any]] = {
    "str": lambda path: TEXT,
    "Path": lambda path: path,
    "text file": lambda path: open(path, encoding="utf-8", newline=""),  # noqa: SIM115
    "binary file": lambda path: open(path, "rb"),  # noqa: SIM115
    "unbuffered file": lambda path: open(path, "rb", buffering=0),  # noqa: SIM115
    "StringIO": lambda path: io.StringIO(TEXT, newline=""),
    "BytesIO": lambda path: io.BytesIO(DATA),
    "list of str": lambda path: [TEXT[:50], "", TEXT[50:]],
    "iterator of bytes": lambda path: iter([DATA[:6], b"", DATA[6:9], DATA[9:]]),
    "iterator of both": lambda path: iter([TEXT[:50], TEXT[50:].encode()]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_is_read_in_small_blocks(
    kind: str, tmp_path: Path, small_blocks: int
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(DATA)
    given = KINDS[kind](path)
    source = OpenSource(given)
    blocks = list(source)
    if isinstance(given, io.IOBase):
        given.close()
    assert as_bytes(blocks) == DATA
    assert max(map(len, blocks)) <= small_blocks + 3 and len(blocks) > 2
    assert source.n_bytes == len(DATA)
    if kind == "Path":
        assert source.is_file and source.size == source.n_bytes
        assert source.digest == source.whole_digest() == hashlib.sha256(DATA).hexdigest()
    else:  # cannot be read twice, so it cannot resume
        assert not source.is_file and source.digest == source.whole_digest() == ""
        assert source.size == (source.n_bytes if kind == "str" else None)


def test_blocks_of_files_end_at_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    texts = ["é", "漢字漢字", "🐋🐋🐋", "a🐋é漢b", "plain", "\n" * 9]
    for size in range(1, 6):
        monkeypatch.setattr("streamlm.sessions.sources.BLOCK", size)
        for text in texts:
            path.write_text(text, encoding="utf-8", newline="")
            blocks = list(OpenSource(path))
            assert "".join(block.decode() for block in blocks) == text
            assert max(map(len, blocks)) <= size + 3
        # Only the file's end may be an incomplete character, in a block of its own.
        path.write_bytes("ab🐋".encode()[:-1])
        *whole, last = OpenSource(path)
        assert b"".join(whole) == b"ab" and last == "🐋".encode()[:-1]
        # Invalid UTF-8 is passed through.
        for data in (b"\x80" * 9, b"\xc3\xc3\xff\xf0a\xf0", bytes(range(256))):
            path.write_bytes(data)
            assert b"".join(OpenSource(path)) == data


def test_messages_name_the_source(tmp_path: Path) -> None:
    path = tmp_path / "moby.txt"
    path.write_text("x")
    assert OpenSource(path).name == str(path)
    assert OpenSource("some words").name == "text"
    with open(path, "rb") as file:
        assert OpenSource(file).name == str(path)
    assert OpenSource([]).name == "list"


def test_a_pipe_is_read_as_text_arrives() -> None:
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as reader, open(write_end, "wb", buffering=0) as writer:
        blocks = iter(OpenSource(reader))
        for line in (b"first line\n", b"second\n"):
            writer.write(line)
            assert next(blocks) == line  # before the writer has closed it
        writer.close()
        assert list(blocks) == []


def test_an_iterator_of_other_types_is_refused() -> None:
    blocks = iter(OpenSource(["one", 2, "three"]))  # type: ignore[list-item]
    assert next(blocks) == "one"
    with pytest.raises(TypeError, match="the iterator yielded int; allowed: str or bytes"):
        next(blocks)


# -- resuming ---------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, small_blocks: int) -> list[Path]:
    """Three files of four blocks each."""
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode() * (4 * small_blocks))
    return paths


def interrupted(files: list[Path], n_done: int, n_blocks: int) -> FeedCursor:
    """The cursor after some whole files and some blocks of the next."""
    done = [OpenSource(path).whole_digest() for path in files[:n_done]]
    if not n_blocks:
        return FeedCursor(done)
    source = OpenSource(files[n_done])
    list(islice(source, n_blocks))
    return FeedCursor(done, source.n_bytes, source.digest)


@pytest.mark.parametrize("n_done", [0, 1, 2])
@pytest.mark.parametrize("n_blocks", [0, 1, 3, 4])
def test_the_same_files_resume(files: list[Path], n_done: int, n_blocks: int) -> None:
    old = interrupted(files, n_done, n_blocks)
    opened = [OpenSource(path) for path in files]
    new = resume_sources(old, opened)
    assert new == old and new is not old and new.done is not old.done
    rest = as_bytes(block for source in opened[n_done:] for block in source)
    whole = b"".join(path.read_bytes() for path in files)
    n_read = sum(path.stat().st_size for path in files[:n_done]) + old.n_bytes
    assert rest == whole[n_read:]
    assert sum(source.n_bytes for source in opened) == len(whole)
    assert [source.digest for source in opened[n_done:]] == [
        source.whole_digest() for source in opened[n_done:]
    ]


def test_a_cursor_survives_json(files: list[Path]) -> None:
    reading = interrupted(files, 1, 2)
    assert FeedCursor(**reading.to_json()) == reading  # type: ignore[arg-type]


def test_files_are_recognised_by_content(files: list[Path]) -> None:
    old = interrupted(files, 1, 2)
    for path in files:
        path.rename(path.with_suffix(".moved"))
    opened = [OpenSource(path.with_suffix(".moved")) for path in files]
    assert resume_sources(old, opened) == old


def test_a_longer_file_resumes(files: list[Path]) -> None:
    old = interrupted(files, 1, 2)
    with open(files[1], "ab") as log:
        log.write(b"more")
    opened = [OpenSource(path) for path in files]
    assert resume_sources(old, opened) == old
    assert as_bytes(opened[1]) == files[1].read_bytes()[old.n_bytes :]


def shrink(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def change(path: Path) -> None:
    path.write_bytes(b"X" + path.read_bytes()[1:])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize(
    ("index", "edit"), [(0, shrink), (0, change), (0, grow), (1, shrink), (1, change)]
)
def test_other_content_starts_over(
    files: list[Path], index: int, edit: Callable[[Path], None]
) -> None:
    old = interrupted(files, 1, 2)
    edit(files[index])
    opened = [OpenSource(path) for path in files]
    assert resume_sources(old, opened) == FeedCursor()
    assert [source.n_bytes for source in opened] == [0, 0, 0]
    assert as_bytes(opened[1]) == files[1].read_bytes()


def test_other_sources_start_over(files: list[Path]) -> None:
    old = interrupted(files, 1, 2)
    a, b, c = files
    others: list[list[Source]] = [[b], [a], [b, a], [c, b], [a, "some words"], [["text"], b]]
    for sources in others:
        opened = [OpenSource(source) for source in sources]
        assert resume_sources(old, opened) == FeedCursor(), sources
        assert not any(source.n_bytes for source in opened)
    assert resume_sources(None, [OpenSource(a)]) == FeedCursor()


def test_streams_before_a_file_are_never_skipped(files: list[Path]) -> None:
    old = FeedCursor(["", OpenSource(files[0]).whole_digest()], 0, "")
    opened = [OpenSource(["text"]), *map(OpenSource, files)]
    assert resume_sources(old, opened) == FeedCursor()
