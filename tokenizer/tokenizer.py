"""Text to tokens and back, without loss."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tokenizer.boundaries import SPACE_SYMBOL, blocks, segments
from tokenizer.model_file import byte_ids, check_settings, read_vocabulary

Errors: TypeAlias = Literal["strict", "replace"]
Ids: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]

_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A SentencePiece BPE model, as a lossless map between text and token ids.

    `decode_bytes(encode(text)) == text.encode("utf-8")` holds for every text: no normalisation,
    and what the vocabulary lacks is spelled in bytes. Special symbols are never read from text:
    `"<s>"` in a book is three or more ordinary tokens. A tokenizer never changes; two with the
    same `fingerprint` agree on everything.

    Args:
        model: the bytes of a model file, or its path.

    Raises:
        ValueError: the bytes are no SentencePiece model, or it has settings or pieces that lose
            text or depend on how text is cut (the message names them), or no `<s>`.
    """

    model_bytes: bytes
    fingerprint: str  # SHA-256 of model_bytes, in hex
    vocab_size: int
    bos_id: int
    token_lengths: NDArray[np.int32]  # [V], bytes that each token stands for; read-only

    def __init__(self, model: bytes | str | os.PathLike[str]) -> None:
        import sentencepiece  # here, because `import streamlm` must not load it

        self.model_bytes = model if isinstance(model, bytes) else Path(model).read_bytes()
        self.fingerprint = hashlib.sha256(self.model_bytes).hexdigest()
        self._processor: Any = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self.model_bytes)
        except RuntimeError as error:
            which = "the bytes are" if isinstance(model, bytes) else f"{os.fspath(model)} is"
            raise ValueError(f"{which} no SentencePiece model: {error}") from error
        check_settings(self.model_bytes)
        self._bytes_of = read_vocabulary(self._processor)
        self.vocab_size = len(self._bytes_of)
        self.bos_id = self._processor.bos_id()
        if self.bos_id < 0:
            raise ValueError("the model has no <s> (bos_id is -1)")
        self.token_lengths = np.array([len(data) for data in self._bytes_of], dtype=np.int32)
        self.token_lengths.flags.writeable = False
        spelling = {self._bytes_of[i]: i for i in byte_ids(self._processor)}
        self._space_symbol = [spelling[bytes([byte])] for byte in SPACE_SYMBOL.encode()]

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]!r})"

    def encode(self, text: str, *, errors: Errors = "replace") -> NDArray[np.int32]:
        """The tokens of `text`, without `<s>`.

        A `str` can hold lone surrogates, which no UTF-8 text has: "replace" reads each as U+FFFD,
        "strict" raises a ValueError that names the first one and its offset.
        """
        parts = (part for block in blocks(valid_text(text, errors)) for part in segments(block))
        # One call for each part: a call with a list starts threads, which takes longer than a word.
        encode = self._processor.encode_as_ids
        # SentencePiece would read U+2581 as a space, so these parts we spell in bytes ourselves.
        ids = (
            self._space_symbol * len(part) if part[0] == SPACE_SYMBOL else encode(part)
            for part in parts
        )
        return np.fromiter(chain.from_iterable(ids), dtype=np.int32)

    def decode_bytes(self, ids: Ids) -> bytes:
        """The bytes that `ids` stand for; control symbols such as `<s>` stand for none.

        Raises ValueError for an id outside of the vocabulary.
        """
        return b"".join(map(self._bytes_of.__getitem__, self._checked(ids)))

    def decode(self, ids: Ids) -> str:
        """The text that `ids` stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token stands for. Raises ValueError for an id out of range."""
        return self.decode_bytes([id])

    def _checked(self, ids: Ids) -> list[int]:
        array = np.asarray(ids)
        if array.ndim != 1:
            raise ValueError(f"ids must be a sequence of integers, given shape {array.shape}")
        if array.size == 0:
            return []
        if array.dtype.kind not in "iu":
            raise ValueError(f"ids must be integers, given {array.dtype}")
        for extreme in (array.min(), array.max()):
            if not 0 <= extreme < self.vocab_size:
                raise ValueError(f"id {extreme} is out of range: 0 to {self.vocab_size - 1}")
        found: list[int] = array.tolist()
        return found


def valid_text(text: str, errors: Errors) -> str:
    """`text` with lone surrogates replaced by U+FFFD or, under "strict", refused."""
    if errors not in ("strict", "replace"):
        raise ValueError(f"errors must be 'strict' or 'replace', given {errors!r}")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if errors == "strict":
            raise ValueError(
                f"character U+{ord(text[error.start]):04X} at offset {error.start} is a lone "
                "surrogate, which UTF-8 cannot encode"
            ) from None
        return _SURROGATE.sub("\ufffd", text)
    return text
