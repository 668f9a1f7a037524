"""Tokenizers from their model files."""

import os

from tokenizer.sentencepiece import SentencePieceTokenizer
from tokenizer.tokenizer import Tokenizer


def load_tokenizer(model: bytes | str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a model file, given as its path or its bytes; SentencePiece BPE today.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no model of a kind that is known, or one that would lose text; says why.
    """
    return SentencePieceTokenizer(model)
