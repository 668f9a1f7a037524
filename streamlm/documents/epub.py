"""The text of an EPUB: a ZIP of XHTML, whose chapters a package file lists in reading order."""

import posixpath
import zipfile
import zlib
from pathlib import Path
from urllib.parse import unquote

from streamlm.documents.html_text import decoded, html_text
from streamlm.documents.limits import DocumentError, Limits
from streamlm.documents.markup import Tag, pieces

DAMAGE = (zipfile.BadZipFile, zlib.error, LookupError, EOFError, OSError, NotImplementedError)


def epub_text(path: Path, limits: Limits) -> str:
    """The text of all chapters, with an empty line between two.

    Raises:
        DocumentError: it is damaged, encrypted or too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if len(archive.infolist()) > limits.members:
                raise DocumentError(
                    f"holds {len(archive.infolist()):,} files; allowed: at most {limits.members:,}"
                )
            return _chapters(_Unpack(archive, limits), limits)
    except RuntimeError as error:  # zipfile's, for want of a password
        raise DocumentError(f"is encrypted ({error}); allowed: EPUBs without a password") from None
    except DAMAGE as error:
        raise DocumentError(f"is not a valid EPUB ({error!r})") from None


def _chapters(unpack: "_Unpack", limits: Limits) -> str:
    (root, *_) = _tags(unpack("META-INF/container.xml"), "rootfile")
    place = root["full-path"]
    package = unpack(place)
    hrefs = {item["id"]: item["href"] for item in _tags(package, "item") if "href" in item}
    spine = [item["idref"] for item in _tags(package, "itemref")]
    if len(spine) > limits.parts:
        raise DocumentError(f"has {len(spine):,} parts; allowed: at most {limits.parts:,}")
    folder, texts, left = posixpath.dirname(place), list[str](), limits.text
    for id in spine:
        name = posixpath.normpath(posixpath.join(folder, unquote(hrefs[id])))
        texts.append(html_text(unpack(name), most=limits.text, xml=True))
        left -= len(texts[-1])
        if left < 0:
            raise DocumentError(f"has more than {limits.text:,} characters; allowed: no more")
    return "\n\n".join(texts)


def _tags(data: bytes, name: str) -> list[dict[str, str]]:
    """The attributes of all start tags of a name; entities are not expanded."""
    found = [
        piece.attributes()
        for piece in pieces(decoded(data), xml=True)
        if isinstance(piece, Tag) and piece.name == name and not piece.closes
    ]
    if not found:
        raise LookupError(f"no <{name}>")
    return found


class _Unpack:
    """Decompresses members of an archive up to a total; recorded sizes are not trusted."""

    def __init__(self, archive: zipfile.ZipFile, limits: Limits) -> None:
        self._archive, self._limits, self._left = archive, limits, limits.unpacked

    def __call__(self, name: str) -> bytes:
        with self._archive.open(name) as file:
            data = file.read(self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise DocumentError(
                f"decompresses to more than {self._limits.unpacked / 1e6:.0f} MB; allowed: less"
            )
        return data
