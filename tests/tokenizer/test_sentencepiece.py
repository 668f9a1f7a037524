"""SentencePieceTokenizer: the tokenizer contract, and encoding run by run."""

import hashlib
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given

from tests.support.texts import CORPUS, SYMBOL, TEXTS, TRAPS
from tests.support.tokenizers import TokenizerConformance, stream
from tokenizer import SentencePieceTokenizer, StreamEncoder
from tokenizer.boundaries import BLOCK, MAX_RUN, blocks, segments, settled

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "streamlm" / "assets" / "books" / "tokenizer.model"


class TestConformance(TokenizerConformance):
    longest_tail = MAX_RUN - 1


def runs(text: str) -> Iterator[str]:
    """The runs of a text, split character by character."""
    run = ""
    for char in text:
        kind = char if char in f" \n{SYMBOL}" else "x"
        if run:
            before = run[-1] if run[-1] in f" \n{SYMBOL}" else "x"
            if len(run) == MAX_RUN or (kind != before and (before, kind) != (" ", "x")):
                yield run
                run = ""
        run += char
    if run:
        yield run


def reference(tok: SentencePieceTokenizer, text: str) -> list[int]:
    """The definition of `encode`: each run separately, U+2581 as bytes."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tok.model_bytes)
    spelled = [processor.piece_to_id(piece) for piece in ("<0xE2>", "<0x96>", "<0x81>")]
    ids: list[int] = []
    for run in runs(text):
        ids += spelled * len(run) if run[0] == SYMBOL else processor.encode(run, out_type=int)
    return ids


@given(text=TEXTS)
@example(text=CORPUS * 40)
@example(text=(CORPUS + SYMBOL + "x" * 1000) * 20)
@example(text=" " * (MAX_RUN - 1) + "x" * 9000 + "\n" * 1001)
def test_encoding_is_run_by_run(tok: SentencePieceTokenizer, text: str) -> None:
    assert tok.encode(text).tolist() == reference(tok, text)


def test_long_texts_are_run_by_run(tok: SentencePieceTokenizer) -> None:
    rng = random.Random(0)
    units = [*CORPUS.split(" "), *TRAPS, " ", "  ", "\n", " " * 300, "x" * 300, "漢字" * 200]
    for size in (BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 9 * BLOCK):
        text = ""
        while len(text) < size:
            text += rng.choice(units) + rng.choice(["", " ", "\n"])
        text = text[:size]
        assert tok.encode(text).tolist() == reference(tok, text)
        assert [part for block in blocks(text) for part in segments(block)]
        assert all(len(block) <= BLOCK for block in blocks(text))


def test_runs_of_blanks(tok: SentencePieceTokenizer) -> None:
    newline, double = tok.encode("\n").tolist(), tok.encode("\n\n").tolist()
    assert len(newline) == len(double) == 1
    for n in (*range(1, 20), *range(MAX_RUN - 3, MAX_RUN + 4), 3 * MAX_RUN + 1):
        for text in (" " * n + "the", "a " + " " * n, "the" + " " * n + "\n"):
            assert tok.encode(text).tolist() == reference(tok, text)
        # Pairs of newlines stay together in runs of any length.
        assert tok.encode("\n" * n).tolist() == double * (n // 2) + newline * (n % 2)


@given(text=TEXTS, more=TEXTS)
def test_settled_text_stays_settled(text: str, more: str) -> None:
    end = settled(text)
    assert 0 <= len(text) - end < MAX_RUN
    assert end in {0, *np.cumsum([len(run) for run in runs(text + more)]).tolist()}


class Counting(SentencePieceTokenizer):
    """Counts the encoded characters."""

    count = 0

    def encode(self, text: str, **options: Any) -> Any:
        self.count += len(text)
        return super().encode(text, **options)


@pytest.mark.parametrize("unit", ["x", " ", "\n", SYMBOL, "漢", "ab\t"])
def test_a_run_without_spaces_is_not_held_back(unit: str) -> None:
    tok = Counting(BUNDLED)
    text = (unit * 200_000)[:200_000]
    encoder = StreamEncoder(tok)
    chunks = [text[i : i + 97] for i in range(0, len(text), 97)]
    ids = stream(encoder, chunks, longest_tail=MAX_RUN - 1)
    assert tok.count == len(text)  # each character was encoded once
    assert ids == tok.encode(text).tolist()


def test_every_character_survives(bundled: SentencePieceTokenizer) -> None:
    points = (*range(0xD800), *range(0xE000, 0x110000))
    for text in ("".join(map(chr, points)), " ".join(map(chr, points[:0x3000]))):
        assert bundled.decode_bytes(bundled.encode(text)) == text.encode("utf-8")


def test_tokens_have_bytes(tok: SentencePieceTokenizer) -> None:
    assert tok.token_lengths.shape == (tok.vocab_size,)
    lengths = [len(tok.decode_bytes([i])) for i in range(tok.vocab_size)]
    assert tok.token_lengths.tolist() == lengths
    assert [i for i, length in enumerate(lengths) if not length] == [0, 1, 2]
    assert tok.bos_id == 1
    assert {tok.decode_bytes([i]) for i in range(5, 261)} == {bytes([i]) for i in range(256)}
    with pytest.raises(ValueError, match="read-only"):
        tok.token_lengths[0] = 1


def test_fingerprint(bundled: SentencePieceTokenizer, tiny: SentencePieceTokenizer) -> None:
    data = BUNDLED.read_bytes()
    assert bundled.model_bytes == data
    assert bundled.fingerprint == hashlib.sha256(data).hexdigest()
    for same in (SentencePieceTokenizer(data), SentencePieceTokenizer(str(BUNDLED))):
        assert same.fingerprint == bundled.fingerprint
        assert np.array_equal(same.encode(CORPUS), bundled.encode(CORPUS))
    assert tiny.fingerprint != bundled.fingerprint


def test_the_bundled_model_suits_books(bundled: SentencePieceTokenizer) -> None:
    assert bundled.vocab_size == 8192
    pieces = [bundled.decode_bytes([i]) for i in range(bundled.vocab_size)]
    assert not [piece for piece in pieces if len(re.findall(rb"\d", piece)) > 1]
    english = CORPUS.partition("道")[0]
    assert len(english.encode()) / bundled.encode(english).size > 3.2
    for word in ("the", " the", " was", " of", " and"):
        assert bundled.encode(word).size == 1


def test_the_vocabulary_of_bytes() -> None:
    """The byte vocabulary of recipes: one token per byte, except for a blank line."""
    tokenizer = SentencePieceTokenizer(
        Path(__file__).resolve().parents[2] / "recipes" / "bytes.model"
    )
    text = "Call me Ishmael.\n\n Ещё  漢🐋\0 <page>"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode()) - 1 and tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == 262
