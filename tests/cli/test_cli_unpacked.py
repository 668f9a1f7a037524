"""Folders, archives and compressed files on the command line, and text between files."""

import bz2
import gzip
import json
import lzma
import zipfile
from pathlib import Path

import pytest

from tests.support.archives import epub
from tests.support.command_line import CommandLine, interrupt_after, refuses
from tests.support.pdfs import pdf


def text_of(kept: CommandLine, *arguments: object) -> bytes:
    """What `score --lines` read of these sources."""
    return kept.works("score", *arguments, "--lines").out.encode()


def test_packed_files_read_as_what_they_hold(kept: CommandLine) -> None:
    text = Path("text.txt").read_bytes()
    one, two = text[:900], text[900:1500]
    Path("plain").mkdir()
    Path("plain/a.txt").write_bytes(one)
    Path("plain/b").mkdir()
    Path("plain/b/c.txt").write_bytes(two)
    Path("plain/.hidden").write_bytes(b"\xff")
    Path("x.txt.gz").write_bytes(gzip.compress(one))
    Path("x.txt.xz").write_bytes(lzma.compress(one))
    Path("x.txt.bz2").write_bytes(bz2.compress(one))
    with zipfile.ZipFile("x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("book/a.txt", one)
        archive.writestr("__MACOSX/._a.txt", b"\xff")
        archive.writestr("book/c.txt", two)
    for packed, plain in (
        (["x.txt.gz"], ["plain/a.txt"]),
        (["x.txt.xz"], ["plain/a.txt"]),
        (["x.txt.bz2"], ["plain/a.txt"]),
        (["x.zip"], ["plain/a.txt", "plain/b/c.txt"]),
        (["plain"], ["plain/a.txt", "plain/b/c.txt"]),
    ):
        found, wanted = (kept.works("score", *files, "--json").json for files in (packed, plain))
        for name in ("tokens", "bytes", "nats"):
            assert found[name] == wanted[name], packed


def test_documents_read_as_their_text(kept: CommandLine) -> None:
    """As files of their own, in folders and in archives."""
    pytest.importorskip("pypdf", reason="needs pypdf: pip install 'streamlm[documents]'")
    page, book = b"<title>t</title><p>One &amp; two", epub({"1.x": b"<p>Three"})
    Path("library").mkdir()
    Path("library/a.html").write_bytes(page)
    Path("library/b.epub").write_bytes(book)
    Path("library/c.pdf").write_bytes(pdf("Four."))
    Path("page.html.gz").write_bytes(gzip.compress(page))
    with zipfile.ZipFile("library.zip", "w") as archive:
        for path in sorted(Path("library").iterdir()):
            archive.write(path)
    for source in ("library", "library.zip"):
        found = [json.loads(line)["bytes"] for line in text_of(kept, source).splitlines()]
        assert sum(found) == len("One & two\nThree\nFour.")
    assert kept.works("score", "page.html.gz", "--json").json["bytes"] == len("One & two\n")
    kept.works("feed", "library", "--session", "documents")
    Path("empty.html").write_bytes(b"<title>t</title>")
    refuses(kept, "empty.html contains no text", "feed", "--session", "documents", "empty.html")


def test_a_separator_stands_between_files_only(kept: CommandLine) -> None:
    Path("a.txt").write_bytes(b"one")
    Path("b.txt").write_bytes(b"two")
    Path("whole.txt").write_bytes(b"one\n\n***\n\ntwo")
    files = ("a.txt", "b.txt", "--separator", r"\n\n***\n\n")
    found, wanted = (
        kept.works("score", *words, "--json").json for words in (files, ("whole.txt",))
    )
    # In other pieces, so products round in other ways.
    assert found["nats"] == pytest.approx(wanted["nats"]) and found["bytes"] == wanted["bytes"]
    alone = kept.works("score", "a.txt", "--separator", "x", "--json").json
    assert alone["bytes"] == 3


def test_an_interrupted_feed_of_packed_files_resumes(
    kept: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Path("text.txt").read_bytes()
    Path("a.txt.gz").write_bytes(gzip.compress(text))
    Path("b.txt").write_bytes(text[::-1].decode("latin-1").encode())
    words = ("feed", "a.txt.gz", "b.txt", "--separator", r"\n", "--session", "packed")
    with monkeypatch.context() as patch:
        interrupt_after(patch, "streamlm.sessions.feed.Feed._show_progress", 2)
        assert kept(*words).status == 130
    resumed = kept.works(*words, "--json").json
    assert resumed["skipped_bytes"] > 0
    whole = kept.works(*words[:-1], "at-once", "--json").json
    assert resumed["position"] == whole["position"]


def test_what_cannot_be_unpacked_is_refused(kept: CommandLine) -> None:
    text = Path("text.txt").read_bytes()
    Path("cut.gz").write_bytes(gzip.compress(text)[:-20])
    Path("wrong.gz").write_bytes(b"\x1f\x8b" + b"no gzip at all")
    Path("wrong.zip").write_bytes(b"PK\x03\x04 no zip at all")
    Path("hollow").mkdir()
    with zipfile.ZipFile("bytes.zip", "w") as archive:
        archive.writestr("picture.png", b"\x89PNG\x00")
    for command in ("feed --session new", "score"):
        words = command.split()
        refuses(kept, "cut.gz is damaged or encrypted", *words, "cut.gz")
        refuses(kept, "wrong.gz is damaged or encrypted", *words, "wrong.gz")
        refuses(kept, "wrong.zip is damaged or encrypted", *words, "wrong.zip")
        refuses(kept, "hollow holds no files; allowed: text files", *words, "hollow")
        refuses(kept, "picture.png in bytes.zip is not UTF-8 text", *words, "bytes.zip")
        refuses(kept, "no file 'missing.txt'", *words, "missing.txt")
