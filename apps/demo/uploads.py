"""Text extraction from uploaded files, none of which are trusted.

Names are never used as paths, and binary data is refused. Documents are read by processes of their
own, a few at a time, which are killed where they take too much time or memory.
"""

import codecs
import posixpath
import re
import threading
from pathlib import Path

from streamlm.documents import KINDS as DOCUMENTS
from streamlm.documents import Limits, document_text

MAX_FILE = 10 * 1000 * 1000  # bytes of a file to read
MAX_SESSION = 100 * 1000 * 1000  # bytes of a session to import, and of any upload
MAX_TEXT = 4 * 1000 * 1000  # characters of extracted text
LIMITS = Limits(
    file=MAX_FILE,
    unpacked=40 * 1000 * 1000,
    text=MAX_TEXT,
    parts=2000,
    members=5000,
    seconds=30,
    memory=1000 * 1000 * 1000,
)
AT_ONCE = threading.BoundedSemaphore(2)  # processes that read documents
PATIENCE = 60.0  # seconds that a document may wait for them
KINDS = (".txt", ".md", *DOCUMENTS)
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")


def extract_text(path: str | Path, name: str) -> str:
    """Extract the text of an uploaded file.

    Args:
        path: the uploaded data; name: the visitor's name for it, which determines its format.

    Raises:
        ValueError: unknown format, too large, corrupt, too slow to read, or without text;
            says what is allowed.
    """
    path, shown = Path(path), display_name(name)
    kind = posixpath.splitext(shown)[1].lower()
    if kind not in KINDS:
        raise ValueError(f"{shown} has an unsupported format; allowed: {', '.join(KINDS)}")
    size = path.stat().st_size
    if size > MAX_FILE:
        raise ValueError(
            f"{shown} has {size / 1e6:.1f} MB; allowed: at most {MAX_FILE / 1e6:.0f} MB"
        )
    if kind in DOCUMENTS:
        if not AT_ONCE.acquire(timeout=PATIENCE):
            raise ValueError("Other documents are being opened. Try again in a minute.")
        try:
            text = document_text(path, kind=DOCUMENTS[kind], shown=shown, limits=LIMITS)
        finally:
            AT_ONCE.release()
    else:
        text = _plain(path.read_bytes(), shown)
    if not text.strip():
        raise ValueError(f"{shown} contains no text; allowed: files with text, not only images")
    return checked(text, shown)


def checked(text: str, shown: str) -> str:
    """Return a text unchanged after checking it.

    Args:
        shown: its name in error messages.

    Raises:
        ValueError: too long, or with control characters.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"{shown} has {len(text):,} characters; allowed: at most {MAX_TEXT:,}")
    if found := CONTROL.search(text):
        raise ValueError(
            f"{shown} looks binary: it contains the control character {ord(found[0]):#04x}; "
            "allowed: text"
        )
    return text


def display_name(name: str) -> str:
    """The last part of a file name, printable and short: never a path."""
    last = re.split(r"[/\\]", name)[-1]
    clean = "".join(c if c.isprintable() else "?" for c in last).strip()
    stem, kind = posixpath.splitext(clean)
    return (stem[:60] + kind[:10]) or "file"


def _plain(data: bytes, shown: str) -> str:
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{shown} is not UTF-8 text: {error.reason} at byte {error.start:,}; allowed: UTF-8"
        ) from None
