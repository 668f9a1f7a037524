"""Training of a SentencePiece tokenizer on books.

    python -m tokenizer.training --out books.model --vocab-size 8192 train-*.txt.xz

The model is SentencePiece BPE with settings that preserve text: no normalisation, no leading space
added, a token for every byte. A unigram model would not do: its segmentation is the best path by a
sum of floats from the start of the text, so a cut can change the tokens. BPE applies its merges in
a fixed order, and a merge never looks beyond its own word.
"""

from __future__ import annotations

import argparse
import io
import lzma
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import sentencepiece

from tokenizer.boundaries import BLOCK, blocks

BOOK_SEPARATOR = "\f\n"
BLOCK_LINES = 64  # lines of a sampled block, so that a sample reads like the books

# Excluded from training: newlines have symbols of their own, U+2581 is SentencePiece's space, and
# its trainer refuses lines with a NUL.
_NOT_TRAINED_ON = re.compile("[\n\0\u2581]+")


def train(
    texts: Iterable[str],
    out: Path,
    *,
    vocab_size: int = 8192,
    character_coverage: float = 0.9999,
    quiet: bool = True,
) -> Path:
    """Learn a vocabulary from `texts` and write the model to `out`; returns `out`.

    The same texts in the same order give the same vocabulary. Ids: `<unk>` 0, `<s>` 1, `</s>` 2,
    the newline symbols, 256 bytes, then the pieces in the order of their merges. `out` is replaced
    atomically.

    Raises:
        ValueError: there is no text, or too little for `vocab_size` pieces.
    """
    sentences = _sentences(texts)
    first = next(sentences, None)
    if first is None:
        raise ValueError("texts holds no text to train on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=chain([first], sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=True,
            character_coverage=character_coverage,
            # The text is preserved.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            # Allowed pieces.
            split_digits=True,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n", "\n\n"],
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            # Training is deterministic.
            shuffle_input_sentence=False,
            num_threads=1,
            max_sentence_length=8 * BLOCK,  # bytes; longer sentences are skipped
            minloglevel=2 if quiet else 0,
        )
    except RuntimeError as error:
        raise ValueError(f"cannot train {vocab_size} pieces on these texts: {error}") from error
    _write_whole(Path(out), model.getvalue())
    return Path(out)


def read_books(path: Path) -> list[str]:
    """The books of a .txt or .txt.xz file, separated by lines that hold only a form feed.

    Line ends are preserved. Raises ValueError for any other kind of file.
    """
    name = Path(path).name
    if name.endswith(".txt.xz"):
        with lzma.open(path, "rt", encoding="utf-8", newline="") as packed:
            text = packed.read()
    elif name.endswith(".txt"):
        with open(path, encoding="utf-8", newline="") as plain:
            text = plain.read()
    else:
        raise ValueError(f"cannot read {path}: expected a .txt or .txt.xz file")
    return text.split(BOOK_SEPARATOR)


def sample_books(files: Sequence[Path], max_bytes: int) -> Iterator[str]:
    """About `max_bytes` bytes of text: the same share of each book, spread evenly within it.

    With a small share, books of few blocks (`BLOCK_LINES`) contribute nothing.
    """
    total = sum(len(book.encode()) for path in files for book in read_books(path))
    share = min(1.0, max_bytes / max(total, 1))
    for path in files:  # read again, because the books may exceed the memory
        for book in read_books(path):
            lines = book.split("\n")
            for block in range(-(-len(lines) // BLOCK_LINES)):
                if int((block + 1) * share) > int(block * share):
                    yield "\n".join(lines[block * BLOCK_LINES : (block + 1) * BLOCK_LINES])


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in _NOT_TRAINED_ON.split(text):
            yield from blocks(line)


def _write_whole(out: Path, data: bytes) -> None:
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tokenizer.training",
        description="Train a SentencePiece BPE tokenizer on .txt and .txt.xz files of books.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--max-bytes", type=int, default=40_000_000, help="size of the sample")
    parser.add_argument("--verbose", action="store_true", help="show the trainer's own log")
    options = parser.parse_args(arguments)
    train(
        sample_books(options.files, options.max_bytes),
        options.out,
        vocab_size=options.vocab_size,
        quiet=not options.verbose,
    )
    print(f"wrote {options.out} ({options.vocab_size} pieces)")


if __name__ == "__main__":
    main()
