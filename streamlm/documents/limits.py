"""Which files are documents, and how much of one is read."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["html", "epub", "pdf"]

KINDS: dict[str, Kind] = {
    ".htm": "html",
    ".html": "html",
    ".xhtml": "html",
    ".epub": "epub",
    ".pdf": "pdf",
}


@dataclass(frozen=True)
class Limits:
    """How much a document may hold, and what reading it may take.

    Attributes:
        file: bytes of the file; unpacked: bytes of all that is decompressed from it.
        text: characters of its text.
        parts: chapters of an EPUB, pages of a PDF; members: files in an EPUB.
        seconds: of time, and of one processor; memory: bytes of address space.
    """

    file: int = 100_000_000
    unpacked: int = 400_000_000
    text: int = 40_000_000
    parts: int = 10_000
    members: int = 50_000
    seconds: int = 120
    memory: int = 2_000_000_000


class DocumentError(ValueError):
    """A document cannot be read; the message says why, and goes after the document's name."""
