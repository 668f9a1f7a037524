"""The ways in which `benchmarks.books` lets one model read: with its memory, and without parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.models.base import Model
from streamlm.models.build import build_model
from streamlm.training.data import Corpus
from streamlm.training.evaluate import EvalReport, evaluate

WHOLE, RECENT, NONE = "whole memory", "compressed memory off", "memory off"


@dataclass(frozen=True)
class Book:
    """One book, or its beginning: its tokens and the bytes that they stand for."""

    ids: np.ndarray
    data: bytes


def encode_books(
    texts: Sequence[str],
    checkpoint: Checkpoint,
    *,
    max_tokens: int | None = None,
    progress: Callable[[], object] = lambda: None,
) -> list[Book]:
    """Books as tokens; with `max_tokens`, each book's equal share of so many from its beginning."""
    books = []
    for text in texts:
        ids = checkpoint.tokenizer.encode(text)
        if max_tokens is not None:
            ids = ids[: max(1, max_tokens // len(texts))]
        books.append(Book(ids, checkpoint.tokenizer.decode_bytes(ids)))
        progress()
    return books


def without(model: Model, *, memory_len: int) -> Model:
    """The same weights with no compressed slots and `memory_len` others; distances stay as is."""
    config = replace(model.config, memory_len=memory_len, compressed_len=0, compression_loss="none")
    other = build_model(config).to(model.device)
    weights = model.state_dict()
    others = ("compressors.", "decoders.")
    other.load_state_dict({k: v for k, v in weights.items() if not k.startswith(others)})
    return other.eval().requires_grad_(False)


def read_books(
    checkpoint: Checkpoint,
    books: Sequence[Book],
    *,
    batch_size: int,
    progress: Callable[[str, int], object] = lambda name, tokens: None,
) -> dict[str, EvalReport]:
    """Every way of reading, each with the loss of every token, books in the order given."""
    model = checkpoint.model
    ways = {WHOLE: model}
    if model.config.compressed_len and model.config.memory_len:
        ways[RECENT] = without(model, memory_len=model.config.memory_len)
    ways[NONE] = without(model, memory_len=0)
    # Long books first, so that the rows of a batch end at about the same time.
    order = sorted(range(len(books)), key=lambda i: -len(books[i].ids))
    corpus = corpus_of([books[i] for i in order])
    reports = {}
    for name, reader in ways.items():
        report = evaluate(
            reader,
            corpus,
            bos=checkpoint.tokenizer.bos_id,
            token_lengths=checkpoint.tokenizer.token_lengths,
            batch_size=batch_size,
            token_losses=True,
            progress=partial(_told, progress, name),
        )
        assert report.losses is not None and report.tokens == len(corpus.tokens)
        place = {book: row for row, book in enumerate(order)}
        reports[name] = replace(
            report,
            documents=[report.documents[place[i]] for i in range(len(books))],
            losses=[report.losses[place[i]] for i in range(len(books))],
        )
    return reports


def _told(progress: Callable[[str, int], object], name: str, tokens: int) -> None:
    progress(name, tokens)


def corpus_of(books: Sequence[Book]) -> Corpus:
    """Books as `evaluate` takes them."""
    return Corpus(
        tokens=np.concatenate([book.ids for book in books]),
        offsets=np.concatenate([[0], np.cumsum([len(book.ids) for book in books])]),
        n_bytes=sum(len(book.data) for book in books),
        n_words=sum(len(book.data.decode(errors="replace").split()) for book in books),
    )
