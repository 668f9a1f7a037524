"""Tokenizers from their model files."""

import json
import os
from pathlib import Path

from tokenizer.byte_pair import BytePairTokenizer
from tokenizer.huggingface import from_huggingface, from_tokenizer_json
from tokenizer.sentencepiece import SentencePieceTokenizer
from tokenizer.tokenizer import Tokenizer
from tokenizer.vocabulary import Vocabulary


def load_tokenizer(model: bytes | str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a model, given as a path or as the bytes of its file.

    - a SentencePiece BPE model, such as the tokenizer.model of our checkpoints
    - what `Vocabulary.to_bytes` wrote: the tokenizer.model of our checkpoints with byte-level BPE
    - a tokenizer.json of Hugging Face, or a directory with one; see `from_huggingface`

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no model of a kind that is known, or one that would lose text; says why.
    """
    if not isinstance(model, bytes):
        path = Path(model)
        if path.is_dir():
            return from_huggingface(path)
        if path.suffix == ".json":
            return load_tokenizer(path.read_bytes())
        with path.open("rb") as file:
            if file.read(1) != b"{":
                return SentencePieceTokenizer(path)
        model = path.read_bytes()
    if not model.startswith(b"{"):
        return SentencePieceTokenizer(model)
    try:
        data = json.loads(model)
    except ValueError as error:
        raise ValueError(f"the bytes are no tokenizer model: {error}") from None
    if "format" in data:
        return BytePairTokenizer(Vocabulary.from_bytes(model))
    return from_tokenizer_json(data)
