"""Text extraction from uploaded files, none of which are trusted.

Names are never used as paths, sizes are counted while decompressing, and binary data is refused.
HTML is parsed by beautifulsoup4, which accepts what browsers accept and runs nothing; PDF by pypdf,
which is pure Python and maintained. EPUB is a ZIP of XHTML, read with the standard library and
beautifulsoup4: a reader that decompresses by itself would decompress bombs too.
"""

import codecs
import posixpath
import re
import warnings
import zipfile
from pathlib import Path
from urllib.parse import unquote

MAX_FILE = 10 * 1000 * 1000  # bytes of a file to read
MAX_SESSION = 100 * 1000 * 1000  # bytes of a session to import, and of any upload
MAX_TEXT = 4 * 1000 * 1000  # characters of extracted text
MAX_UNPACKED = 40 * 1000 * 1000  # bytes of a decompressed EPUB
MAX_PARTS = 2000  # chapters of an EPUB, pages of a PDF
KINDS = (".txt", ".md", ".html", ".htm", ".epub", ".pdf")
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")


def extract_text(path: str | Path, name: str) -> str:
    """Extract the text of an uploaded file.

    Args:
        path: the uploaded data; name: the visitor's name for it, which determines its format.

    Raises:
        ValueError: unknown format, too large, corrupt, or without text; says what is allowed.
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
    data = path.read_bytes()
    if kind == ".epub":
        text = _epub(path, shown)
    elif kind == ".pdf":
        text = _pdf(path, shown)
    elif kind in (".html", ".htm"):
        text = _html(data)
    else:
        text = _plain(data, shown)
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


def _html(data: bytes) -> str:
    """The visible text of a page, one block per paragraph; no scripts or styles."""
    from bs4 import BeautifulSoup

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XHTML is deliberately parsed as HTML
        page = BeautifulSoup(data, "html.parser")
    for tag in page(["script", "style", "noscript", "template", "svg", "head"]):
        tag.decompose()
    for tag in page(["p", "div", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote"]):
        tag.append("\n\n")
    for tag in page("br"):
        tag.replace_with("\n")
    lines = (" ".join(line.split()) for line in page.get_text().splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _epub(path: Path, shown: str) -> str:
    from bs4 import BeautifulSoup

    def parsed(data: bytes) -> BeautifulSoup:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return BeautifulSoup(data, "html.parser")  # expands no entities

    try:
        with zipfile.ZipFile(path) as archive:
            unpack = _Unpack(archive, shown)
            container = parsed(unpack("META-INF/container.xml"))
            root = str(container.find_all("rootfile")[0]["full-path"])
            package = parsed(unpack(root))
            hrefs = {str(item["id"]): str(item["href"]) for item in package.find_all("item")}
            spine = [str(item["idref"]) for item in package.find_all("itemref")]
            folder = posixpath.dirname(root)
            names = [posixpath.normpath(posixpath.join(folder, unquote(hrefs[i]))) for i in spine]
            if len(names) > MAX_PARTS:
                raise ValueError(f"{shown} has {len(names)} parts; allowed: at most {MAX_PARTS}")
            return "\n\n".join(_html(unpack(name)) for name in names)
    except (zipfile.BadZipFile, LookupError, TypeError, EOFError, OSError, NotImplementedError,
            RuntimeError) as error:  # fmt: skip
        raise ValueError(f"{shown} is not a valid EPUB ({error!r})") from None


class _Unpack:
    """Decompresses parts of an archive up to a total; recorded sizes are not trusted."""

    def __init__(self, archive: zipfile.ZipFile, shown: str) -> None:
        self._archive, self._shown, self._left = archive, shown, MAX_UNPACKED

    def __call__(self, name: str) -> bytes:
        with self._archive.open(name) as file:
            data = file.read(self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(
                f"{self._shown} decompresses to more than {MAX_UNPACKED / 1e6:.0f} MB; "
                "allowed: less"
            )
        return data


def _pdf(path: Path, shown: str) -> str:
    import logging

    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # errors are reported below
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise ValueError(f"{shown} is encrypted; allowed: PDFs without a password")
        if len(reader.pages) > MAX_PARTS:
            raise ValueError(f"{shown} has {len(reader.pages)} pages; allowed: at most {MAX_PARTS}")
        texts, n = [], 0
        for page in reader.pages:
            texts.append(page.extract_text())
            n += len(texts[-1])
            if n > MAX_TEXT:
                break
        return "\n\n".join(texts)
    except ValueError as error:
        if str(error).startswith(shown):
            raise
        raise ValueError(f"{shown} is not a valid PDF ({error})") from None
    except (PyPdfError, KeyError, TypeError, AttributeError, IndexError, OSError, RecursionError,
            ArithmeticError) as error:  # fmt: skip
        raise ValueError(f"{shown} is not a valid PDF ({error})") from None
