"""Documents read in blocks of any size equal those of the whole text."""

import lzma
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamlm.training.documents import (
    Block,
    cut_blocks,
    document_blocks,
    encode_documents,
    read_documents,
    some_documents,
    without_empty,
)
from tokenizer import Tokenizer

# All line ends of `str.splitlines`, halves of separators, and multi-byte characters.
TEXTS = st.text(st.sampled_from("ab é漢🐋\f\n\r\v\u2028\x85"), max_size=40)
SIZES = st.integers(1, 9)

anywhere = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)


def blocks_of(documents: list[str], sizes: list[int]) -> Iterator[Block]:
    """Documents in blocks whose sizes cycle through the given ones."""
    for number, document in enumerate(documents):
        size = sizes[number % len(sizes)]
        pieces = [document[at : at + size] for at in range(0, len(document), size)] or [""]
        yield from ((piece, False) for piece in pieces[:-1])
        yield pieces[-1], True


def joined(blocks: Iterable[Block]) -> list[str]:
    """The documents of a sequence of blocks, the last of which ends a document."""
    found, parts, ends = [], [], True
    for text, ends in blocks:
        parts.append(text)
        if ends:
            found.append("".join(parts))
            parts = []
    assert ends
    return found


def cut(text: str, n_bytes: int) -> list[str]:
    """Pieces of whole lines, by definition."""
    found, piece = [], ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece.encode()) >= n_bytes:
            found.append(piece)
            piece = ""
    return [*found, piece]


def test_documents_are_split_at_form_feeds(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.txt", tmp_path / "a.txt.xz"
    plain.write_bytes("One é\r\nline\n\f\n漢字\n\f\nend".encode())
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    documents = ["One é\r\nline\n", "漢字\n", "end"]
    assert list(read_documents(plain)) == list(read_documents(str(packed))) == documents


@anywhere
@given(text=TEXTS, size=SIZES)
def test_blocks_are_those_of_the_whole_text(text: str, size: int, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamlm.training.documents.BLOCK", size)
        assert joined(document_blocks(tmp_path / "a.txt")) == text.split("\f\n")
        assert list(read_documents(tmp_path / "a.txt")) == text.split("\f\n")


@anywhere
@given(
    documents=st.lists(TEXTS, max_size=3), sizes=st.lists(SIZES, min_size=1), n=st.integers(1, 20)
)
def test_pieces_end_with_lines(documents: list[str], sizes: list[int], n: int) -> None:
    wanted = [piece for document in documents for piece in cut(document, n) if piece]
    assert joined(without_empty(cut_blocks(blocks_of(documents, sizes), n))) == wanted


@anywhere
@given(
    documents=st.lists(TEXTS, max_size=5),
    sizes=st.lists(SIZES, min_size=1),
    first=st.integers(0, 5),
    n=st.integers(0, 5),
)
def test_some_documents(documents: list[str], sizes: list[int], first: int, n: int) -> None:
    found = joined(some_documents(blocks_of(documents, sizes), first, first + n))
    assert found == documents[first : first + n]


@anywhere
@given(documents=st.lists(TEXTS, max_size=3), sizes=st.lists(SIZES, min_size=1))
def test_ids_are_those_of_whole_documents(
    documents: list[str], sizes: list[int], books_tokenizer: Tokenizer
) -> None:
    file, dtype = BytesIO(), np.dtype("<u2")
    offsets, n_bytes, n_words = encode_documents(
        blocks_of(documents, sizes), books_tokenizer, file, dtype=dtype
    )
    ids = [books_tokenizer.encode(document).tolist() for document in documents]
    assert np.frombuffer(file.getvalue(), dtype).tolist() == [id for each in ids for id in each]
    assert offsets.tolist() == np.cumsum([0, *map(len, ids)]).tolist()
    assert n_bytes == sum(len(document.encode()) for document in documents)
    assert n_words == sum(len(document.split()) for document in documents)


@pytest.mark.parametrize("size", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"abc\xff", "invalid start byte at byte 3"),
        ("é".encode() * 3 + b"\xc3", "unexpected end of data at byte 6"),
        (b"a" * 1234 + b"\xc3(", "invalid continuation byte at byte 1,234"),
    ],
)
def test_invalid_text_is_located(
    data: bytes, message: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlm.training.documents.BLOCK", size)
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.txt is not UTF-8 text: {message}"):
        list(read_documents(tmp_path / "a.txt"))


@pytest.mark.parametrize("data", [b"", b"no xz", lzma.compress(b"text")[:-3]])
def test_damaged_files_are_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt.xz").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.txt\.xz is damaged"):
        list(read_documents(tmp_path / "a.txt.xz"))
