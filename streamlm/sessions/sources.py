"""Sources of text: strings, files by path, file objects and iterators, read in blocks."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Self, TypeAlias, cast

from streamlm.config import MOST, is_whole
from streamlm.sessions.following import Followed

# A str is text, a path is a file; see `as_path`.
Source: TypeAlias = "str | os.PathLike[str] | IO[str] | IO[bytes] | Iterable[str] | Iterable[bytes]"
ALLOWED = "str for text, a pathlib.Path for a file, a file object, an iterator of str or bytes"

MAX_FED = 4096  # entries of `FeedCursor.fed`; the newest stay
BLOCK = 1 << 14  # bytes per block; the model reads a block as a whole or not at all


@dataclass(frozen=True)
class FeedCursor:
    """How far a call of `feed` has read, so that the same call can resume after an interruption.

    Files are recognised by content, not by name: by the sha256 of what was read.

    Attributes:
        done: sha256 of each source read to its end; "" for a source that cannot be read twice.
        n_bytes: bytes read of the current source.
        digest: sha256 of these bytes; "" for a source that cannot be read twice.
        fed: what calls with `once` have read: sha256 and number of bytes of each file, the newest
            last.
    """

    done: list[str] = field(default_factory=list)
    n_bytes: int = 0
    digest: str = ""
    fed: list[list[Any]] = field(default_factory=list)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            TypeError, ValueError: a value is missing, unknown or of another type.
        """
        cursor = cls(**values)
        texts = [*cursor.done, cursor.digest]
        good = isinstance(cursor.done, list) and all(type(text) is str for text in texts)
        good = good and isinstance(cursor.fed, list) and all(map(_is_fed, cursor.fed))
        if not good or not is_whole(cursor.n_bytes) or not 0 <= cursor.n_bytes <= MOST:
            raise ValueError(f"{str(values)[:200]}: not how far a feed has read")
        return cursor

    def to_json(self) -> dict[str, object]:
        values = {"done": self.done, "n_bytes": self.n_bytes, "digest": self.digest}
        return values | ({"fed": self.fed} if self.fed else {})

    @property
    def ended(self) -> "FeedCursor | None":
        """What is left of the cursor once its call has ended."""
        return FeedCursor(fed=self.fed) if self.fed else None


def _is_fed(entry: Any) -> bool:
    """Whether a value is an entry of `FeedCursor.fed`."""
    whole = isinstance(entry, list) and len(entry) == 2 and is_whole(entry[1])
    return whole and type(entry[0]) is str and 0 < entry[1] <= MOST


