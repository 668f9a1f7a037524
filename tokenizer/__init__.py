"""Lossless tokenization whose result does not depend on how the text is chunked.

    tokenizer = load_tokenizer("tokenizer.model")
    encoder = StreamEncoder(tokenizer)
    ids = [*encoder.encode("Call me Ish"), *encoder.encode("mael."), *encoder.flush()]
    assert ids == list(tokenizer.encode("Call me Ishmael."))

`Tokenizer` is the protocol that every tokenizer implements: SentencePiece BPE, and byte-level BPE
of pretrained models (`tokenizer.huggingface`, `tokenizer.gguf`), whose chat templates
`tokenizer.chat` applies. The libraries are imported when a tokenizer is built or trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizer.loading import load_tokenizer
from tokenizer.sentencepiece import SentencePieceTokenizer
from tokenizer.stream import StreamDecoder, StreamEncoder
from tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizer.training import train

__all__ = [
    "SentencePieceTokenizer",
    "StreamDecoder",
    "StreamEncoder",
    "Tokenizer",
    "load_tokenizer",
    "train",
]


def __getattr__(name: str) -> Any:
    # Imported here: `python -m tokenizer.training` would otherwise load its module twice.
    if name == "train":
        from tokenizer.training import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
