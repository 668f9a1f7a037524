"""Requirements on SentencePiece models: lossless models are accepted, others refused."""

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from tests.support.texts import CORPUS
from tests.support.tokenizers import stream
from tokenizer import SentencePieceTokenizer, StreamEncoder, load_tokenizer, train
from tokenizer.boundaries import MAX_RUN


def foreign(**options: Any) -> bytes:
    """A model trained on the corpus with our settings, except for `options`."""
    model = io.BytesIO()
    ours: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 400,
        "character_coverage": 1.0,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "minloglevel": 2,
        "num_threads": 1,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split("\n")), model_writer=model, **{**ours, **options}
    )
    return model.getvalue()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model_type": "unigram", "vocab_size": 330}, "model_type must be bpe"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix must be off"),
        ({"byte_fallback": False, "vocab_size": 150}, "byte_fallback must be on"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalization_rule_name must be identity"),
        ({"add_dummy_prefix": True}, "add_dummy_prefix must be off"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces must be off"),
        ({"split_by_whitespace": False}, r"piece 't w' \(id \d+\) crosses a boundary"),
        ({"user_defined_symbols": ["\nThe"]}, r"piece '\\nThe' \(id 3\) crosses a boundary"),
        ({"user_defined_symbols": ["Mr. X"]}, r"piece 'Mr. X' \(id 3\) crosses a boundary"),
        ({"control_symbols": ["q"]}, r"control symbol 'q' \(id 3\) is a single character"),
        ({"bos_id": -1}, "no <s>"),
    ],
)
def test_a_model_that_would_lose_text_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SentencePieceTokenizer(foreign(**options))


def test_a_lossless_foreign_model_is_accepted() -> None:
    tok = SentencePieceTokenizer(
        foreign(user_defined_symbols=["<note>", "\n\n\n"], bos_id=7, unk_id=5)
    )
    assert tok.bos_id == 7
    text = "of Light<note>,\n\n\n\nof Darkness  <not e>"
    assert tok.decode(tok.encode(text)) == text
    assert (
        stream(StreamEncoder(tok), list(text), longest_tail=MAX_RUN - 1)
        == tok.encode(text).tolist()
    )


@pytest.mark.parametrize("data", [b"", b"garbage", bytes(100)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no SentencePiece model"):
        load_tokenizer(data)


def test_a_vocabulary_without_a_space_is_refused(tmp_path: Path) -> None:
    """It would encode a space as the bytes of U+2581 and decode it as U+2581."""
    path = train(["e"], tmp_path / "e.model", vocab_size=262)
    with pytest.raises(ValueError, match="a space has no piece of its own"):
        SentencePieceTokenizer(path)