class SkippedInput:
    """A stream of bytes behind its first `skipped_bytes`, which are read and dropped.

    Raises:
        ValueError: the stream is shorter.
    """

    def __init__(self, stream: IO[bytes], skipped_bytes: int) -> None:
        self.name = getattr(stream, "name", "stream")
        self.skipped_bytes = skipped_bytes
        self._read = getattr(stream, "read1", None) or stream.read
        left = skipped_bytes
        while left:
            block = self._read(min(left, 1 << 20))
            if not block:
                raise ValueError(
                    f"{skipped_bytes:,} bytes to skip, but {self.name} ends after "
                    f"{skipped_bytes - left:,}; allowed: at most as many as it has"
                )
            left -= len(block)

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`, as soon as there are some."""
        block: bytes = self._read(size)
        return block


class Between(os.PathLike[str]):
    """A file with what is read between two others; with `once`, only if the second one is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


class OpenSource:
    """One opened source; iterating yields its blocks.

    Attributes:
        name: for messages and progress.
        size: bytes, None if unknown.
        n_bytes: bytes yielded or skipped so far.
        is_separator: whether it is what comes between two files.
        skipped, skipped_digest: bytes that `seek_behind` or `seek` has skipped, and their sha256.
    """

    def __init__(self, source: Source, *, block_bytes: int | None = None) -> None:
        self.n_bytes = 0
        self._block = BLOCK if block_bytes is None else block_bytes
        self.size: int | None = None
        self._sha = hashlib.sha256()
        self._path = as_path(source)
        self._source = source
        self.is_separator = isinstance(source, Between)
        self.skipped, self.skipped_digest = 0, ""  # by `seek_behind`, or by `seek` of such a call
        self._followed = source if isinstance(source, Followed) else None
        if self._path is not None:
            _check_file(self._path)
            self.name, self.size = str(self._path), self._path.stat().st_size
        elif isinstance(source, str):
            self.name, self.size = "text", len(source.encode("utf-8", "surrogatepass"))
        else:
            self.name = str(getattr(source, "name", type(source).__name__))
            self.n_bytes = int(getattr(source, "skipped_bytes", 0))

    @property
    def is_file(self) -> bool:
        return self._path is not None

    @property
    def follows(self) -> bool:
        """Whether it is a file that grows."""
        return self._followed is not None

    @property
    def waits(self) -> bool:
        """Whether the next block may take as long as somebody takes to write it."""
        return self._followed is not None or not isinstance(self._source, (str, os.PathLike))

    @property
    def ends_whole(self) -> bool:
        """Whether its end is known to be that of a text, which no character may be cut by."""
        return self._path is not None and self._followed is None

    @property
    def digest(self) -> str:
        """sha256 of the bytes yielded; "" for a source that cannot be read twice."""
        return self._sha.hexdigest() if self._path is not None else ""

    def seek(self, cursor: FeedCursor) -> bool:
        """Skip what `cursor` has read; False, at the beginning, if this is not the file it read."""
        if self._path is None:  # perhaps another process skipped it
            return bool(self.n_bytes) and (self.n_bytes, "") == (cursor.n_bytes, cursor.digest)
        if not cursor.n_bytes:
            return False
        with open(self._path, "rb") as file:
            sha, left = hashlib.sha256(), cursor.n_bytes
            while left and (block := file.read(min(left, 1 << 20))):
                sha.update(block)
                left -= len(block)
        if left or sha.hexdigest() != cursor.digest:
            return False
        self._sha, self.n_bytes = sha, cursor.n_bytes
        self.skipped, self.skipped_digest = self.n_bytes, self.digest
        return True

    def seek_behind(self, fed: list[list[Any]]) -> None:
        """Skip the longest beginning that is among what was fed, and take it from the list."""
        if self._path is None or not fed:
            return
        size = self._path.stat().st_size
        sizes = sorted({n for _, n in fed if n <= size})
        sha, at, found = hashlib.sha256(), 0, None
        with open(self._path, "rb") as file:
            for end in sizes:
                while at < end and (block := file.read(min(end - at, 1 << 20))):
                    sha.update(block)
                    at += len(block)
                if at == end and [sha.hexdigest(), end] in fed:
                    found = sha.copy(), end
        if found is not None:
            self._sha, self.n_bytes = found
            self.skipped, self.skipped_digest = self.n_bytes, self.digest
            fed.remove([self.digest, self.n_bytes])

    def skip(self) -> None:
        """Skip all of a file."""
        self.n_bytes = self.size or 0

    def whole_digest(self) -> str:
        """sha256 of the whole file; "" for other sources."""
        if self._path is None:
            return ""
        with open(self._path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def __iter__(self) -> Iterator[str | bytes]:
        for block in self._blocks():
            data = block.encode("utf-8", "surrogatepass") if isinstance(block, str) else block
            self.n_bytes += len(data)
            if self._path is not None:
                self._sha.update(data)
            yield block

    def _followed_blocks(self, followed: Followed) -> Iterator[bytes]:
        cut = b""
        for data in followed.blocks(self.n_bytes, self._block):
            if data is None:
                if cut:
                    yield cut
                cut, self.n_bytes, self._sha = b"", 0, hashlib.sha256()
                continue
            block, cut = whole_characters(cut + data)
            if block:
                yield block

    def _blocks(self) -> Iterator[str | bytes]:
        source = self._source
        if self._followed is not None:
            yield from self._followed_blocks(self._followed)
        elif self._path is not None:
            with open(self._path, "rb") as file:
                file.seek(self.n_bytes)
                cut = b""
                while data := file.read(self._block):
                    block, cut = whole_characters(cut + data)
                    if block:
                        yield block
                if cut:
                    yield cut
        elif isinstance(source, str):
            for start in range(0, len(source), self._block):
                yield source[start : start + self._block]
        elif hasattr(source, "read"):
            # `read1` does not wait for a full block: text is read from a pipe as it arrives.
            read = getattr(source, "read1", None) or source.read
            while block := read(self._block):
                yield block
        else:
            for piece in cast(Iterable[object], source):
                if not isinstance(piece, (str, bytes)):
                    raise TypeError(
                        f"the iterator yielded {type(piece).__name__}; allowed: str or bytes"
                    )
                for start in range(0, len(piece), self._block):
                    yield piece[start : start + self._block]


def whole_characters(data: bytes) -> tuple[bytes, bytes]:
    """Split UTF-8 before an incomplete character at its end.

    No block ends within a character, as other text may follow an interruption between two blocks.
    """
    for n in range(1, min(3, len(data)) + 1):
        lead = data[-n]
        if lead >= 0xC0:  # the lead byte of a character of two to four bytes
            size = 2 + (lead >= 0xE0) + (lead >= 0xF0)
            return (data[:-n], data[-n:]) if n < size else (data, b"")
        if lead < 0x80:
            break
    return data, b""


def resume_sources(cursor: FeedCursor | None, opened: list[OpenSource]) -> FeedCursor:
    """Skip what an interrupted call of `feed` has read of the same sources.

    Returns:
        `cursor`; or a new one, with all sources at their beginnings, if they are other sources.
    """
    if cursor is None or len(cursor.done) >= len(opened):
        return FeedCursor()
    finished = opened[: len(cursor.done)]
    if not all(
        digest and source.whole_digest() == digest
        for source, digest in zip(finished, cursor.done, strict=True)
    ):
        return FeedCursor()
    if cursor.n_bytes and not opened[len(cursor.done)].seek(cursor):
        return FeedCursor()
    for source in finished:
        source.n_bytes = source.size or 0
    return replace(cursor, done=list(cursor.done))


def as_path(source: Source) -> Path | None:
    """The path of a file, or None if the source is text or a stream.

    A `Path`, or any other `os.PathLike`, is a file. A `str` is always text, even if a file has this
    name.

    Raises:
        TypeError: the source is of another type.
    """
    if isinstance(source, os.PathLike):
        return Path(os.fsdecode(source))
    if isinstance(cast(object, source), (bytes, bytearray)):
        raise TypeError(f"{type(source).__name__} given; allowed: {ALLOWED}")
    if isinstance(source, str) or hasattr(source, "read") or isinstance(source, Iterable):
        return None
    raise TypeError(f"{type(source).__name__} given; allowed: {ALLOWED}")


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; allowed: a file, or several by name")
    if not path.exists():
        raise FileNotFoundError(f"no file {str(path)!r}")
    with open(path, "rb"):  # report unreadable files before anything is read
        pass
