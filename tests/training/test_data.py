"""Data: encoded documents, and batches that read every token of every document once."""

import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlm.training.data import IGNORED, Batch, Corpus, SegmentBatches, load_corpus
from tokenizer import Tokenizer

BOS = 1
ROOT = Path(__file__).resolve().parents[2]
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=8)
ROWS = st.integers(1, 5)
SEGMENT = st.integers(1, 5)


# -- corpora ----------------------------------------------------------------------------------


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
    assert messages  # the file may have changed, so it is read again


def test_another_tokenizer_is_another_corpus(
    files: list[Path], tmp_path: Path, books_tokenizer: Tokenizer
) -> None:
    class Other:
        fingerprint = "other"
        vocab_size = 1 << 20

        def encode(self, text: str) -> np.ndarray:
            return np.full(len(text), self.vocab_size - 1, np.int32)

        def settled(self, text: str) -> int:
            return len(text)

    load_corpus(files, books_tokenizer, cache=tmp_path / "cache")
    for _ in range(2):  # encoded, then from the cache: ids above 65535 are kept
        corpus = load_corpus(files, Other(), cache=tmp_path / "cache")  # type: ignore[arg-type]
        assert corpus.tokens.tolist() == 55 * [(1 << 20) - 1]


def test_missing_and_empty_data_are_refused(tmp_path: Path, books_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="no data files given"):
        load_corpus([], books_tokenizer)
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        load_corpus([tmp_path / "missing.txt"], books_tokenizer)
    (tmp_path / "empty.txt").write_text("\f\n\f\n")
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(ValueError, match=r"no text in .*empty\.txt"):
            load_corpus([tmp_path / "empty.txt"], books_tokenizer, cache=cache)


@pytest.mark.parametrize("options", [{}, {"cut_bytes": 100}, {"part": (0.0, 0.5)}])
def test_memory_does_not_grow_with_the_files(
    options: dict[str, Any],
    tmp_path: Path,
    books_tokenizer: Tokenizer,
    prose: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With twelve times the text, in documents and lines of any length."""
    monkeypatch.setattr("streamlm.training.documents.BLOCK", 1 << 13)
    peaks = []
    for times in (1, 12):
        path = tmp_path / f"{times}.txt"
        path.write_text(f"{prose(6000)}\n\f\n" * times + prose(6000 * times), encoding="utf-8")
        tracemalloc.start()
        try:
            corpus = load_corpus([path], books_tokenizer, cache=tmp_path / "cache", **options)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    # Only offsets may grow, one per document; the size of a block varies with its characters.
    assert peaks[1] < 1.5 * peaks[0] + 32 * len(corpus), peaks


def test_an_interrupted_encoding_leaves_no_files(
    files: list[Path], tmp_path: Path, books_tokenizer: Tokenizer
) -> None:
    cache = tmp_path / "cache"

    def stop(message: str) -> None:
        if message == "encoding b.txt":
            assert [path.suffix for path in cache.iterdir()] == [".new"]  # nothing to be read yet
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_corpus(files, books_tokenizer, cache=cache, progress=stop)
    assert not list(cache.iterdir())
    found = load_corpus(files, books_tokenizer, cache=cache)
    assert_same(found, load_corpus(files, books_tokenizer))


KILLED = """
import os, signal, sys
from streamlm.training.data import load_corpus
from tokenizer import Tokenizer, load_tokenizer

def die(message):
    if message == "encoding b.txt":
        os.kill(os.getpid(), signal.SIGKILL)

load_corpus(sys.argv[2:4], load_tokenizer(sys.argv[1]), cache=sys.argv[4], progress=die)
"""


def test_leftovers_of_a_killed_encoding_are_removed(
    files: list[Path], tmp_path: Path, books_tokenizer: Tokenizer
) -> None:
    model, cache = tmp_path / "books.model", tmp_path / "cache"
    model.write_bytes(books_tokenizer.model_bytes)
    words = [sys.executable, "-c", KILLED, model, *files, cache]
    ended = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path)
    assert ended.returncode == -signal.SIGKILL
    assert [path.suffix for path in cache.iterdir()] == [".new"]
    found = load_corpus(files, books_tokenizer, cache=cache)
    assert_same(found, load_corpus(files, books_tokenizer))
    assert [path.suffix for path in cache.iterdir()] == [""]


def test_concurrent_encodings_of_the_same_files(
    files: list[Path], tmp_path: Path, books_tokenizer: Tokenizer
) -> None:
    cache, inner = tmp_path / "cache", []

    def begin_another(message: str) -> None:
        if message == "encoding b.txt":
            inner.append(load_corpus(files, books_tokenizer, cache=cache))

    outer = load_corpus(files, books_tokenizer, cache=cache, progress=begin_another)
    assert_same(outer, inner[0])
    assert [path.suffix for path in cache.iterdir()] == [""]
    assert_same(outer, load_corpus(files, books_tokenizer, cache=cache))


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "corpus.json"])
@pytest.mark.parametrize("size", [None, 0, 1])
def test_a_damaged_cache_is_rewritten(
    name: str, size: int | None, files: list[Path], tmp_path: Path, books_tokenizer: Tokenizer
) -> None:
    cache = tmp_path / "cache"
    load_corpus(files, books_tokenizer, cache=cache)
    path = next(cache.iterdir()) / name
    if size is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:size])
    assert_same(
        load_corpus(files, books_tokenizer, cache=cache), load_corpus(files, books_tokenizer)
    )
    messages: list[str] = []
    load_corpus(files, books_tokenizer, cache=cache, progress=messages.append)
    assert not messages and [each.suffix for each in cache.iterdir()] == [""]


# -- batches ----------------------------------------------------------------------------------


def corpus_of(lengths: list[int]) -> Corpus:
    """Documents of these lengths; all tokens are distinct, and none is bos."""
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
            # A row reads its document to the end before it begins another.
            read = found[index]
            assert bool(batch.begins[row]) == (index != previous[row]) == (not read)
            assert batch.offsets[row] == len(read)
            if batch.begins[row] and previous[row] >= 0:
                assert len(found[int(previous[row])]) == lengths[previous[row]]
            # Inputs are the targets shifted by one, with bos before a document.
            before = read[-1] if read else BOS
            assert batch.inputs[row, : len(targets)].tolist() == [before, *targets[:-1]]
            # Ignored targets come only after a document's end.
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
def test_restored_batches_continue(
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
    """The documents of a few epochs, in the order in which one row reads them."""
    batches = SegmentBatches(corpus_of([2] * n_documents), 1, segment_len=2, bos=BOS, shuffle=seed)
    read = [int(batch.document[0]) for batch in islice(batches, n_documents * epochs)]
    return [read[i : i + n_documents] for i in range(0, len(read), n_documents)]


def test_each_epoch_is_a_new_permutation_of_the_documents() -> None:
    epochs = order(1)
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert epochs[0] != epochs[1] and epochs[1] != epochs[2]
    assert epochs == order(1) and epochs != order(2)


def test_fewer_documents_than_rows() -> None:
    batches = list(SegmentBatches(corpus_of([3]), 4, segment_len=2, bos=BOS))
    assert [batch.document.tolist() for batch in batches] == [[0, -1, -1, -1]] * 2
    assert [int((batch.targets != IGNORED).sum()) for batch in batches] == [2, 1]
