"""Documents of text files, read and encoded block by block: only one block is in memory.

Files are plain or xz-compressed text; a line that holds only a form feed separates documents.
"""

import codecs
import lzma
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from tokenizer import StreamEncoder, Tokenizer

BLOCK = 1 << 20  # bytes read at a time
SEPARATOR = "\f\n"

# Text of a document, and whether the document ends there. The last block may be empty.
Block: TypeAlias = tuple[str, bool]


def read_documents(path: str | Path) -> Iterator[str]:
    """The documents of a .txt or .xz file, split at lines that hold only a form feed.

    Raises:
        ValueError: the file is damaged or is not UTF-8 text; names it.
    """
    parts: list[str] = []
    for text, ends in document_blocks(path):
        parts.append(text)
        if ends:
            document, parts = "".join(parts), []
            yield document


def document_blocks(path: str | Path) -> Iterator[Block]:
    """The documents of `read_documents` block by block; raises the same errors."""
    held = ""
    for text in _text(Path(path)):
        *whole, rest = (held + text).split(SEPARATOR)
        for document in whole:
            yield document, True
        end = len(rest) - rest.endswith(SEPARATOR[0])  # possibly half a separator
        if end:
            yield rest[:end], False
        held = rest[end:]
    yield held, True


def cut_blocks(blocks: Iterable[Block], n_bytes: int) -> Iterator[Block]:
    """Cut documents at line ends into pieces of at least n bytes, except the last of each."""
    size, held = 0, ""
    for text, ends in blocks:
        text, held = held + text, ""
        if not ends and text.endswith("\r"):  # possibly half of "\r\n"
            text, held = text[:-1], "\r"
        parts: list[str] = []
        lines = text.splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            parts.append(line)
            size += len(line.encode())
            whole = number < len(lines) or line.splitlines()[0] != line
            if whole and size >= n_bytes:
                yield "".join(parts), True
                parts, size = [], 0
        if parts or ends:
            yield "".join(parts), ends
        if ends:
            size = 0


def without_empty(blocks: Iterable[Block]) -> Iterator[Block]:
    """Leave out documents without a character."""
    begun = False
    for text, ends in blocks:
        begun = begun or bool(text)
        if begun:
            yield text, ends
        begun = begun and not ends


def some_documents(blocks: Iterable[Block], first: int, last: int) -> Iterator[Block]:
    """The documents from number `first` up to and excluding `last`; reads no further."""
    index = 0
    for text, ends in blocks:
        if index >= last:
            return
        if index >= first:
            yield text, ends
        index += ends


def encode_documents(
    blocks: Iterable[Block], tokenizer: Tokenizer, tokens: IO[bytes], *, dtype: np.dtype[Any]
) -> tuple[np.ndarray, int, int]:
    """Write the ids of documents to a file, one after another.

    Returns:
        The start of each document and the end of the last one, [n + 1]; the number of UTF-8 bytes;
        the number of runs of non-space characters.
    """
    encoder = StreamEncoder(tokenizer)
    offsets, n_ids, n_bytes, n_words = array("q", [0]), 0, 0, 0
    within = False  # whether the last block ended in a word, which may continue
    for text, ends in blocks:
        encoded = [encoder.encode(text)]
        n_bytes += len(text.encode())
        n_words += len(text.split()) - (within and not text[:1].isspace() and bool(text))
        within = within if not text else not text[-1].isspace()
        if ends:
            encoded.append(encoder.flush())
            within = False
        for ids in encoded:
            tokens.write(ids.astype(dtype).data)
            n_ids += len(ids)
        if ends:
            offsets.append(n_ids)
    return np.array(offsets, dtype=np.int64), n_bytes, n_words


def _text(path: Path) -> Iterator[str]:
    opener: Any = lzma.open if path.suffix == ".xz" else open
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_read, more = 0, True
    with opener(path, "rb") as file:
        while more:
            try:
                data = file.read(BLOCK)
            except (lzma.LZMAError, EOFError) as error:
                raise ValueError(f"{path} is damaged: {error}") from None
            more = bool(data)
            start = n_read - len(decoder.getstate()[0])  # of the bytes not decoded yet
            n_read += len(data)
            try:
                text = decoder.decode(data, final=not more)
            except UnicodeDecodeError as error:
                at = f"{error.reason} at byte {start + error.start:,}"
                raise ValueError(f"{path} is not UTF-8 text: {at}") from None
            if text:
                yield text
