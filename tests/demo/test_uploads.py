"""Text extraction from uploads: supported formats, and hostile files."""

import io
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("pypdf", reason="needs pypdf: pip install 'streamlm[demo]'")

from apps.demo import uploads
from apps.demo.uploads import display_name, extract_text
from tests.support.archives import bomb, epub
from tests.support.pdfs import pdf


def file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "upload"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.txt", "Call me “Ishmael”.\r\n\f".encode(), "Call me “Ishmael”.\r\n\f"),
        ("a.MD", b"\xef\xbb\xbf# Loomings <b>", "# Loomings <b>"),
        (
            "a.html",
            b"<head><title>t</title></head><style>p{}</style><p>Call  me<br>Ishmael.</p>"
            b"<script>alert(1)</script><p>Some &lt;years&gt;</p>",
            "Call me\nIshmael.\n\nSome <years>\n",
        ),
        ("a.epub", epub({"1.x": b"<p>One</p>", "2.x": b"<p>Two</p>"}), "One\n\n\nTwo\n"),
        (
            "a.epub",
            epub({"a b.x": b"<p>One</p>", "2.x": b"<p>Two</p>"}, spine=["2.x", "a b.x"]),
            "Two\n\n\nOne\n",
        ),
        ("a.pdf", pdf("Call me Ishmael."), "Call me Ishmael."),
    ],
)
def test_supported_formats(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    assert extract_text(file(tmp_path, data), name) == expected


ENTITIES = b"""<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<container><rootfiles><rootfile full-path="&b;"/></rootfiles></container>"""


def entities() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("META-INF/container.xml", ENTITIES)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("run.exe", b"MZ", r"run.exe has an unsupported format; allowed: \.txt"),
        ("archive", b"text", "has an unsupported format"),
        ("a.txt", bytes(range(256)), "a.txt is not UTF-8 text: .* at byte 128"),
        ("a.txt", b"ELF\x00\x01\x02", "a.txt looks binary: it contains the control character 0x00"),
        ("a.txt", b"   \n", "a.txt contains no text"),
        ("a.txt", b"a" * 5_000_000, r"a.txt has 5,000,000 characters; allowed: at most 4,000,000"),
        ("a.txt", b"a" * 11_000_000, r"a.txt has 11.0 MB; allowed: at most 10 MB"),
        ("a.epub", b"no archive", "a.epub is not a valid EPUB"),
        ("a.epub", bomb(), "a.epub decompresses to more than 40 MB"),
        ("a.epub", entities(), "a.epub is not a valid EPUB"),
        ("a.epub", epub({"../../../etc/passwd": b"root"})[:-40], "a.epub is not a valid EPUB"),
        ("a.pdf", b"%PDF-1.4 and nothing", "a.pdf is not a valid PDF"),
        ("a.pdf", pdf("x")[:200], "a.pdf is not a valid PDF"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract_text(file(tmp_path, data), name)


def test_recorded_sizes_are_not_trusted(tmp_path: Path) -> None:
    """The archive claims that its parts are small; they are counted while decompressing."""
    data = bytearray(bomb())
    at = 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0:  # each entry of the central directory
        data[at + 24 : at + 28] = (100).to_bytes(4, "little")
        at += 4
    with pytest.raises(ValueError, match=r"a\.epub"):
        extract_text(file(tmp_path, bytes(data)), "a.epub")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd.txt", "passwd.txt"),
        (r"C:\Books\x\moby.txt", "moby.txt"),
        ("<img src=x>.txt", "<img src=x>.txt"),  # escaped where it is displayed
        ("a\nb\x00.txt", "a?b?.txt"),
        ("n" * 500 + ".txt", "n" * 60 + ".txt"),
        ("..", ".."),
        ("", "file"),
    ],
)
def test_display_names_are_short_and_no_paths(name: str, shown: str) -> None:
    assert display_name(name) == shown


def test_limits_agree() -> None:
    limits = uploads.LIMITS
    assert limits.text <= uploads.MAX_TEXT <= limits.file <= limits.unpacked < limits.memory
