"""The visible text of an HTML page, a paragraph a line."""

import codecs
import re

from streamlm.documents.limits import DocumentError
from streamlm.documents.markup import Tag, pieces


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Elements whose content is not shown as text, beside those that hold no markup.
HIDDEN = frozenset({"noscript", "template", "svg", "math", "select", "datalist"})
BLOCKS = _names(
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset "
    "figcaption figure footer form h1 h2 h3 h4 h5 h6 header hr li main menu nav ol optgroup option "
    "p pre section summary table tbody tfoot thead tr ul"
)
CELLS = ("td", "th")
SPACE = re.compile(r"\s+")
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
DECLARED = re.compile(
    rb"""(?:charset|encoding)\s{0,9}=\s{0,9}["']?\s{0,9}([A-Za-z0-9_:.-]{1,40})"""
)
# Encodings of the WHATWG's standard that Python knows. Others would let a page choose a codec that
# is slow or no encoding of text.
ENCODINGS = _names(
    "utf-8 cp866 iso8859-1 iso8859-2 iso8859-3 iso8859-4 iso8859-5 iso8859-6 iso8859-7 iso8859-8 "
    "iso8859-10 iso8859-13 iso8859-14 iso8859-15 iso8859-16 koi8-r koi8-u mac-roman cp874 cp1250 "
    "cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 mac-cyrillic gbk gb2312 gb18030 big5 "
    "euc_jp iso2022_jp shift_jis euc_kr ascii"
)
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
DECLARATIONS = 4096  # bytes in which an encoding is declared


def html_text(data: bytes, *, most: int, xml: bool | None = None) -> str:
    """The text of a page: paragraphs between empty lines, without scripts and styles.

    Args:
        most: characters of text.
        xml: whether it is XHTML; None to look for an XML declaration.

    Raises:
        DocumentError: it has more text.
    """
    if xml is None:
        xml = data[:200].removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<?xml")
    out: list[str] = []
    length, preformatted = 0, 0
    within, depth = "", 0  # the hidden element that text is in, and how many of its name
    for piece in pieces(decoded(data), xml=xml):
        if not isinstance(piece, Tag):
            if not within:
                out.append(piece if preformatted else SPACE.sub(" ", piece))
                length += len(out[-1])
                if length > most:
                    raise DocumentError(f"has more than {most:,} characters; allowed: no more")
            continue
        name = piece.name
        step = 0 if piece.empty else -1 if piece.closes else 1
        if within:
            depth += step * (name == within)
            within = within if depth else ""
        elif name in HIDDEN:
            within, depth = (name, 1) if step > 0 else ("", 0)
        elif name in BLOCKS:
            preformatted = max(0, preformatted + step * (name == "pre"))
            if not out or out[-1] != "\n\n":
                out.append("\n\n")
        elif name in ("br", *CELLS):
            out.append("\n" if name == "br" else " ")
    return tidy("".join(out))


def tidy(text: str) -> str:
    """Text without spaces at the ends of lines, without repeated empty lines or controls."""
    lines = (" ".join(line.split()) for line in CONTROL.sub("\ufffd", text).splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def decoded(data: bytes) -> str:
    """A page as text: as its mark or declaration says, else UTF-8, else Windows-1252."""
    for mark, name in MARKS.items():
        if data.startswith(mark):
            return data[len(mark) :].decode(name, "replace")
    if declared := DECLARED.search(data[:DECLARATIONS]):
        found = _encoding(declared[1].decode("ascii"))
        if found is not None:
            return data.decode(found, "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _encoding(label: str) -> str | None:
    """Python's name of an encoding that a page may declare; None for others."""
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return None
    if name in ("iso8859-1", "ascii"):
        return "cp1252"  # which browsers take for both
    return name if name in ENCODINGS else None
