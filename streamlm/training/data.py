"""Training and evaluation data: documents → token files → segment batches.

A corpus is encoded once, block by block, into a memory-mapped file of ids.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from streamlm.training.cached import computed_once
from streamlm.training.documents import (
    Block,
    cut_blocks,
    document_blocks,
    encode_documents,
    some_documents,
    without_empty,
)
from tokenizer import Tokenizer

IGNORED = -100  # the target of a position that is not scored
FORMAT = "corpus 2"  # of cached files
TOKENS, OFFSETS, META = "tokens.bin", "offsets.npy", "corpus.json"


@dataclass(frozen=True)
class Corpus:
    """Encoded documents.

    Attributes:
        tokens: the ids of all documents, one after another.
        offsets: [n + 1] the start of each document, and the end of the last one.
        n_bytes, n_words: UTF-8 bytes and runs of non-space characters of all documents.
        scored: a bool for each token, False if it is no target; None scores all.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    n_bytes: int
    n_words: int
    scored: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def load_corpus(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    *,
    cut_bytes: int = 0,
    part: tuple[float, float] = (0.0, 1.0),
    cache: str | Path | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Corpus:
    """Encode files, or take the ids from `cache` if it has these files already.

    Text is read and encoded block by block. With a cache, ids are written to disk and mapped, so
    that memory does not grow with the files; without, the ids are held in memory.

    Args:
        cut_bytes: cut documents at line ends into pieces of about this many bytes; 0 keeps them.
        part: the documents to take, as a range of shares of their number.
        cache: a folder for encoded corpora, safe for several processes (`computed_once`).

    Raises:
        ValueError: no files are given, or they hold no text.
        FileNotFoundError: names the missing file.
    """
    if not paths:
        raise ValueError("no data files given")
    key = hashlib.sha256(f"{FORMAT} {tokenizer.fingerprint}".encode())
    if cut_bytes or part != (0.0, 1.0):
        key.update(f"{cut_bytes} {part}".encode())
    for file in map(Path, paths):
        stat = file.stat()
        key.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<i4")

    def blocks(verb: str) -> Iterator[Block]:
        for path in paths:
            progress(f"{verb} {Path(path).name}")
            whole = document_blocks(path)
            yield from without_empty(cut_blocks(whole, cut_bytes) if cut_bytes else whole)

    def encode(tokens: IO[bytes]) -> tuple[np.ndarray, int, int]:
        if part == (0.0, 1.0):
            wanted = blocks("encoding")
        else:
            n = sum(ends for _, ends in blocks("counting documents of"))
            wanted = some_documents(blocks("encoding"), round(part[0] * n), round(part[1] * n))
        offsets, n_bytes, n_words = encode_documents(wanted, tokenizer, tokens, dtype=dtype)
        if len(offsets) == 1:
            raise ValueError(f"no text in {', '.join(map(str, paths))}")
        return offsets, n_bytes, n_words

    def write(folder: Path) -> None:
        with open(folder / TOKENS, "wb") as tokens:
            offsets, n_bytes, n_words = encode(tokens)
        np.save(folder / OFFSETS, offsets)
        meta = {"dtype": dtype.str, "n_bytes": n_bytes, "n_words": n_words}
        (folder / META).write_text(json.dumps(meta))

    if cache is None:
        held = io.BytesIO()
        offsets, n_bytes, n_words = encode(held)
        return Corpus(np.frombuffer(held.getbuffer(), dtype), offsets, n_bytes, n_words)
    return computed_once(Path(cache) / key.hexdigest()[:16], read=_read_cached, write=write)


def _read_cached(folder: Path) -> Corpus | None:
    """A cached corpus, or None if it is missing or damaged."""
    try:
        meta = json.loads((folder / META).read_text())
        offsets = np.load(folder / OFFSETS)
        tokens = np.memmap(folder / TOKENS, meta["dtype"], mode="r")
        whole = len(tokens) == offsets[-1]
        return Corpus(tokens, offsets, meta["n_bytes"], meta["n_words"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError):
        return None


@dataclass(frozen=True)
class Batch:
    """One segment of every row.

    Attributes:
        inputs: [B, T] ids; targets: [B, T] the ids that follow, IGNORED after a document's end.
        begins: [B] True if the row begins a document, so that its memory must be reset first.
        offsets: [B] position of the first target in its document; -1 for a row without documents.
        document: [B] index of the document.
    """

    inputs: Tensor
    targets: Tensor
    begins: Tensor
    offsets: np.ndarray
    document: np.ndarray

    def rows(self, some: slice) -> "Batch":
        """The segment of some rows."""
        return Batch(
            self.inputs[some],
            self.targets[some],
            self.begins[some],
            self.offsets[some],
            self.document[some],
        )


class SegmentBatches:
    """Reads documents in parallel rows, segment by segment; each row continues its document.

    A row at the end of its document takes the next one with the following segment. Each document is
    preceded by bos and read from its first token to its last, so that every token is scored once.

    Args:
        shuffle: seed of the order of documents, which changes with every epoch, without end; None
            reads every document once, in order.
    """

    def __init__(
        self,
        corpus: Corpus,
        batch_size: int,
        *,
        segment_len: int,
        bos: int,
        shuffle: int | None = None,
    ) -> None:
        self.corpus, self.segment_len, self.bos, self.shuffle = corpus, segment_len, bos, shuffle
        self.taken = 0  # documents begun so far, over all epochs
        self.document = np.full(batch_size, -1)
        self.offset = np.zeros(batch_size, dtype=np.int64)
        self._order: tuple[int, np.ndarray] = (-1, np.arange(0))

    def state(self) -> dict[str, Any]:
        """The position of every row, for `restore`; JSON."""
        return {
            "taken": self.taken,
            "document": self.document.tolist(),
            "offset": self.offset.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue at the positions of `state`."""
        self.taken = int(state["taken"])
        self.document = np.array(state["document"])
        self.offset = np.array(state["offset"])

    def _next_document(self) -> int:
        n = len(self.corpus)
        if self.shuffle is None:
            index = self.taken if self.taken < n else -1
        else:
            epoch, place = divmod(self.taken, n)
            if self._order[0] != epoch:
                order = np.random.Generator(np.random.PCG64([self.shuffle, epoch])).permutation(n)
                self._order = (epoch, order)
            index = int(self._order[1][place])
        if index >= 0:
            self.taken += 1
        return index

    def __iter__(self) -> "SegmentBatches":
        return self

    def __next__(self) -> Batch:
        t, n_rows = self.segment_len, len(self.document)
        inputs = np.full((n_rows, t), self.bos, dtype=np.int64)
        targets = np.full((n_rows, t), IGNORED, dtype=np.int64)
        begins = np.zeros(n_rows, dtype=bool)
        for row in range(n_rows):
            index = self.document[row]
            if index < 0 or self.offset[row] >= len(self.corpus.document(index)):
                index = self.document[row] = self._next_document()
                self.offset[row] = 0
                begins[row] = True
            if index < 0:
                continue
            document, start = self.corpus.document(index), int(self.offset[row])
            ids = document[start : start + t]
            targets[row, : len(ids)] = ids
            inputs[row, 0] = document[start - 1] if start else self.bos
            inputs[row, 1 : len(ids)] = ids[:-1]
            if self.corpus.scored is not None:
                first = int(self.corpus.offsets[index]) + start
                scored = self.corpus.scored[first : first + len(ids)]
                targets[row, : len(ids)][~scored] = IGNORED
        if (self.document < 0).all():
            raise StopIteration
        offsets = np.where(self.document < 0, -1, self.offset)
        batch = Batch(
            torch.from_numpy(inputs),
            torch.from_numpy(targets),
            torch.from_numpy(begins),
            offsets,
            self.document.copy(),
        )
        self.offset = self.offset + t
        return batch
