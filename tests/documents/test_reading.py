"""Documents that are damaged, encrypted, or made to exhaust who reads them."""

import io
import json
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest

from streamlm.documents import KINDS, Limits, document_text
from tests.support.archives import CONTAINER, epub
from tests.support.pdfs import pdf

SMALL = Limits(file=1_000_000, unpacked=200_000, text=5_000, parts=20, members=30, seconds=60)


def read(tmp_path: Path, name: str, data: bytes, limits: Limits = SMALL) -> str:
    path = tmp_path / name
    path.write_bytes(data)
    return document_text(path, shown=name, limits=limits)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.HTM", b"<p>one<p>two", "one\n\ntwo\n"),
        ("a.epub", epub({"a b.x": b"<p>One", "2.x": b"Two"}, spine=["2.x", "a b.x"]),
         "Two\n\n\nOne\n"),
        ("a.html", b"<div>" * 100_000 + b"deep", "deep\n"),
        ("a.html", b"<p" + b" a='b'" * 100_000 + b">wide", "wide\n"),
        ("a.epub", epub({"1.x": b"<div>" * 30_000 + b"deep"}), "deep\n"),
    ],
)  # fmt: skip
def test_documents(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    assert read(tmp_path, name, data) == expected


def damaged_epub() -> bytes:
    """An EPUB one of whose members is compressed wrongly."""
    data = bytearray(epub({"1.x": b"<p>" + b"word " * 100}))
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        member = archive.getinfo("OEBPS/1.x")
    at = member.header_offset + 30 + len(member.filename)
    data[at : at + 8] = b"\xff" * 8
    return bytes(data)


def locked_epub() -> bytes:
    """An EPUB whose members claim to be encrypted."""
    data = bytearray(epub({"1.x": b"<p>x"}))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            data[at + offset] |= 1
    return bytes(data)


def crowded_epub() -> bytes:
    made = io.BytesIO(epub({"1.x": b"x"}))
    with zipfile.ZipFile(made, "a") as archive:
        for number in range(40):
            archive.writestr(f"{number}", b"")
    return made.getvalue()


def epub_without_package() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("META-INF/container.xml", CONTAINER)
    return made.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"x", "a.txt is no document; allowed: .htm"),
        ("a.html", b"<p> </p><script>x</script>", "a.html contains no text"),
        ("a.html", b"x" * 6000, "a.html has more than 5,000 characters"),
        ("a.html", b"x" * 1_000_001, "a.html has 1.0 MB; allowed: at most 1 MB"),
        ("a.epub", b"no archive", r"a.epub is not a valid EPUB \(BadZipFile"),
        ("a.epub", damaged_epub(), r"a.epub is not a valid EPUB \(error\('Error -3"),
        ("a.epub", locked_epub(), "a.epub is encrypted"),
        ("a.epub", crowded_epub(), "a.epub holds 43 files; allowed: at most 30"),
        ("a.epub", epub_without_package(), r"a.epub is not a valid EPUB \(KeyError"),
        ("a.epub", epub({f"{i}.x": b"x" for i in range(21)}), "a.epub has 21 parts"),
        ("a.epub", epub({"1.x": b" " * 300_000}), "a.epub decompresses to more than 0 MB"),
        ("a.epub", epub({"1.x": b"x" * 3000, "2.x": b"y" * 3000}), "more than 5,000 characters"),
        ("a.epub", epub({"1.x": b"x"}, spine=["1.x"] * 2)[:-30], "a.epub is not a valid EPUB"),
    ],
)
def test_refusals(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, name, data)


def encrypted_pdf() -> bytes:
    from pypdf import PdfReader, PdfWriter

    writer, made = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("secret")))), io.BytesIO()
    writer.encrypt("word", algorithm="RC4-128")
    writer.write(made)
    return made.getvalue()


def test_pdfs(tmp_path: Path) -> None:
    pytest.importorskip("pypdf", reason="needs pypdf: pip install 'streamlm[documents]'")
    assert read(tmp_path, "a.pdf", pdf("Call me Ishmael.")) == "Call me Ishmael."
    packed = zlib.compress(b"BT /F1 12 Tf 72 720 Td (Packed.) Tj ET")
    assert read(tmp_path, "a.pdf", pdf("", filtered=packed)) == "Packed."
    for data, message in (
        (pdf("", filtered=b"\xff\xfe no zlib at all"), "a.pdf (is not a valid|contains no)"),
        (pdf("x").replace(b"/Kids [3 0 R]", b"/Kids [2 0 R]"), "a.pdf"),
        (b"%PDF-1.4 and nothing", "a.pdf is not a valid PDF"),
        (encrypted_pdf(), "a.pdf is encrypted; allowed: PDFs without a password"),
        (pdf("word " * 2000), "a.pdf has more than 5,000 characters"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, "a.pdf", data)


def test_time_is_limited(tmp_path: Path) -> None:
    """No time at all is too little: the process is killed."""
    limits = Limits(seconds=0)
    with pytest.raises(ValueError, match=r"a\.html takes more than 0 s"):
        read(tmp_path, "a.html", b"<p>x", limits)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs limits of memory")
def test_memory_is_limited(tmp_path: Path) -> None:
    limits = Limits(memory=120_000_000)
    with pytest.raises(ValueError, match=r"a\.html takes more than 120 MB of memory"):
        read(tmp_path, "a.html", b"<" * 60_000_000, limits)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs limits of processes")
def test_the_reader_writes_no_files(tmp_path: Path) -> None:
    code = (
        "from streamlm.documents.child import confine; from streamlm.documents import Limits\n"
        "confine(Limits())\nwith open('x', 'w') as file: file.write('text')"
    )
    path = os.pathsep.join(sys.path)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
    )
    assert ended.returncode != 0 and (tmp_path / "x").read_bytes() == b""


def test_the_reader_loads_no_model() -> None:
    code = "import json, sys, streamlm.documents.child; print(json.dumps(sorted(sys.modules)))"
    path = os.pathsep.join(sys.path)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        check=True,
    )
    assert not {"torch", "numpy", "gradio"} & {*json.loads(ended.stdout)}
    assert set(KINDS) == {".htm", ".html", ".xhtml", ".epub", ".pdf"}
