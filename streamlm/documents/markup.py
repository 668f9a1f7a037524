"""Markup taken apart in one pass: time is linear in its length, and no tree is built.

HTML's own rules decide where a tag or a comment ends, so that nothing is looked for twice: what is
not closed extends to the end. Every pattern is possessive and never backtracks.
"""

import html
import re
from collections.abc import Iterator
from typing import NamedTuple

NAME = re.compile(r"[A-Za-z][^\s/>]*+")
# The rest of a tag: a quoted value may hold ">". Without an end, the tag goes on to the end.
REST = re.compile(r"""(?:[^>=]++|=\s*+(?:"[^"]*+"|'[^']*+'|(?!["'])))*+>""")
ATTRIBUTE = re.compile(
    r"""([^\s/>=]++)(?:\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s>"']*+)))?+|[\s/>=]++"""
)
LONG_REFERENCE = re.compile(r"&#(?:\d{8,}+|[xX][0-9A-Fa-f]{7,}+);?")  # no character has so many
# Elements that hold no markup, and where they end.
RAW = {
    name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE)
    for name in ("script", "style", "title", "textarea", "iframe", "noembed", "noframes", "xmp")
}
FOREIGN = ("svg", "math")  # in which HTML knows "/>" too


class Tag(NamedTuple):
    """A start or end tag.

    Attributes:
        name: in lower case, without the prefix of a namespace.
        closes: whether it is an end tag; empty: whether it ends in "/>".
        rest: its attributes as they are written.
    """

    name: str
    closes: bool
    empty: bool
    rest: str

    def attributes(self) -> dict[str, str]:
        """Its attributes by name, in lower case; the first of a name counts."""
        found: dict[str, str] = {}
        for match in ATTRIBUTE.finditer(self.rest):
            if match[1]:
                value = match[2] or match[3] or match[4] or ""
                found.setdefault(match[1].lower(), unescaped(value))
        return found


def unescaped(text: str) -> str:
    """Text with its character references replaced."""
    return html.unescape(LONG_REFERENCE.sub("\ufffd", text)) if "&" in text else text


def pieces(markup: str, *, xml: bool = False) -> Iterator[Tag | str]:
    """The tags of a document and the text between them.

    Comments, declarations, and the content of elements that hold no markup, such as scripts, are
    left out.

    Args:
        xml: whether it is XML, where "/>" ends an element and CDATA is text.
    """
    at, end = 0, len(markup)
    while at < end:
        start = markup.find("<", at)
        start = end if start < 0 else start
        if start > at:
            yield unescaped(markup[at:start])
        at = start
        if at == end:
            return
        after = markup[at + 1 : at + 2]
        closes = after == "/"
        name = NAME.match(markup, at + 1 + closes)
        if name is None:
            at, text = _other(markup, at, after, xml=xml)
            if text:
                yield text
            continue
        rest = REST.match(markup, name.end())
        if rest is None:
            return
        at = rest.end()
        local = name[0].lower().rpartition(":")[2]
        empty = (xml or local in FOREIGN) and rest[0].endswith("/>")
        yield Tag(local, closes, empty, rest[0])
        if local in RAW and not (closes or empty):
            closing = RAW[local].search(markup, at)
            if closing is None:
                return
            at = closing.start()


def _other(markup: str, at: int, after: str, *, xml: bool) -> tuple[int, str]:
    """What a "<" that begins no tag begins: where it ends, and its text."""
    if markup.startswith("<!--", at):
        stop = markup.find("-->", at + 2)  # "<!-->" is a whole comment
        return (stop + 3 if stop >= 0 else len(markup)), ""
    if xml and markup.startswith("<![CDATA[", at):
        stop = markup.find("]]>", at)
        stop = len(markup) if stop < 0 else stop
        return stop + 3, markup[at + 9 : stop]
    if after in ("!", "?", "/"):
        stop = markup.find(">", at)
        return (stop + 1 if stop >= 0 else len(markup)), ""
    return at + 1, "<"
