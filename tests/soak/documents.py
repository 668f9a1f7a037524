"""Documents that nobody should send, by kind: each a name and the bytes."""

import io
import random
import zipfile
import zlib
from collections.abc import Callable

from tests.support.archives import epub
from tests.support.pdfs import pdf

PAGE = b"<html><head><title>t</title></head><body><p>Call me Ishmael.</p></body></html>"


def _flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 4, 30))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _zip_of_nothing() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("META-INF/container.xml", b"<container/>")
    return made.getvalue()


def _sound(chance: random.Random) -> tuple[str, bytes]:
    return chance.choice(
        [
            ("a.html", PAGE),
            ("a.epub", epub({"1.x": b"<p>Call me Ishmael.", "2.x": b"<p>Some years ago."})),
            ("a.pdf", pdf("Call me Ishmael.")),
        ]
    )


def _damaged(chance: random.Random) -> tuple[str, bytes]:
    name, data = _sound(chance)
    return name, _flipped(data, chance)


def _cut(chance: random.Random) -> tuple[str, bytes]:
    name, data = _sound(chance)
    return name, data[: chance.randrange(1, len(data))]


def _swapped(chance: random.Random) -> tuple[str, bytes]:
    name, _ = _sound(chance)
    _, data = _sound(chance)
    return name, data


DOCUMENTS: dict[str, Callable[[random.Random], tuple[str, bytes]]] = {
    "a sound one": _sound,
    "a damaged one": _damaged,
    "one that is cut off": _cut,
    "one of another kind": _swapped,
    "nested elements": lambda chance: ("a.html", b"<div>" * chance.randrange(1, 20_000) + b"x"),
    "attributes": lambda chance: ("a.html", b"<p" + b" a='" * chance.randrange(1, 20_000)),
    "comments": lambda chance: ("a.xhtml", b"<!--" * chance.randrange(1, 20_000)),
    "references": lambda chance: ("a.htm", b"&#9" * chance.randrange(1, 20_000)),
    "random markup": lambda chance: (
        "a.html",
        b"".join(chance.choices([b"<", b">", b"a", b'"', b"=", b"/", b"!", b"-", b"&"], k=5000)),
    ),
    "random bytes": lambda chance: (
        chance.choice(("a.html", "a.epub", "a.pdf", "a.txt")),
        chance.randbytes(2000),
    ),
    "a filter's bomb": lambda chance: (
        "a.pdf",
        pdf("", filtered=zlib.compress(b" " * chance.randrange(1, 20_000_000))),
    ),
    "a broken filter": lambda chance: ("a.pdf", pdf("", filtered=chance.randbytes(200))),
    "an archive's bomb": lambda chance: (
        "a.epub",
        epub({"1.x": b" " * chance.randrange(1, 60_000_000)}),
    ),
    "an archive of nothing": lambda chance: ("a.epub", _zip_of_nothing()),
}
