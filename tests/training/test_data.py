"""Data: documents and their ids, and batches that read every token of every document once."""

import lzma
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlm.training.data import (
    IGNORED,
    Batch,
    Corpus,
    SegmentBatches,
    load_corpus,
    read_documents,
)
from tokenizer import Tokenizer

BOS = 1
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=8)
ROWS = st.integers(1, 5)
SEGMENT = st.integers(1, 5)


# -- documents --------------------------------------------------------------------------------


def test_documents_are_split_at_form_feeds(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.txt", tmp_path / "a.txt.xz"
    plain.write_bytes("One é\r\nline\n\f\n漢字\n\f\nend".encode())
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    documents = ["One é\r\nline\n", "漢字\n", "end"]
    assert list(read_documents(plain)) == list(read_documents(str(packed))) == documents


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    paths[0].write_text("The first book, naïve.\n\f\n\f\nThe second one.\n", encoding="utf-8")
    paths[1].write_text("漢字 and the third", encoding="utf-8")
    return paths


def test_a_corpus_holds_every_document(files: list[Path], books_tokenizer: Tokenizer) -> None:
    corpus = load_corpus(files, books_tokenizer)
    texts = ["The first book, naïve.\n", "The second one.\n", "漢字 and the third"]
    assert len(corpus) == 3  # the empty one is none
    for index, text in enumerate(texts):
        assert corpus.document(index).tolist() == books_tokenizer.encode(text).tolist()
    assert len(corpus.tokens) == corpus.offsets[-1]
    assert corpus.n_bytes == sum(len(text.encode()) for text in texts)
    assert corpus.n_words == 4 + 3 + 4


def assert_same(a: Corpus, b: Corpus) -> None:
    assert a.tokens.tolist() == b.tokens.tolist() and a.offsets.tolist() == b.offsets.tolist()
    assert (a.n_bytes, a.n_words) == (b.n_bytes, b.n_words)


def test_a_corpus_is_encoded_once(
    files: list[Path], tmp_path: Path, books_tokenizer: Tokenizer
) -> None:
    messages: list[str] = []

    def load(paths: list[Path]) -> Corpus:
        messages.clear()
        return load_corpus(
            paths, books_tokenizer, cache=tmp_path / "cache", progress=messages.append
        )

    first = load(files)
    assert messages == ["encoding a.txt", "encoding b.txt"]
    again = load(files)
    assert not messages and isinstance(again.tokens, np.memmap)
    assert_same(first, again)
    assert_same(first, load_corpus(files, books_tokenizer))
    load(files[:1])
    assert messages  # other files, another corpus
    files[1].write_text("another third", encoding="utf-8")
    changed = load(files)
    assert (
        messages
        and changed.document(2).tolist() == books_tokenizer.encode("another third").tolist()
    )
    stat = files[0].stat()
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    load(files)
    assert messages  # it may have been changed, so it is read again


def test_another_tokenizer_is_another_corpus(
    files: list[Path], tmp_path: Path, books_tokenizer: Tokenizer
) -> None:
    class Other:
        fingerprint = "other"
        vocab_size = 1 << 20

        def encode(self, text: str) -> np.ndarray:
            return np.full(2, self.vocab_size - 1, np.int32)

    load_corpus(files, books_tokenizer, cache=tmp_path / "cache")
    for _ in range(2):  # encoded, then from the cache: ids above 65535 are kept
        corpus = load_corpus(files, Other(), cache=tmp_path / "cache")  # type: ignore[arg-type]
        assert corpus.tokens.tolist() == 6 * [(1 << 20) - 1]


def test_what_is_no_corpus_is_refused(tmp_path: Path, books_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="no data files given"):
        load_corpus([], books_tokenizer)
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        load_corpus([tmp_path / "missing.txt"], books_tokenizer)
    (tmp_path / "empty.txt").write_text("\f\n\f\n")
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(ValueError, match=r"no text in .*empty\.txt"):
            load_corpus([tmp_path / "empty.txt"], books_tokenizer, cache=cache)


# -- batches ----------------------------------------------------------------------------------


def corpus_of(lengths: list[int]) -> Corpus:
    """Documents of these lengths; no two tokens of the corpus are equal, and none is bos."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Corpus(np.arange(100, 100 + offsets[-1]).astype(np.uint16), offsets, 1, 1)


def tensors(batch: Batch) -> list[list[object]]:
    return [
        batch.inputs.tolist(),
        batch.targets.tolist(),
        batch.begins.tolist(),
        batch.offsets.tolist(),
        batch.document.tolist(),
    ]


@settings(max_examples=60)
@given(lengths=LENGTHS, rows=ROWS, segment_len=SEGMENT)
def test_every_token_is_read_once(lengths: list[int], rows: int, segment_len: int) -> None:
    corpus = corpus_of(lengths)
    found: dict[int, list[int]] = {index: [] for index in range(len(lengths))}
    previous = np.full(rows, -1)
    for batch in SegmentBatches(corpus, rows, segment_len=segment_len, bos=BOS):
        assert batch.inputs.shape == batch.targets.shape == (rows, segment_len)
        for row in range(rows):
            index = int(batch.document[row])
            targets = batch.targets[row][batch.targets[row] != IGNORED].tolist()
            if index < 0:
                assert not targets and batch.offsets[row] == -1
                continue
            # Rows are contiguous: a row stays with its document to the end, then begins another.
            read = found[index]
            assert bool(batch.begins[row]) == (index != previous[row]) == (not read)
            assert batch.offsets[row] == len(read)
            if batch.begins[row] and previous[row] >= 0:
                assert len(found[int(previous[row])]) == lengths[previous[row]]
            # Inputs are the targets one later, with bos before a document.
            before = read[-1] if read else BOS
            assert batch.inputs[row, : len(targets)].tolist() == [before, *targets[:-1]]
            # What is not scored stands behind a document's end.
            assert batch.targets[row, : len(targets)].tolist() == targets and targets
            read += targets
            previous[row] = index
    assert found == {i: corpus.document(i).tolist() for i in range(len(lengths))}


@settings(max_examples=60)
@given(
    lengths=LENGTHS,
    rows=ROWS,
    segment_len=SEGMENT,
    shuffle=st.none() | st.integers(0, 3),
    n=st.integers(0, 20),
)
def test_restored_batches_go_on(
    lengths: list[int], rows: int, segment_len: int, shuffle: int | None, n: int
) -> None:
    def begin() -> SegmentBatches:
        return SegmentBatches(
            corpus_of(lengths), rows, segment_len=segment_len, bos=BOS, shuffle=shuffle
        )

    batches, resumed = begin(), begin()
    list(islice(batches, n))
    resumed.restore(batches.state())
    assert resumed.state() == batches.state()
    wanted = [tensors(batch) for batch in islice(batches, 12)]
    assert [tensors(batch) for batch in islice(resumed, 12)] == wanted
    assert wanted or shuffle is None
    assert resumed.state() == batches.state()


def order(seed: int, *, n_documents: int = 6, epochs: int = 3) -> list[list[int]]:
    """The documents of some epochs in the order in which one row reads them."""
    batches = SegmentBatches(corpus_of([2] * n_documents), 1, segment_len=2, bos=BOS, shuffle=seed)
    read = [int(batch.document[0]) for batch in islice(batches, n_documents * epochs)]
    return [read[i : i + n_documents] for i in range(0, len(read), n_documents)]


def test_each_epoch_is_a_new_order_of_all_documents() -> None:
    epochs = order(1)
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert epochs[0] != epochs[1] and epochs[1] != epochs[2]
    assert epochs == order(1) and epochs != order(2)


def test_fewer_documents_than_rows() -> None:
    batches = list(SegmentBatches(corpus_of([3]), 4, segment_len=2, bos=BOS))
    assert [batch.document.tolist() for batch in batches] == [[0, -1, -1, -1]] * 2
    assert [int((batch.targets != IGNORED).sum()) for batch in batches] == [2, 1]
